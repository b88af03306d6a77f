"""A made city: satellite images of streets that never were, in SpaceNet 5's own layout.

The whole pipeline can be taught, run and scored on it without any download, and its truth is
exact. From plan to file: ``plan`` and ``streets`` say where the roads run, ``ground``, ``blocks``,
``roads`` and ``trees`` what stands where, ``paint`` and ``spectra`` what a sensor sees of it,
``survey``, ``labels`` and ``write`` how it lies on disk.
"""

from satmap.data.city.write import make_city

__all__ = ["make_city"]
