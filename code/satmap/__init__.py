"""satmap: satellite and aerial images into usable maps.

One engine turns overhead images into vector maps; a challenge is a *recipe* (data, in YAML), not
a program of its own. ``satmap --help`` lists the commands.
"""

__version__ = "0.1.0"
