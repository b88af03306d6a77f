"""Suffixes of submissions, and of formats that no submission has."""

from pathlib import Path

from satmap.errors import SatmapError

#: Suffixes of the formats of GIS and graphs that results can be exported to.
EXPORT_FORMATS = (".geojson", ".gpkg", ".graphml")

# Suffixes of formats that no submission has: of GIS and graphs, images, archives, documents, arrays
# and weights.
_FOREIGN_SUFFIXES = {
    *EXPORT_FORMATS,
    *(".dxf", ".fgb", ".gdb", ".geoparquet", ".gml", ".kml", ".kmz", ".parquet", ".shp", ".sqlite"),
    *(".gif", ".jp2", ".jpeg", ".jpg", ".pdf", ".png", ".svg", ".tif", ".tiff", ".vrt"),
    *(".7z", ".bz2", ".gz", ".tar", ".tgz", ".xz", ".zip"),
    *(".doc", ".docx", ".htm", ".html", ".md", ".ods", ".xls", ".xlsx", ".xml", ".yaml", ".yml"),
    *(".npy", ".npz", ".onnx", ".pkl", ".pt", ".pt2", ".pth", ".safetensors"),
}


def require_submission_suffix(output: Path) -> None:
    """Refuse a submission whose name promises another format.

    Other names, with an unknown suffix or without one, are those of a CSV.

    Raises:
        SatmapError: the suffix is another format's.
    """
    if output.suffix.lower() in _FOREIGN_SUFFIXES:
        raise SatmapError(
            f"{output}: the submission is a CSV file, or for buildings a .json file with COCO "
            "results. Give a name that ends in .csv. For GIS formats add --export with a name that "
            f"ends in {', '.join(EXPORT_FORMATS[:-1])} or {EXPORT_FORMATS[-1]}."
        )
