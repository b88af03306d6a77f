"""Commands that run in the process of the tests."""

import pytest

from satmap.cli import main


def run(capfd: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    """Run a command in this process, check its exit status, and return what it printed.

    That is stdout, and after a failure also stderr.
    """
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capfd.readouterr()
    assert ended.value.code == status, printed.err
    return printed.out if status == 0 else printed.out + printed.err
