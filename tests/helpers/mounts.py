"""Private mounts, for tests with little shared memory or read-only directories."""

import subprocess
from pathlib import Path

import pytest


def private_mount(size: str, target: Path, *command: str) -> list[str]:
    """Return the command with a private tmpfs of the given size at the target."""
    script = 'mount -t tmpfs -o size="$1" none "$2" && shift 2 && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", size, str(target), *command]


def can_mount() -> bool:
    try:
        done = subprocess.run(
            private_mount("1m", Path("/dev/shm"), "true"), capture_output=True, timeout=60
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="mounting is not allowed here")
