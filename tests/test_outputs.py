"""File names for the output of a prediction."""

from pathlib import Path

import pytest

from made_tasks import road_task
from satmap.errors import SatmapError
from satmap.prediction.run import predict
from satmap.submissions.outputs import require_outputs


@pytest.mark.parametrize(
    "name",
    ["out.gpkg", "out.geojson", "out.GraphML", "out.TIF", "out.zip", "out.html", "out.shp",
     "out.csv.gz", "a.b.parquet"],
)  # fmt: skip
def test_names_of_other_formats_are_refused_before_the_work(tmp_path: Path, name: str) -> None:
    # Images and weights are missing too, but have not been looked for yet.
    with pytest.raises(SatmapError, match=r"the submission is a CSV file.* --export"):
        predict([tmp_path], tmp_path / name, tmp_path / "weights", "cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["out.csv", "OUT.CSV", "out.json", "out", "out.txt", "run.2", ".hidden"]
)
def test_other_names_are_allowed(tmp_path: Path, name: str) -> None:
    require_outputs(tmp_path / name)


def test_roads_are_no_coco_results(tmp_path: Path) -> None:
    task = road_task()
    task.check_outputs(tmp_path / "out.csv", [], [])
    with pytest.raises(SatmapError, match=r"roads is a CSV file\. Give a name that ends in \.csv"):
        task.check_outputs(tmp_path / "out.json", [], [])
