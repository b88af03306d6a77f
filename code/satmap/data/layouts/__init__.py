"""Directory layouts of the challenges, one module each.

A layout has two functions. One makes an :class:`satmap.data.inventory.Inventory` of the images in
directories, the other reads the image id from a file name. ``docs/extending.md`` lists the places
that call them.
"""
