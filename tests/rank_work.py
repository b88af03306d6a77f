"""What the ranks of a test do; it loads no more than they need."""

from satmap.errors import SatmapError
from satmap.inference.ranks import Ranks


def stumble(ranks: Ranks) -> None:
    """The second has a fault that is the user's to mend; the first waits for it."""
    if ranks.from_first(lambda: ranks.rank) == 0 and ranks.rank == 1:
        raise SatmapError("rank 1 cannot go on. Mend it.")
    ranks.wait()
