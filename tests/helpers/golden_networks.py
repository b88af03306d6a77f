"""Tensors of the networks whose outputs are in the shared fixtures."""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor


def tensor_by_name(name: str, shape: list[int]) -> Tensor:
    """Return the golden networks' tensor of a name, as defined in the fixture's README."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.PCG64(seed))
    if len(shape) > 1:
        scale = np.float32((1 / math.prod(shape[1:])) ** 0.5)
        return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32) * scale)
    if name.endswith("running_var"):
        values = generator.random(shape, dtype=np.float32) * np.float32(0.5) + np.float32(0.75)
    elif name.endswith("weight"):
        values = generator.random(shape, dtype=np.float32) * np.float32(0.2) + np.float32(0.9)
    else:
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
    return torch.from_numpy(values)
