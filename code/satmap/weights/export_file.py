"""Names and marks of the files of exported networks, without torch."""

import importlib.util
import zipfile
from pathlib import Path, PurePosixPath

from satmap.errors import CannotWriteError, SatmapError
from satmap.io.files import require_writable

#: Suffixes of the export formats.
EXPORT_SUFFIXES = (".pt2", ".onnx")

#: File inside a ``.pt2`` with the metadata, a JSON object of strings.
METADATA_FILE = "satmap.json"

#: Producer name in ONNX files.
PRODUCER = "satmap"


def require_exportable(path: Path) -> None:
    """Check that ``satmap.weights.export.export_network`` can write ``path``.

    Raises:
        SatmapError: the suffix is unknown, or a package that ONNX needs is missing.
        CannotWriteError: the file cannot be written, or it exists and is not an export.
    """
    suffix = path.suffix.lower()
    if suffix not in EXPORT_SUFFIXES:
        raise SatmapError(f"{path} must end in {' or '.join(EXPORT_SUFFIXES)}.")
    missing = [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]
    if suffix == ".onnx" and missing:
        raise SatmapError(
            f"writing {path} needs the Python packages {' and '.join(missing)}. Install them "
            "(`pip install onnx onnxscript`), or write a .pt2."
        )
    require_writable(path)
    if path.is_file() and path.stat().st_size and not _is_export(path):
        raise CannotWriteError(
            f"{path} exists and was not exported by satmap, so it is not overwritten. The last "
            "argument is the file to write: give another name."
        )


def _is_export(path: Path) -> bool:
    try:
        if path.suffix.lower() == ".onnx":
            import onnx

            return bool(onnx.load(path, load_external_data=False).producer_name == PRODUCER)
        with zipfile.ZipFile(path) as archive:
            return any(PurePosixPath(name).name == METADATA_FILE for name in archive.namelist())
    # The file has another format. protobuf's own error is not exported by onnx.
    except Exception:
        return False
