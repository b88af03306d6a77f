"""Directory layouts of the challenges.

A layout is a module with two functions. One makes an :class:`satmap.data.inventory.Inventory` of
the images and labels in directories. The other reads the image id from a file name.
``spacenet_roads`` is a complete example. ``building_challenges`` recognises which of the building
layouts a directory has.

``RoadTaskSettings.find_images`` and ``find_building_images`` call the first function. The tasks'
``image_id_of`` and ``tuning``, ``report/overlay.py`` and ``evaluation/check.py`` call the second.
``docs/extending.md`` has the full list.
"""
