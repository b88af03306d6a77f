"""Wheel: its files, and commands that run from it without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from repository import ROOT

# Leftovers of earlier builds and imports, which are not copied.
GENERATED = shutil.ignore_patterns("*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, because setuptools also packs leftovers in ``build/``."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "code", source / "code", ignore=GENERATED)
    output = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(output), str(source))
    (path,) = output.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--target", str(target), str(wheel))
    return target


def pip(command: str, *arguments: str) -> None:
    options = ("--quiet", "--no-deps", "--no-index")
    subprocess.run([sys.executable, "-m", "pip", command, *options, *arguments], check=True)


def python(installed: Path, directory: Path, *arguments: str) -> str:
    """Run Python with the installed wheel ahead of the development install."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(installed)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def test_the_wheel_has_all_files_of_both_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = [
        path
        for pattern in ("*.py", "*.yaml", "py.typed")
        for path in (ROOT / "code").rglob(pattern)
    ]
    for directory in ("starters/*", "viewer/page", "viewer/vendor"):
        wanted += [path for path in (ROOT / "code/satmap").glob(f"{directory}/*") if path.is_file()]
    assert packed == {path.relative_to(ROOT / "code").as_posix() for path in wanted}
    assert {"satmap/py.typed", "synthcity/py.typed", "satmap/recipes/demo.yaml"} <= packed


def test_recipes_load_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "import satmap, synthcity\n"
        "from satmap.recipes.schema import load_recipe, recipe_names\n"
        "print(satmap.__file__, synthcity.__file__, sep='\\n')\n"
        "for name in recipe_names(): print(load_recipe(name).name)\n"
    )
    lines = python(installed, tmp_path, "-c", code).splitlines()
    files, names = lines[:2], lines[2:]
    assert all(Path(file).is_relative_to(installed) for file in files)
    assert set(names) == {path.stem for path in (ROOT / "code/satmap/recipes").glob("*.yaml")}


def test_commands_run_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    (distribution,) = metadata.distributions(path=[str(installed)])
    printed = python(installed, tmp_path, "-m", "satmap", "--version")
    assert printed == f"satmap {distribution.version}\n"
    small = ("--chips", "1", "--test-chips", "1", "--size", "128")
    python(installed, tmp_path, "-m", "satmap", "make-city", "city", *small)
    truth = "city/test_truth.csv"
    score = python(installed, tmp_path, "-m", "satmap", "score", truth, truth)
    total = [line.split() for line in score.splitlines() if line.startswith("total")]
    assert total == [["total", "1", "1.000", "1.000"]]
