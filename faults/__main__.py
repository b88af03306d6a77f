"""Run the campaign: ``python -m faults [--only TEXT] [--seed N] [--work DIR] [--table FILE]``.

Every case damages something, runs real commands in their own processes and checks how they end:
within their time limit, with a documented status, without a traceback or noise of a library, with a
valid result or a message that says what to do, and without losing earlier work. A short table of
outcomes goes to stdout, the full table to ``--table``. The exit status is 0 without findings.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults.bench import Bench
from faults.case import Case
from faults.cases import all_cases
from faults.forks import load_libraries
from faults.material import Material, make_material
from faults.table import Result, full_table, short_table


def main() -> None:
    """Run the campaign from the command line."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", default="", help="groups or parts of case names to run, separated by commas"
    )
    parser.add_argument("--seed", type=int, default=None, help="default: random, and printed")
    parser.add_argument("--work", type=Path, help="directory; default: a temporary one")
    parser.add_argument("--table", type=Path, help="Markdown file for the full table")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel cases")
    parser.add_argument(
        "--forked", action="store_true", help="fork commands: faster but slightly less realistic"
    )
    parser.add_argument("--keep", action="store_true", help="keep the directories of all cases")
    parser.add_argument("--list", action="store_true", help="print the cases and exit")
    options = parser.parse_args()
    cases = _chosen(all_cases(), options.only)
    if not cases:
        sys.exit(f"no case matches {options.only!r}; --list shows all cases")
    if options.list:
        print("\n".join(f"{case.group}: {case.name}" for case in cases))
        return
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"{len(cases)} cases, seed {seed}", flush=True)
    work: Path = options.work or Path(tempfile.mkdtemp(prefix="satmap-faults-"))
    # Cases that run as an unprivileged user must be able to read the good material.
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o755)
    material = make_material(work.resolve() / "good")
    started = time.monotonic()

    def play(numbered: tuple[int, Case]) -> Result:
        number, case = numbered
        result = _play(
            case, work.resolve() / f"case-{number}", material, seed, options.keep, options.forked
        )
        print(f"[{number + 1}/{len(cases)}] {result.line()}", flush=True)
        return result

    if options.forked:
        load_libraries()
        # Only a single-threaded process may fork safely.
        results = [play(numbered) for numbered in enumerate(cases)]
    else:
        with ThreadPoolExecutor(options.jobs) as pool:
            results = list(pool.map(play, enumerate(cases)))
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(full_table(results))
    print(f"\n{short_table(results)}")
    bad = [result for result in results if result.findings]
    minutes = (time.monotonic() - started) / 60
    print(f"{len(results)} cases in {minutes:.0f} min, seed {seed}: {len(bad)} with findings")
    for result in bad:
        print(f"  {result.case.group}: {result.case.name}")
        for finding in result.findings:
            print(f"    {finding}")
    if not options.work and not options.keep and not bad:
        shutil.rmtree(work)
    sys.exit(1 if bad else 0)


def _chosen(cases: Sequence[Case], only: str) -> list[Case]:
    """Return the cases whose group is listed in ``only`` or whose name contains a listed text."""
    groups = {case.group for case in cases}
    wanted = [text.strip() for text in only.split(",") if text.strip()]
    return [
        case
        for case in cases
        if not wanted
        or any(text == case.group if text in groups else text in case.name for text in wanted)
    ]


def _play(
    case: Case, directory: Path, material: Material, seed: int, keep: bool, forked: bool
) -> Result:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    draw = random.Random(f"{seed} {case.group} {case.name}")
    bench = Bench(directory, material, draw, case.limit_s, forked)
    try:
        outcome = case.play(bench)
    # An error of the campaign itself in one case must not stop the others.
    except Exception as error:
        outcome = "not played"
        bench.find(f"the campaign failed: {type(error).__name__}: {error}")
    if not keep and not bench.findings:
        shutil.rmtree(directory, ignore_errors=True)
    return Result(case, outcome, bench.seconds, tuple(bench.findings))


if __name__ == "__main__":
    main()
