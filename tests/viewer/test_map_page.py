"""`satmap map OUT.html` writes a page with the imagery that was mapped."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from satmap import cli
from satmap.cli import checks
from satmap.exports.roads import export_roads
from satmap.prediction import map as mapping
from satmap.prediction.outputs import PredictionReport
from satmap.vectors.georeference import Georeference
from satmap.vectors.road_graph import ImageRoads, RoadEdge, RoadGraph
from synthetic_images import write_image

UTM = "EPSG:32633"
PLACE = Affine(0.5, 0, 500000, 0, -0.5, 5000000)


def fake_map(request: mapping.MapRequest) -> PredictionReport:
    """Write one road instead of running networks."""
    nodes = np.array([[10.0, 10.0], [150.0, 120.0]])
    edge = RoadEdge((0, 1), nodes, 89.0, 8.0, 0.7)
    place = Georeference(UTM, PLACE, (0.5, 0.5))
    roads = ImageRoads("map", RoadGraph(nodes, (edge,), place))
    export_roads(request.output, lambda: iter([roads]))
    return PredictionReport("roads", {"map": 1}, {}, ())


def test_the_page_has_roads_and_imagery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.full((3, 200, 200), 90, np.uint8)
    image = write_image(tmp_path / "town.tif", pixels=pixels, crs=UTM, transform=PLACE)
    monkeypatch.setattr(mapping, "map_sources", fake_map)
    monkeypatch.setattr(checks, "check_mapping", lambda options: None)
    page = tmp_path / "town.html"
    with pytest.raises(SystemExit) as ended:
        cli.main(["map", str(image), str(page), "--processes", "1"])
    assert ended.value.code == 0, capsys.readouterr().err
    assert (tmp_path / "town.gpkg").exists()
    text = page.read_text()
    assert "town.gpkg – satmap</title>" in text
    # A WebP file begins with RIFF.
    assert 'id="satmap-image">UklGR' in text
    assert f"{page}: open it in a browser" in capsys.readouterr().out
