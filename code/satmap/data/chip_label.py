"""Label of a chip that satmap cut from a user's images, in one file in the cache.

All coordinates are pixels of the chip, so images without georeference need no special treatment.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from satmap.errors import SatmapError
from satmap.io.files import atomic_path

#: Suffix of the files, which the challenges' labels do not have.
CHIP_LABEL_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ChipLabel:
    """Labelled objects of a chip, and the pixels that training ignores.

    Attributes:
        shapes: LineStrings that may leave the chip, or polygons within it; (n,), in pixels.
        ignored: bool (height, width): no data, voids, and ground without complete labels.
        mask: bool (height, width): the objects as the user drew them; None for vector labels.
        metres_per_pixel: along x and y; None if unknown and not needed.
        speeds_mph: speed of each line; empty for polygons and masks.
        widths_m: width of each line, NaN if unknown; empty for polygons and masks.
        levels: vertical order of each line, 0 on the ground; empty for polygons and masks.
    """

    shapes: NDArray[np.object_]
    ignored: NDArray[np.bool_]
    mask: NDArray[np.bool_] | None
    metres_per_pixel: tuple[float, float] | None
    speeds_mph: tuple[float, ...] = ()
    widths_m: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()

    def write(self, path: Path) -> None:
        """Write the label, atomically.

        Raises:
            CannotWriteError: the file cannot be written.
        """
        facts = {
            "shapes": shapely.to_wkb(self.shapes, hex=True).tolist(),
            "metres_per_pixel": self.metres_per_pixel,
            "speeds_mph": self.speeds_mph,
            "widths_m": [None if np.isnan(width) else width for width in self.widths_m],
            "levels": self.levels,
            "shape": self.ignored.shape,
        }
        rasters = {"ignored": np.packbits(self.ignored)}
        if self.mask is not None:
            rasters["mask"] = np.packbits(self.mask)
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(rasters, {"label": json.dumps(facts)}))

    @classmethod
    def read(cls, path: Path) -> "ChipLabel":
        """Read a label.

        Raises:
            SatmapError: the file is missing or damaged.
        """
        try:
            with safe_open(path, framework="numpy") as tensors:
                facts: dict[str, Any] = json.loads(tensors.metadata()["label"])
                height, width = facts["shape"]
                rasters = {
                    name: np.unpackbits(tensors.get_tensor(name), count=height * width)
                    .reshape(height, width)
                    .astype(np.bool_)
                    for name in list(tensors.keys())
                }
            metres = facts["metres_per_pixel"]
            return cls(
                shapely.from_wkb(np.array(facts["shapes"], np.object_)),
                rasters["ignored"],
                rasters.get("mask"),
                (metres[0], metres[1]) if metres else None,
                tuple(facts["speeds_mph"]),
                tuple(float("nan") if width is None else width for width in facts["widths_m"]),
                tuple(facts["levels"]),
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise SatmapError(
                f"{path}: damaged ({error}). Delete {path.parent} and run the command again."
            ) from error


def is_chip_label(path: Path | None) -> bool:
    """Return whether a label is one of a user's images, not one of a challenge."""
    return path is not None and path.suffix == CHIP_LABEL_SUFFIX
