"""File names for the output of a prediction."""

from pathlib import Path

import pytest

from satmap.errors import SatmapError
from satmap.recipes.task_settings import TaskSettings
from satmap.submissions.output_checks import require_formats
from satmap.tasks.buildings.settings import BuildingTaskSettings
from satmap.tasks.roads.settings import RoadTaskSettings


@pytest.mark.parametrize(
    "name",
    ["out.gpkg", "out.geojson", "out.GraphML", "out.TIF", "out.zip", "out.html", "out.shp",
     "out.csv.gz", "a.b.parquet", "out.json", "out", "run.2", ".hidden"],
)  # fmt: skip
def test_names_of_other_formats_are_refused(name: str) -> None:
    with pytest.raises(SatmapError, match=r"none of \.csv\. For .*\.graphml, .* add --export\."):
        require_formats(RoadTaskSettings(), Path(name))


@pytest.mark.parametrize(
    ("task", "name", "exports"),
    [
        (RoadTaskSettings(), "OUT.CSV", ["a.gpkg", "a.GraphML", "a.shp.zip", "a.osm.pbf"]),
        (BuildingTaskSettings(), "out.json", ["a.geojson"]),
        (TaskSettings(name="trees"), "out.csv", []),
    ],
)
def test_formats_of_the_tasks(task: TaskSettings, name: str, exports: list[str]) -> None:
    require_formats(task, Path(name), [Path(export) for export in exports])


def test_exports_in_formats_of_other_tasks_are_refused() -> None:
    with pytest.raises(SatmapError, match=r"'\.graphml' is none of \.geojson, \.gpkg,"):
        require_formats(BuildingTaskSettings(), Path("out.csv"), [Path("a.graphml")])
    with pytest.raises(SatmapError, match="trees have no export formats"):
        require_formats(TaskSettings(name="trees"), Path("out.csv"), [Path("a.gpkg")])
