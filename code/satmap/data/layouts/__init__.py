"""The directory layouts of the challenges, one file each.

A layout is a function from directories to an :class:`satmap.data.inventory.Inventory` of chips, and
a function from a file name to the image id. ``docs/extending.md`` lists the places that call them.
"""
