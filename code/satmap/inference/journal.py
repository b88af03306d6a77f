"""What a prediction has finished so far, so that a stopped run goes on where it was."""

import fcntl
import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from affine import Affine

from satmap.data.georeference import Georeference
from satmap.errors import CannotWriteError
from satmap.exports import ImageRoads
from satmap.roads.graph import RoadEdge, RoadGraph


class Journal:
    """An append-only file of finished images beside the output.

    Its first line is a fingerprint of weights and settings: another one starts it anew. A line cut
    off by a crash is passed over.
    """

    def __init__(self, output: Path, fingerprint: str) -> None:
        """Open the journal of ``output``; ``finished`` then holds what an earlier run did."""
        self.path = output.with_name(f".{output.name}.partial")
        self.finished: dict[str, ImageRoads] = {}
        key = hashlib.sha256(fingerprint.encode()).hexdigest()
        try:
            self._file = self.path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise CannotWriteError(
                f"{output} is being written by another run; wait for it or give another name."
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        whole = self._read(key)
        # Cut off what a crash left unfinished, so that new lines start on a line of their own.
        self._file.truncate(whole)
        if not whole:
            self._write(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, key: str, roads: ImageRoads) -> None:
        """Note an image, under a key of its id and file, as finished."""
        self._write([key, _as_json(roads)])
        self.finished[key] = roads

    def remove(self) -> None:
        """Delete the file: the output is complete."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _write(self, record: object) -> None:
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CannotWriteError:
        return CannotWriteError(
            f"cannot write {self.path}: {error.strerror}. Choose another place for the output."
        )

    def _read(self, key: str) -> int:
        """Read what fits; gives the length in bytes of the part that is whole."""
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        whole = 0
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                if number == 0 and record != key:
                    return 0
                if number > 0:
                    image, content = record
                    self.finished[image] = _from_json(content)
            except (ValueError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
        return whole


def _as_json(roads: ImageRoads) -> list[Any]:
    place = roads.georeference
    return [
        roads.image_id,
        place and [place.crs, place.transform[:6], place.metres_per_pixel],
        roads.graph.nodes.tolist(),
        [
            [edge.nodes, edge.line.tolist(), edge.length_m, edge.speed_mps, edge.confidence]
            for edge in roads.graph.edges
        ],
    ]


def _from_json(content: list[Any]) -> ImageRoads:
    """The roads as they were, to the last bit.

    Raises:
        ValueError, TypeError: it is no such record.
    """
    image_id, place, nodes, edges = content
    georeference = None
    if place is not None:
        crs, transform, (x, y) = place
        georeference = Georeference(crs, Affine(*transform), (x, y))
    graph = RoadGraph(
        np.array(nodes, np.float64).reshape(-1, 2),
        tuple(
            RoadEdge((start, end), np.array(line), length_m, speed_mps, confidence)
            for (start, end), line, length_m, speed_mps, confidence in edges
        ),
    )
    return ImageRoads(image_id, graph, georeference)
