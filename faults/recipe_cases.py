"""Cases of broken and malicious recipes."""

from collections.abc import Callable
from functools import partial

from faults import harm
from faults.bench import FAILED, WRONG_ARGUMENTS, Bench
from faults.case import Case
from faults.harm import Harm

_LAUGHS = "\n".join(
    ["x-a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    + [f"x-a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
)


def recipe_cases() -> list[Case]:
    """Return all cases of recipes."""
    cases = [
        Case("recipe", name, _played(partial(_harmed, damage=damage)))
        for name, damage in (*harm.ANY_FILE, ("truncated", harm.truncated))
    ]
    changes: tuple[tuple[str, tuple[str, str], str], ...] = (
        ("a duplicate key", ("folds: 2", "folds: 3\nfolds: 2"), "duplicate key"),
        ("a nested duplicate key", ("batch: 4", "batch: 4\n        batch: 8"),
         "duplicate key"),
        ("an unknown key", ("folds: 2", "folds: 2\nflods: 3"), "flods: unknown key"),
        ("tabs", ("\n  - fold: 0", "\n\t- fold: 0"), "not YAML"),
        ("anchors that multiply by nines", ("name: faults", f"{_LAUGHS}\nname: *a11"),
         "too large"),
        ("anchors that multiply under ignored keys",
         ("name: faults", f"{_LAUGHS}\nname: faults"), "too large"),
        ("an anchor that contains itself", ("name: faults", "x-a: &a [*a]\nname: faults"),
         "contains itself"),
        ("brackets 20,000 deep", ("name: faults", f"name: {'[' * 20_000}"), "too deep"),
        ("an object of Python's", ("name: faults", "name: !!python/object/apply:os.getpid []"),
         "not YAML"),
        ("two documents", ("folds: 2", "folds: 2\n---\nfolds: 2"), "not YAML"),
        ("a path as the name", ("name: faults", "name: ../../etc/passwd"), "name:"),
        ("a number beyond float64", ("peak: 3.0e-3", "peak: 1.0e+999"), "peak"),
        ("NaN", ("peak: 3.0e-3", "peak: .nan"), "peak"),
        ("a missing fold", ("fold: 0", "fold: 5"), "must be below folds"),
        ("crops of size 0", ("crop: 64", "crop: 0"), "crop"),
        ("an unknown encoder", ("resnet18", "resnet19"), "resnet19"),
        ("a number of 5,000 digits", ("epochs: 2", f"epochs: {'9' * 5000}"), ""),
        ("a key that is a list", ("folds: 2", "folds: 2\n? [a, b]\n: 3"), ""),
        ("a key with terminal escapes", ("folds: 2", 'folds: 2\n"\\x1b[2J": 3'), ""),
    )  # fmt: skip
    cases += [
        Case("recipe", name, _played(partial(_changed, old=old, new=new), says))
        for name, (old, new), says in changes
    ]
    cases.append(Case("recipe", "Latin-1", _latin1))
    return cases


def _harmed(bench: Bench, damage: Harm) -> None:
    path = bench.directory / "odd.yaml"
    path.write_bytes(bench.material.short.read_bytes())
    damage(path, bench.random)


def _changed(bench: Bench, old: str, new: str) -> None:
    text = bench.material.short.read_text()
    if old not in text:
        raise ValueError(old)
    (bench.directory / "odd.yaml").write_text(text.replace(old, new, 1))


def _played(prepare: Callable[[Bench], None], *says: str) -> Callable[[Bench], str]:
    def play(bench: Bench) -> str:
        prepare(bench)
        return _refused(bench, *says)

    return play


def _refused(bench: Bench, *says: str) -> str:
    ended = bench.run("vectorize", bench.material.maps, bench.out, "--recipe", "odd.yaml")
    bench.must(ended.status in (FAILED, WRONG_ARGUMENTS), f"status {ended.status}, not 1")
    bench.must_say(ended, "odd.yaml", *says)
    bench.must("\x1b" not in ended.stderr, "an escape sequence reaches the terminal")
    bench.must(len(ended.stderr) < 5000, f"prints {len(ended.stderr)} characters")
    bench.must(not bench.out.exists(), "wrote an output nevertheless")
    return "refused"


def _latin1(bench: Bench) -> str:
    text = bench.material.short.read_text().replace("unsure", "unsür")
    (bench.directory / "odd.yaml").write_bytes(text.encode("latin-1"))
    return _refused(bench)
