"""A running mean of a network's weights, which scores better than the weights themselves.

Source: the exponential moving average of https://arxiv.org/abs/1905.11946 and many before it.
"""

import copy

import torch

from satmap.models.unet import UNet


class WeightAverage:
    """The exponential moving average of a network over the steps of a training.

    Batch-norm statistics are averaged like weights; counters are copied. The first steps weigh
    more, for they are far from where the training ends: the decay is at most (1 + n) / (10 + n)
    after n steps.

    Attributes:
        network: the mean, a network of its own.
        steps: how many steps are in it.
    """

    def __init__(self, network: UNet, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: UNet) -> None:
        """Take the network's present state into the mean."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        present = network.state_dict()
        for name, mean in self.network.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(present[name], 1 - decay)
            else:
                mean.copy_(present[name])
