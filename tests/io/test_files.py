import os
from pathlib import Path

import pytest

from satmap.errors import CannotWriteError
from satmap.io.files import atomic_path, is_temporary, remove_temporary_files, require_writable


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        assert is_temporary(temporary)
        temporary.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_links_stay_links(tmp_path: Path) -> None:
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_devices_pipes_and_directories_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(CannotWriteError):
            require_writable(path)
        with pytest.raises(CannotWriteError), atomic_path(path):
            pytest.fail("there is nothing to write to")


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    plain.write_text("")
    with atomic_path(atomic) as temporary:
        temporary.write_text("")
    assert atomic.stat().st_mode == plain.stat().st_mode


def test_only_old_temporary_files_are_swept(tmp_path: Path) -> None:
    old, fresh, other = (
        tmp_path / name
        for name in (
            ".w.last-abcd1234.safetensors",
            ".w.last-efgh5678.safetensors",
            "w.safetensors",
        )
    )
    for path in (old, fresh, other):
        path.write_text("")
    for path in (old, other):
        os.utime(path, (0, 0))
    remove_temporary_files(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [fresh.name, other.name]
