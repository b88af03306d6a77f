"""Commands as forks of this process, which has loaded the libraries."""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path


def load_libraries() -> None:
    """Import the libraries of the commands without starting a thread."""
    import satmap.evaluation.score
    import satmap.prediction.run
    import satmap.prediction.vectorize
    import satmap.report.overlay
    import satmap.training.train_ensemble  # noqa: F401


def fork(
    arguments: Sequence[object],
    directory: Path,
    environment: Mapping[str, str],
    logs: tuple[Path, Path],
) -> int:
    """Run ``satmap ARGUMENTS`` in its own process, which leads a session.

    Args:
        arguments: arguments of satmap.
        directory: working directory.
        environment: environment variables.
        logs: files for stdout and stderr.

    Returns:
        The process id.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(logs[0], flags, 0o644), 1)
        os.dup2(os.open(logs[1], flags, 0o644), 2)
        from satmap.cli import main

        sys.argv = ["satmap", *map(str, arguments)]
        main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
