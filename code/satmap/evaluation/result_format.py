"""Formats of results beside those of the challenges, added by tasks of other packages."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from satmap.recipes.registry import installed_tasks
from satmap.submissions.fault import Fault


class ResultFormat(ABC):
    """A format that ``satmap score``, ``check`` and ``overlay`` then know.

    Attributes:
        name: what messages call it: ``a trees CSV``.
    """

    name: str

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Whether a file or directory is in this format, by its name and first bytes."""

    @abstractmethod
    def score(self, truth: Path, proposal: Path) -> Any:
        """A :class:`satmap.evaluation.score.Scoring` of a result by the truth.

        Raises:
            SatmapError: the files cannot be read, or have no image in common.
        """

    @abstractmethod
    def check(self, submission: Path, directories: Sequence[Path]) -> list[Fault]:
        """Problems that would get a submission rejected.

        Args:
            submission: the file.
            directories: of the test images; none to check the file alone.
        """

    def draw(
        self,
        submission: Path,
        directories: Sequence[Path],
        pictures: Path,
        truth: Path | None = None,
    ) -> list[Path]:
        """Draw a submission over its images; returns the pictures written."""
        raise NotImplementedError


def find_format(path: Path) -> ResultFormat | None:
    """The added format that a file is in; None for those of the challenges."""
    for entry in installed_tasks().values():
        for result_format in entry.result_formats():
            if isinstance(result_format, ResultFormat) and result_format.matches(path):
                return result_format
    return None
