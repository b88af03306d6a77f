"""Filling the cache: all chips of a training, several at a time."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from satmap.data.cache import CachedChip, StretchSettings, prepare_chip
from satmap.data.chip import Chip
from satmap.data.labelling import TargetsOf
from satmap.errors import CannotWriteError, SatmapError
from satmap.progress import track
from satmap.runtime.cores import available_cores

# More bad chips than this share point to a systematic fault that skipping would hide.
_TOLERATED_FAULTS = 0.1


@dataclass(frozen=True)
class Preparation:
    """The chips that are ready, in the order given, and what is wrong with the others."""

    chips: tuple[CachedChip, ...]
    faults: dict[str, str]

    def require_enough(self) -> None:
        """Fail if nothing is left or so much is bad that something is wrong with all of it.

        Raises:
            SatmapError: names the first faults.
        """
        total = len(self.chips) + len(self.faults)
        if len(self.faults) > _TOLERATED_FAULTS * total or not self.chips:
            first = "\n".join(f"  {fault}" for fault in list(self.faults.values())[:5])
            raise SatmapError(f"{len(self.faults)} of {total} chips cannot be used:\n{first}")


def prepare(
    chips: Sequence[Chip],
    channels: int,
    directory: Path,
    stretch: StretchSettings,
    targets: TargetsOf,
    *,
    input_px: int | None = None,
    heads: int | None = None,
) -> Preparation:
    """Bring the chips into the cache; one that cannot be read costs only itself.

    Args:
        chips: with labels.
        channels: what the recipe's networks need at most.
        directory: the cache.
        stretch: how images become 8 bits.
        targets: how labels become pixels.
        input_px: length of the longer side as networks see it; None for the image's own.
        heads: into how many categories looks fall; None for no categories.

    Raises:
        CannotWriteError: the cache's directory cannot be written, or its disk is full.
    """

    def attempt(chip: Chip) -> CachedChip | str:
        try:
            chip.require_channels(channels)
            return prepare_chip(chip, directory, stretch, targets, input_px=input_px, heads=heads)
        except CannotWriteError:
            raise
        except SatmapError as error:
            return str(error)
        # Libraries fail in ways of their own on files that nobody has thought of.
        except Exception as error:
            return f"{chip.image.path}: {type(error).__name__}: {error}"

    ready, faults = [], {}
    # Threads suffice: GDAL and numpy let go of the interpreter for most of the work.
    with ThreadPoolExecutor(available_cores()) as pool:
        results = track(pool.map(attempt, chips), "preparing", len(chips))
        for chip, result in zip(chips, results, strict=True):
            if isinstance(result, str):
                faults[chip.image_id] = result
            else:
                ready.append(result)
    return Preparation(tuple(ready), faults)


def default_cache() -> Path:
    """``$SATMAP_CACHE``, else the organisers' scratch volume, else the user's cache directory."""
    if named := os.environ.get("SATMAP_CACHE"):
        return Path(named)
    scratch = Path("/wdata")
    # What this process may do, not its user: a container's has a power more than that.
    if scratch.is_dir() and os.access(scratch, os.W_OK, effective_ids=True):
        return scratch / "satmap-cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "satmap"
