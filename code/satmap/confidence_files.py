"""Confidence models of buildings on disk, as LightGBM's text: nothing in it is run."""

from pathlib import Path

from satmap.buildings.confidence import ConfidenceModel
from satmap.errors import SatmapError
from satmap.files import write_text

#: Its name in a directory of weights.
CONFIDENCE_FILE = "building-confidence.txt"


def write_confidence(path: Path, model: ConfidenceModel) -> None:
    """Write a model atomically; the same model gives the same bytes.

    Raises:
        CannotWriteError: ``path`` cannot be written.
    """
    write_text(path, model.text)


def read_confidence(path: Path) -> ConfidenceModel:
    """Read what :func:`write_confidence` wrote.

    Raises:
        SatmapError: it cannot be read, is no model, or one for other features.
    """
    try:
        return ConfidenceModel(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SatmapError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise SatmapError(f"{path}: {error}. Fit the confidence model anew.") from error
