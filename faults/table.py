"""Outcomes of the campaign as Markdown tables."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from faults.case import Case


@dataclass(frozen=True)
class Result:
    """Result of a case.

    Attributes:
        case: the case.
        outcome: outcome in a few words.
        seconds: run time of its slowest command.
        findings: violated expectations.
    """

    case: Case
    outcome: str
    seconds: float
    findings: tuple[str, ...]

    def line(self) -> str:
        """Return the line for the log."""
        verdict = "; ".join(self.findings) if self.findings else "ok"
        return (
            f"{self.case.group}: {self.case.name}: {self.outcome}, {self.seconds:.0f} s: {verdict}"
        )


def full_table(results: Sequence[Result]) -> str:
    """Return a table with one row per case."""
    rows = ["| group | fault | outcome | seconds | findings |", "|---|---|---|---|---|"]
    rows += [
        f"| {r.case.group} | {r.case.name} | {r.outcome} | {r.seconds:.0f} | "
        f"{'; '.join(r.findings).replace('|', ' ') or 'none'} |"
        for r in results
    ]
    return "\n".join(rows) + "\n"


def short_table(results: Sequence[Result]) -> str:
    """Return a table with one row per group: cases, outcomes, slowest command, findings."""
    rows = ["| group | cases | outcomes | slowest | findings |", "|---|---|---|---|---|"]
    for group in dict.fromkeys(r.case.group for r in results):
        of_group = [r for r in results if r.case.group == group]
        outcomes = Counter(r.outcome for r in of_group)
        listed = ", ".join(
            f"{count} {outcome}" if count > 1 else outcome
            for outcome, count in outcomes.most_common()
        )
        slowest = max(r.seconds for r in of_group)
        found = sum(bool(r.findings) for r in of_group)
        rows.append(f"| {group} | {len(of_group)} | {listed} | {slowest:.0f} s | {found} |")
    return "\n".join(rows) + "\n"
