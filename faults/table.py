"""The outcomes as Markdown."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from faults.case import Case


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Attributes:
        case: the case.
        outcome: in a word or two.
        seconds: of its slowest command.
        findings: what was not as it must be; empty if nothing was.
    """

    case: Case
    outcome: str
    seconds: float
    findings: tuple[str, ...]

    def line(self) -> str:
        """For the log."""
        verdict = "; ".join(self.findings) if self.findings else "ok"
        return (
            f"{self.case.group}: {self.case.name}: {self.outcome}, {self.seconds:.0f} s: {verdict}"
        )


def full_table(results: Sequence[Result]) -> str:
    """A row a case."""
    rows = ["| group | what was done | outcome | seconds | findings |", "|---|---|---|---|---|"]
    rows += [
        f"| {r.case.group} | {r.case.name} | {r.outcome} | {r.seconds:.0f} | "
        f"{'; '.join(r.findings).replace('|', ' ') or 'none'} |"
        for r in results
    ]
    return "\n".join(rows) + "\n"


def short_table(results: Sequence[Result]) -> str:
    """A row a group: how many cases, how they came out, the slowest command."""
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
