"""Directory layouts of the challenges, one module each.

A layout provides two functions: one maps directories to an inventory of chips
(:class:`satmap.data.inventory.Inventory`), the other maps a file name to the image id. To add a
layout, write a module here and call it from the task's ``find_images`` (``tasks/*/settings.py``),
or, for buildings, from :mod:`satmap.data.layouts.building_challenges`, which detects the layout.
All commands find images through ``find_images``. If the labels have a new format, read them in
``tasks/*/labels.py``.
"""
