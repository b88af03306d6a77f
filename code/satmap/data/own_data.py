"""What a user names to train on: images, labels, and how to read them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OwnData:
    """Images and labels that the user names.

    Attributes:
        sources: files, directories and addresses of images.
        labels: a vector file, a directory of vector files, or a directory of masks.
        area: vector file with polygons within which labels are complete; None for everywhere.
        bands: numbers of the bands for the networks' channels, from 1; None for the usual ones.
        source_crs: reference system of images that state none.
        zoom: zoom level of map tiles.
        gsd: metres per pixel of the chips; None for that of the images.
        metres_per_pixel: pixel size of images without georeference; None for the task's default.
        shift: metres to the east and to the north by which vector labels are moved.
        ignored: vector file with polygons that training ignores; None for none.
    """

    sources: tuple[str, ...]
    labels: Path
    area: Path | None = None
    bands: tuple[int, ...] | None = None
    source_crs: str | None = None
    zoom: int | None = None
    gsd: float | None = None
    metres_per_pixel: float | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    ignored: Path | None = None
