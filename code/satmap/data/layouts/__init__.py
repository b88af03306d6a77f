"""The directory layouts of the challenges, one file each.

A layout is a function from directories to an :class:`satmap.data.inventory.Inventory` of chips, and
a function from a file name to the image id. To add one: write a file here and call it from the
task's ``find_images`` (``tasks/*/settings.py``) or, for buildings, from
:mod:`satmap.data.layouts.building_challenges`, which tells the layouts apart. All commands find
images through ``find_images``. If labels come in a new form, read them in ``tasks/*/labels.py``.
"""
