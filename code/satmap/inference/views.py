"""The views of test-time augmentation: the eight symmetries of the square."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """A symmetry of the square: mirrored left to right or not, then turned."""

    quarter_turns: int
    mirrored: bool

    def apply(self, x: Tensor) -> Tensor:
        """The view of ``x`` (..., h, w)."""
        x = x.flip(-1) if self.mirrored else x
        return torch.rot90(x, self.quarter_turns, (-2, -1))

    def undo(self, x: Tensor) -> Tensor:
        """Turn a view (..., h, w) back."""
        x = torch.rot90(x, -self.quarter_turns, (-2, -1))
        return x.flip(-1) if self.mirrored else x


#: All eight, the rotations first, so that a prefix of 1 or 4 is a group as well.
VIEWS = tuple(View(turns, mirrored) for mirrored in (False, True) for turns in range(4))
