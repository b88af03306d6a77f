"""Lovasz losses against their definition, and ignored pixels."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from satmap.tasks.buildings.settings import BUILDING, CONTACT
from satmap.tasks.buildings.targets import BODY_BIT, CONTACT_BIT
from satmap.tasks.losses import IGNORED_BIT, one_process
from satmap.tasks.raster.losses import lovasz_loss, raster_loss
from satmap.tasks.raster.settings import RasterLosses


def jaccard_loss(truth: np.ndarray, wrong: np.ndarray) -> float:
    """Return one minus the Jaccard index of a mask in which some pixels are wrong."""
    union = (truth | wrong).sum()
    return float(1 - (truth & ~wrong).sum() / union) if union else 0.0


def extension(errors: np.ndarray, truth: np.ndarray) -> float:
    """Integrate the Jaccard loss of the pixels whose error exceeds a level over all levels."""
    levels = [0.0, *sorted(errors)]
    steps = itertools.pairwise(levels)
    return sum(float(high - low) * jaccard_loss(truth, errors > low) for low, high in steps)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_lovasz_extension_of_the_jaccard_loss(seed: int) -> None:
    random = np.random.default_rng(seed)
    errors, truth = random.random(30), random.random(30) < 0.3
    counted = np.ones(30, np.bool_) if seed < 2 else random.random(30) < 0.6
    errors[:4] = 0
    found = lovasz_loss(*(torch.from_numpy(x) for x in (errors, truth, counted)))
    errors, truth = errors[counted], truth[counted]
    expected = (extension(errors, truth) + extension(errors, ~truth)) / 2
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_binary_predictions_have_the_jaccard_loss() -> None:
    truth = torch.tensor([True] * 6 + [False] * 10)
    wrong = torch.tensor([1.0] * 2 + [0.0] * 4 + [1.0] * 3 + [0.0] * 7)
    everywhere = torch.ones_like(truth)
    # 4 of 9 pixels of buildings, 7 of 12 of background.
    expected = 1 - (4 / 9 + 7 / 12) / 2
    assert lovasz_loss(wrong, truth, everywhere).item() == pytest.approx(expected)
    # A class that is absent does not count.
    nothing = torch.zeros_like(truth)
    assert lovasz_loss(wrong, nothing, everywhere).item() == pytest.approx(5 / 16)
    assert lovasz_loss(wrong, truth, nothing).item() == 0


def losses(**building: float) -> RasterLosses:
    content = {"building": building, "contact": {"bce": 0.5}}
    return RasterLosses.model_validate(content)


def loss_of(
    logits: Tensor, target: Tensor, weights: RasterLosses
) -> tuple[Tensor, dict[str, Tensor]]:
    return raster_loss(logits, (CONTACT, BUILDING), target, weights, one_process)


@pytest.mark.parametrize(
    "weights",
    [{"bce": 1.0}, {"lovasz_softmax": 1.0}, {"lovasz_hinge": 1.0}, {"dice": 1.0, "focal": 1.0}],
)
def test_the_loss_learns_and_takes_no_ignored_pixel(weights: dict[str, float]) -> None:
    torch.manual_seed(0)
    target = (torch.rand(2, 16, 32) < 0.4).to(torch.uint8) * BODY_BIT
    target |= (torch.rand(2, 16, 32) < 0.4).to(torch.uint8) * CONTACT_BIT
    logits = torch.randn(2, 2, 16, 32, requires_grad=True)
    left = slice(16)
    expected, _ = loss_of(logits[..., left], target[..., left], losses(**weights))
    target[..., 16:] = IGNORED_BIT
    loss, parts = loss_of(logits, target, losses(**weights))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[..., 16:].any()
    # A step along the gradient lowers the loss of both maps.
    with torch.no_grad():
        _, better = loss_of(logits - logits.grad, target, losses(**weights))
    assert all(better[name] < part for name, part in parts.items())


def test_one_logit_is_the_softmax_of_two_classes() -> None:
    torch.manual_seed(1)
    two = torch.randn(2, 2, 8, 8)
    truth = torch.randint(0, 2, (2, 8, 8))
    expected = torch.nn.functional.cross_entropy(two, truth)
    difference = two[:, 1:] - two[:, :1]
    weights = RasterLosses.model_validate({"building": {"bce": 1}})
    target = truth.to(torch.uint8) * BODY_BIT
    found, _ = raster_loss(difference, (BUILDING,), target, weights, one_process)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
