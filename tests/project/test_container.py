"""Scripts of the container image, as far as they can be tested without a container engine.

`make check-container` tests everything.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import satmap
from mounts import needs_mounts
from repository import ROOT
from satmap.recipes.schema import load_recipe

NOBODY = 4242


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def weights_dir(home: Path, use: str, **environment: str) -> tuple[str, str]:
    """Return the weights directory that train.sh or test.sh choose, and their messages."""
    script = f'. "{ROOT}/container/weights_dir.sh"; choose_weights_dir "$1" "$2"; echo $WEIGHTS_DIR'
    done = run("bash", "-euc", script, "bash", str(home), use, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_the_weights_directory_defaults_to_weights(tmp_path: Path) -> None:
    for use in ("train", "predict"):
        assert weights_dir(tmp_path, use) == (f"{tmp_path}/weights", "")
        assert weights_dir(tmp_path, use, WEIGHTS_DIR="/some/where") == ("/some/where", "")
        # A directory inside the container has no advantage over weights/.
        named = weights_dir(tmp_path, use, SATMAP_SCRATCH=str(tmp_path))
        assert named == (f"{tmp_path}/weights", "")


@needs_mounts
def test_weights_go_to_the_scratch_volume_without_a_weights_volume(tmp_path: Path) -> None:
    scratch, home = tmp_path / "scratch", tmp_path / "home"
    for directory in (scratch, home / "weights"):
        directory.mkdir(parents=True)
    script = """
        . "$1/container/weights_dir.sh"
        choose() (
            unset WEIGHTS_DIR
            choose_weights_dir "$home" "$1" 2>/dev/null
            echo $WEIGHTS_DIR
        )
        home=$3; export SATMAP_SCRATCH=$2
        mount -t tmpfs none "$2"
        choose predict; choose train
        mkdir "$2/satmap-weights"; choose predict
        touch "$2/satmap-weights/a.safetensors"; choose predict
        mount -t tmpfs none "$3/weights"
        choose predict; choose train
    """
    done = run(
        "unshare", "--mount", "bash", "-euc", script, "bash", str(ROOT), str(scratch), str(home)
    )
    own, kept = str(home / "weights"), str(scratch / "satmap-weights")
    assert done.stdout.split() == [own, kept, own, kept, own, own], done.stderr


@pytest.fixture
def entry() -> Iterator[Path]:
    """Copy of the entry point that any user can read."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        copy = Path(directory) / "entrypoint.sh"
        shutil.copy(ROOT / "container/entrypoint.sh", copy)
        yield copy


AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


@needs_root
def test_the_entry_point_keeps_the_user_and_sets_its_home(entry: Path) -> None:
    script = 'id -u; touch "$HOME/file" && echo "$1"; rm -r "$HOME"; exit 7'
    done = run(*AS_NOBODY, "bash", str(entry), "sh", "-c", script, "sh", "two words", HOME="/proc")
    assert done.stdout.splitlines() == [str(NOBODY), "two words"], done.stderr
    assert done.returncode == 7


@needs_root
def test_the_entry_point_keeps_the_root_of_a_rootless_engine(entry: Path) -> None:
    rootless = (*AS_NOBODY, "unshare", "--user", "--map-root-user")
    if run(*rootless, "true").returncode:
        pytest.skip("users may not have namespaces here")
    done = run(*rootless, "bash", str(entry), "id", "-u", HOME="/tmp")
    assert done.stdout.strip() == "0", done.stderr


def test_the_image_is_labelled_with_the_version() -> None:
    labelled = re.search(r"^ARG VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert labelled is not None
    assert labelled[1] == satmap.__version__


def test_the_check_trains_a_recipe_for_chips_with_and_without_infrared() -> None:
    members = load_recipe(str(ROOT / "container/check.yaml")).members
    assert [(member.fold, member.bands, member.pretrained) for member in members] == [
        (0, 3, False), (1, 8, False)
    ]  # fmt: skip


def test_both_locks_agree_except_for_torch_and_its_dependencies() -> None:
    def locked(name: str) -> dict[str, str]:
        text = (ROOT / name).read_text()
        return dict(re.findall(r"^([a-z0-9._-]+)==([^ ]+)", text, re.MULTILINE))

    ours, older = locked("requirements.lock"), locked("requirements-cuda12.lock")
    different = {name for name in ours.keys() | older if ours.get(name) != older.get(name)}
    assert "torch" in different
    assert {name for name in different if not name.startswith(("nvidia-", "cuda-"))} <= {
        "torch", "torchvision", "triton"
    }  # fmt: skip
