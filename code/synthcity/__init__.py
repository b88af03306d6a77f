"""A made city: satellite images of streets and houses that never were, in the challenges' layouts.

The whole pipeline can be taught, run and scored on it without any download, and its truth is exact.
From plan to file: ``plan`` and ``streets`` say where the roads run, ``ground``, ``blocks``,
``roads`` and ``trees`` what stands where, ``paint`` and ``spectra`` what a sensor sees of it,
``survey``, ``labels`` and ``write`` how it lies on disk. Where buildings are the truth, ``estates``
says what stands where and ``solids`` in which shape, ``views`` and ``oblique`` what a sensor sees
of it from the ``view_angles`` of a satellite, ``tiles``, ``footprints`` and ``layouts`` how it lies
on disk.
"""

from synthcity.layouts import BuildingLayout, make_building_city
from synthcity.write import make_city

__all__ = ["BuildingLayout", "make_building_city", "make_city"]
