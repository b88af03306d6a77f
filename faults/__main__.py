"""Run the campaign: ``python -m faults [--only TEXT] [--seed N] [--work DIR] [--table FILE]``.

Every case harms something, runs real commands in processes of their own and looks at how they end:
within their time, with a status that is documented, without a traceback or a library's noise, with
a valid result or a message that says what to do, and with nothing lost that was done before. The
table of outcomes goes to stdout, and whole to ``--table``. Exit status 0 if nothing was found.
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
    """Read the arguments and do it."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", default="", help="cases whose group, or part of whose name, this is; comma, list"
    )
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--work", type=Path, help="directory; default: a temporary one")
    parser.add_argument("--table", type=Path, help="write the whole table, Markdown, here")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument(
        "--forked", action="store_true", help="start commands as forks: fast, a little less real"
    )
    parser.add_argument("--keep", action="store_true", help="keep the directories of all cases")
    parser.add_argument("--list", action="store_true", help="print the cases and do nothing")
    options = parser.parse_args()
    cases = _chosen(all_cases(), options.only)
    if not cases:
        sys.exit(f"no case is called {options.only!r}; --list shows all")
    if options.list:
        print("\n".join(f"{case.group}: {case.name}" for case in cases))
        return
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"{len(cases)} cases, seed {seed}", flush=True)
    work: Path = options.work or Path(tempfile.mkdtemp(prefix="satmap-faults-"))
    # A user without rights must get at what is good, to be refused what is not.
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
        # Only a process of one thread may be forked.
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
    """The cases of the groups that are named; of what names no group, those with it in the name."""
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
    # One case that the campaign itself cannot play must not end the others.
    except Exception as error:
        outcome = "not played"
        bench.find(f"the campaign failed: {type(error).__name__}: {error}")
    if not keep and not bench.findings:
        shutil.rmtree(directory, ignore_errors=True)
    return Result(case, outcome, bench.seconds, tuple(bench.findings))


if __name__ == "__main__":
    main()
