"""satmap: satellite and aerial images into usable maps.

One engine turns overhead images into vector maps. A challenge is a *recipe* (data, in YAML), not a
program of its own. ``satmap --help`` lists the commands. From Python, see :mod:`satmap.api`; what
is listed in ``__all__`` is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from satmap.api import Predictor as Predictor
    from satmap.api import load as load
    from satmap.api import score as score
    from satmap.api import starter_weights as starter_weights
    from satmap.api import vectorize as vectorize

__version__ = "0.1.0"

__all__ = ["Predictor", "load", "score", "starter_weights", "vectorize"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from satmap import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
