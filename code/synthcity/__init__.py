"""Synthetic city: satellite images with exact road and building labels, generated from a seed.

The package writes data sets in the layouts of SpaceNet 5 (roads), SpaceNet 4, SpaceNet 2 and the
Mapping Challenge (buildings). A pipeline can be trained, run and scored on them without any
download. It is independent of ``satmap``::

    from pathlib import Path
    from synthcity import BuildingLayout, make_building_city, make_city

    make_city(Path("city"), chips=24, test_chips=6, seed=1)
    make_building_city(Path("oblique"), BuildingLayout.SPACENET4, view_angles=3)

Every function raises ``CityError`` for invalid arguments and for output that cannot be written.
"""

from synthcity.files import CityError
from synthcity.layouts import BuildingLayout, make_building_city, make_city

__all__ = ["BuildingLayout", "CityError", "make_building_city", "make_city"]
