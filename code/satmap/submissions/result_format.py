"""Additional result formats, provided by tasks of other packages."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from satmap.errors import SatmapError
from satmap.recipes.registry import installed_tasks
from satmap.submissions.fault import Fault


class ResultFormat(ABC):
    """A result format that ``satmap score``, ``check`` and ``overlay`` support.

    Attributes:
        name: name of the format in messages, such as ``a trees CSV``.
    """

    name: str

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Return whether a file or directory is in this format, by its name and first bytes."""

    @abstractmethod
    def score(self, truth: Path, proposal: Path) -> Any:
        """Score a result against the truth; returns a :class:`satmap.evaluation.score.Scoring`.

        Raises:
            SatmapError: the files cannot be read, or have no image in common.
        """

    @abstractmethod
    def check(self, submission: Path, directories: Sequence[Path]) -> list[Fault]:
        """Return the problems that would get a submission rejected.

        Without ``directories`` of the test images, the file is checked alone.
        """

    def draw(
        self,
        submission: Path,
        directories: Sequence[Path],
        pictures: Path,
        truth: Path | None = None,
    ) -> list[Path]:
        """Draw a submission over its images and return the pictures; by default not supported."""
        raise SatmapError(f"{submission} is {self.name}, which cannot be drawn.")


def find_format(path: Path) -> ResultFormat | None:
    """Return the additional format that a file is in; None if there is no such format."""
    for entry in installed_tasks().values():
        for result_format in entry.result_formats():
            if isinstance(result_format, ResultFormat) and result_format.matches(path):
                return result_format
    return None
