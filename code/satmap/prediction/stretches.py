"""Contrast stretches of an unfinished map, which are kept beside its output.

A stretch comes from a sample of all rasters of a layer, also of those that cannot be read at the
moment. With another stretch all blocks would have to be predicted anew, so the next run takes the
same one as long as the rasters that it came from are unchanged.
"""

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from satmap.data.layers import Layer, Stretch
from satmap.data.sources import states_of
from satmap.errors import SatmapError
from satmap.io.files import atomic_path
from satmap.io.text import public_address


class KeptStretches:
    """The file with the stretches of an unfinished map."""

    def __init__(self, output: Path) -> None:
        """Read the stretches that an earlier run left beside ``output``; a damaged file counts as
        none.
        """
        self.path = output.with_name(f".{output.name}.stretches")
        try:
            self._records: list[dict[str, Any]] = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            self._records = []

    def apply(
        self,
        layers: Iterable[Layer],
        percentiles: tuple[float, float],
        sampled: Callable[[Layer], Layer | None],
        faults: Collection[str],
    ) -> list[Layer]:
        """Return the layers with their stretch, a kept one if possible.

        Args:
            layers: without stretch.
            percentiles: which ``sampled`` takes; they must be the same as in the earlier run.
            sampled: returns a layer with the stretch of a sample; None if nothing can be read.
            faults: names of rasters that could not be read; ``sampled`` adds to them.
        """
        ready, records = [], []
        for layer in layers:
            states = _states(layer)
            kind: list[Any] = [*percentiles, list(layer.bands)]
            record = next((each for each in self._records if _fits(each, kind, states)), None)
            if record:
                found: Layer | None = replace(
                    layer, stretch=Stretch(tuple(record["low"]), tuple(record["high"]))
                )
            else:
                found = sampled(layer)
                if found is None:
                    continue
                assert found.stretch is not None
                unread = {public_address(name) for name in faults}
                used = {name: state for name, state in states.items() if name not in unread}
                low, high = found.stretch.low, found.stretch.high
                record = {"kind": kind, "rasters": used, "low": low, "high": high}
            assert found is not None
            ready.append(found)
            records.append(record)
        self._records = records
        return ready

    def write(self) -> None:
        """Keep the stretches of the latest layers for the next run.

        Raises:
            CannotWriteError: the file cannot be written.
        """
        if self._records:
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(self._records))

    def remove(self) -> None:
        """Delete the file, when the map is complete."""
        self.path.unlink(missing_ok=True)


def _fits(record: dict[str, Any], kind: list[Any], states: dict[str, Any]) -> bool:
    """Return whether a kept stretch suits a layer.

    At least one of its rasters must still exist, and those that exist must be unchanged.
    """
    same = [states[name] == state for name, state in record["rasters"].items() if name in states]
    return record["kind"] == kind and bool(same) and all(same)


def _states(layer: Layer) -> dict[str, Any]:
    """Return the state of each raster's file, without rasters that no longer exist."""
    states: dict[str, Any] = {}
    for source in layer.sources:
        try:
            found = [] if source.is_remote else states_of(source)
        except (OSError, SatmapError):
            continue
        # Addresses may hold secrets, which no file of a run may keep.
        states[public_address(source.name)] = json.loads(json.dumps(found))
    return states
