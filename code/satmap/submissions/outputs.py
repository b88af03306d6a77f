"""Checks that outputs can be written, made before the work starts."""

from collections.abc import Sequence
from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.files import require_map_output
from satmap.recipes.registry import BUILT_IN, installed_tasks

# Suffixes of formats that are never submissions: GIS and graphs, images, archives, documents,
# arrays and weights.
_FOREIGN_SUFFIXES = {
    *(".dxf", ".fgb", ".gdb", ".geoparquet", ".gml", ".kml", ".kmz", ".parquet", ".shp", ".sqlite"),
    *(".gif", ".jp2", ".jpeg", ".jpg", ".pdf", ".png", ".svg", ".tif", ".tiff", ".vrt"),
    *(".7z", ".bz2", ".gz", ".tar", ".tgz", ".xz", ".zip"),
    *(".doc", ".docx", ".htm", ".html", ".md", ".ods", ".xls", ".xlsx", ".xml", ".yaml", ".yml"),
    *(".npy", ".npz", ".onnx", ".pkl", ".pt", ".pt2", ".pth", ".safetensors"),
}


def require_outputs(output: Path, exports: Sequence[Path] = ()) -> None:
    """Check that a submission and its exports can be written to these files.

    A submission with an unknown suffix, or without one, is a CSV file.

    Args:
        output: file of the submission.
        exports: files of the exports.

    Raises:
        SatmapError: an export has an unknown format, the submission has the suffix of another
            format, or an export is the same file as the submission.
        CannotWriteError: an output cannot be written, or holds something else.
    """
    known = _export_suffixes()
    for path in exports:
        if path.suffix.lower() not in known:
            raise SatmapError(
                f"{path}: the suffix of an export selects its format, and '{path.suffix}' is not "
                f"one of {', '.join(known)}."
            )
        if path.resolve() == output.resolve():
            raise SatmapError(f"{path} cannot be both the submission and an export.")
    for path in (output, *exports):
        require_map_output(path)
    if output.suffix.lower() in {*known, *_FOREIGN_SUFFIXES}:
        raise SatmapError(
            f"{output}: the submission is a CSV file, or for buildings a .json file with COCO "
            "results. Give a name that ends in .csv. For GIS formats add --export with a name that "
            f"ends in {', '.join(known[:-1])} or {known[-1]}."
        )


def _export_suffixes() -> tuple[str, ...]:
    """Return the export suffixes of all tasks; the task is known only once weights are loaded."""
    entries = (*BUILT_IN, *installed_tasks().values())
    suffixes = (suffix for entry in entries for suffix in entry.settings_type().export_suffixes)
    return tuple(dict.fromkeys(suffixes))
