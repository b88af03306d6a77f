"""Every stage of the cascade against a plain implementation, with an encoder of a few numbers."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from satmap.errors import SatmapError
from satmap.networks.cascade import (
    CascadeNetwork,
    mask_ious,
    truth_in_boxes,
)
from satmap.networks.cascade_settings import CascadeSettings
from satmap.networks.encoders import ENCODERS, Encoder, build_encoder
from satmap.networks.layers import without_values

Values = NDArray[np.float64]
Box = tuple[float, float, float, float]

SIDE = 64

#: The reference and ours, tiny.
REFERENCE = {
    "anchors": ((12, 20),),
    "proposals": {"train": (40, 12), "test": (40, 12), "least_px": 2},
    "sampling": {"boxes": 10},
    "warp_px": 14, "feature_px": 7, "mask_px": 7, "mask_width": 8, "box_width": 8,
}  # fmt: skip
OURS = REFERENCE | {
    "pyramid": 4, "anchors": ((8,), (16,), (24,), (40,)), "warp_px": 7, "mask": "convolutional",
    "mask_px": 14, "mask_layers": 1, "refine": True, "quality": True,
}  # fmt: skip


class Averages(nn.Module):
    """Encoder whose features are means of the image's squares, mixed by channel.

    Padding with zeros changes no other feature.
    """

    name, in_channels = "averages", 3
    channels, strides = (4, 4, 4, 4, 4), (2, 4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *self.channels)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(widths[k], widths[k + 1], 1, bias=False))
            for k in range(5)
        )

    def forward(self, x: Tensor, stages: int | None = None) -> list[Tensor]:
        features = []
        for stage in self.stages[:stages]:
            x = stage(x)
            features.append(x)
        return features


class Given(nn.Module):
    """Proposal network that returns given boxes, and no loss."""

    def __init__(self, boxes: Sequence[Sequence[Box]]) -> None:
        super().__init__()
        self.boxes = [torch.tensor(each, dtype=torch.float32).reshape(-1, 4) for each in boxes]

    def forward(
        self, images: Any, features: Any, targets: Any = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        zero = torch.zeros(())
        return self.boxes, {"loss_objectness": zero, "loss_rpn_box_reg": zero}


def cascade(
    content: dict[str, Any], boxes: Sequence[Sequence[Box]] | None = None, **changes: Any
) -> CascadeNetwork:
    """Return a network in training mode, with given proposals if there are any."""
    torch.manual_seed(3)
    network = CascadeNetwork(
        cast(Encoder, Averages()), CascadeSettings.model_validate(content | changes)
    )
    with torch.no_grad():
        for stage in network.encoder.stages:
            cast(nn.Conv2d, cast(nn.Sequential, stage)[1]).weight.mul_(2)
    if boxes is not None:
        network.proposals = Given(boxes)  # type: ignore[assignment]
    return network


def noise(count: int = 1, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def fix(layer: nn.Module, *bias: float) -> None:
    """Let a layer return the same values for every input."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(bias) if bias else torch.zeros_like(layer.bias))


def mask_layer(network: CascadeNetwork) -> nn.Linear:
    """Return the last layer of fully connected masks."""
    layer = cast(nn.Sequential, network.mask)[3]
    assert isinstance(layer, nn.Linear)
    return layer


class Seen:
    """Inputs and outputs of a network's parts, by name and call."""

    def __init__(self, network: CascadeNetwork) -> None:
        self.inputs: dict[str, list[Any]] = {}
        self.outputs: dict[str, list[Any]] = {}
        parts = ("align", "mask", "box_path", "mask_path", "building", "mask_building", "move",
                 "refine", "quality")  # fmt: skip
        for name in parts:
            part = getattr(network, name)
            self.inputs[name], self.outputs[name] = [], []
            if part is not None:
                part.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.inputs[name].append(inputs)
            self.outputs[name].append(output)

        return hook

    def boxes(self, call: int) -> list[Values]:
        """Return the boxes of a round by image."""
        return [each.double().numpy() for each in self.inputs["align"][call][1]]


# Masks


def covered(instances: NDArray[Any], box: Values, label: int, side: int, points: int = 2) -> Values:
    """Return the share of a building in every cell, from ``points`` squared samples of each."""
    height, width = instances.shape
    left, top, right, bottom = box
    share = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            for y in range(points):
                for x in range(points):
                    at_x = left + (column + (x + 0.5) / points) * (right - left) / side
                    at_y = top + (row + (y + 0.5) / points) * (bottom - top) / side
                    i, j = math.floor(at_y), math.floor(at_x)
                    if 0 <= i < height and 0 <= j < width and instances[i, j] == label:
                        share[row, column] += 1 / points**2
    return share


def town(height: int = 40, width: int = 48) -> NDArray[np.int32]:
    """Two buildings that touch, one with a hole, one at the border, and ignored pixels."""
    instances = np.zeros((height, width), np.int32)
    instances[8:24, 6:20], instances[8:20, 20:30] = 1, 2
    instances[12:16, 10:14] = 0
    instances[28:40, 36:48] = 3
    instances[28:32, 36:40] = -1
    return instances


# Eighths are exact in binary, so that no sample is on the wrong side of a pixel's edge.
PLACES = st.integers(-80, 360).map(lambda value: value / 8)
SIDES = st.integers(8, 250).map(lambda value: value / 8)


@settings(max_examples=40)
@given(
    boxes=st.lists(st.tuples(PLACES, PLACES, SIDES, SIDES, st.integers(1, 3)), max_size=4),
    side=st.sampled_from([1, 4, 8]),
)
def test_truth_in_boxes_against_a_slow_loop(
    boxes: list[tuple[float, float, float, float, int]], side: int
) -> None:
    instances = town()
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in boxes]).reshape(-1, 4)
    labels = [label for *_, label in boxes]
    found = truth_in_boxes(
        torch.from_numpy(instances),
        torch.tensor(corners, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
        side,
    )
    assert found.shape == (len(boxes), side, side)
    for one, box, label in zip(found.numpy(), corners, labels, strict=True):
        assert np.array_equal(one, covered(instances, box, label, side))


def test_truth_in_boxes_by_hand() -> None:
    instances = torch.from_numpy(town())
    # The box of the first building in cells of 4 x 4 pixels, a column wider than the building.
    boxes = torch.tensor([[6.0, 8, 22, 24], [6, 8, 22, 24], [40, 32, 56, 48]])
    first, second, third = truth_in_boxes(instances, boxes, torch.tensor([1, 2, 3]), 4)
    full, half, none = 1.0, 0.5, 0.0
    # The hole is 10 to 14 by 12 to 16. The building ends at 20, the last column is 18 to 22.
    assert first.tolist() == [
        [full, full, full, half],
        [full, none, full, half],
        [full, full, full, half],
        [full, full, full, half],
    ]
    # The neighbour begins there and ends at row 20.
    assert second.tolist() == [[none, none, none, half]] * 3 + [[none] * 4]
    # Outside the image is ground.
    assert third.tolist() == [[full, full, none, none]] * 2 + [[none] * 4] * 2


def test_the_overlap_of_masks_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [10, 10, 14, 18], [0, 0, 8, 8], [0, 0, 8, 8]])
    drawn = torch.zeros(4, 4, 4, dtype=torch.bool)
    drawn[0, :, :2], drawn[1], drawn[2, 0, 0] = True, True, True
    share = torch.zeros(4, 4, 4)
    share[0, :2], share[1, :, 0], share[2, 0, 0] = 1, 0.5, 0.25
    areas = torch.tensor([40.0, 4, 1, 0])
    # Cells of 4, 2, 4 and 4 pixels. 16 of 32 + 40; 4 of 32; 1 of 4; an empty mask of nothing.
    expected = [16 / 56, 4 / 32, 1 / 4, 0]
    assert mask_ious(drawn, share, boxes, areas).tolist() == pytest.approx(expected)
    assert mask_ious(drawn[:0], share[:0], boxes[:0], areas[:0]).shape == (0,)


# Gates


def pooled(features: Tensor) -> Tensor:
    """Return the maxima of the squares of 2 x 2, flat."""
    n, c, h, w = features.shape
    return features.reshape(n, c, h // 2, 2, w // 2, 2).amax((3, 5)).flatten(1)


def bilinear(mask: Values, side: int) -> Values:
    """Resample a square mask at the centres of a grid over the same square, with its edge kept."""
    size = len(mask)
    drawn = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            at = [max((place + 0.5) * size / side - 0.5, 0) for place in (row, column)]
            low = [math.floor(value) for value in at]
            for i in (0, 1):
                for j in (0, 1):
                    weight = abs(1 - i - (at[0] - low[0])) * abs(1 - j - (at[1] - low[1]))
                    value = mask[min(low[0] + i, size - 1), min(low[1] + j, size - 1)]
                    drawn[row, column] += weight * value
    return drawn


BOXES = [(6.0, 8.0, 30.0, 40.0), (20.5, 10.0, 60.0, 37.0), (0.0, 0.0, 64.0, 64.0)]


def test_masks_multiply_the_features_of_their_class() -> None:
    network = cascade(REFERENCE, [BOXES], warp_px=28, feature_px=14, mask_px=21, rounds=1).eval()
    seen = Seen(network)
    with torch.no_grad():
        mask_layer(network).weight.mul_(200)
        network(noise())
    ((warped,), (masks,)) = seen.outputs["align"], seen.outputs["mask"]
    assert warped.shape == (3, 4, 28, 28)
    assert masks.shape == (3, 21, 21)
    features = warped.reshape(3, 4, 14, 2, 14, 2).amax((3, 5))
    assert torch.equal(seen.inputs["mask"][0][0], features)
    assert torch.equal(seen.inputs["box_path"][0][0], pooled(features))
    gates = np.stack([bilinear(mask, 14) for mask in masks.double().sigmoid().numpy()])
    assert gates.min() < 0.2 and gates.max() > 0.8
    expected = pooled(features * torch.from_numpy(gates)[:, None].float())
    assert torch.allclose(seen.inputs["mask_path"][0][0], expected, atol=1e-6)
    # Both paths together give the classes and the moves.
    both = torch.cat([seen.outputs["box_path"][0], seen.outputs["mask_path"][0]], dim=1)
    assert both.shape == (3, 16)
    for name in ("building", "mask_building", "move"):
        assert torch.equal(seen.inputs[name][0][0], both)


def test_closed_and_open_gates() -> None:
    for bias, share in ((-20.0, 0.0), (20.0, 1.0)):
        network = cascade(REFERENCE, [BOXES]).eval()
        fix(mask_layer(network), *[bias] * 49)
        seen = Seen(network)
        network(noise())
        assert len(seen.inputs["box_path"]) == 2
        for (plain,), (gated,) in zip(
            seen.inputs["box_path"], seen.inputs["mask_path"], strict=True
        ):
            assert plain.abs().max() > 0.1
            assert torch.allclose(gated, plain * share, atol=1e-7)
    # Without gates both see the same, whatever the mask.
    network = cascade(REFERENCE, [BOXES], gated=False).eval()
    fix(mask_layer(network), *[-20.0] * 49)
    seen = Seen(network)
    network(noise())
    assert torch.equal(seen.inputs["mask_path"][0][0], seen.inputs["box_path"][0][0])


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("content", [REFERENCE, OURS], ids=["reference", "ours"])
def test_losses_of_classes_reach_the_mask_head_through_the_gate(
    content: dict[str, Any], gated: bool
) -> None:
    network = cascade(content, [BOXES], gated=gated)
    truth, instances = buildings([BOXES[0]])
    parameters = list(network.mask.parameters())
    for part in ("building", "mask_building", "box"):
        # Layers that start near zero would hide their gradients.
        for layer in (network.building, network.mask_building, network.move):
            nn.init.normal_(layer.weight, std=0.5)
        losses = network(noise(), [truth], [instances])
        found = torch.autograd.grad(losses[part], parameters, allow_unused=True)
        reached = [each is not None and bool(each.any()) for each in found]
        assert any(reached) == gated
    losses = network(noise(), [truth], [instances])
    found = torch.autograd.grad(losses["mask"], parameters)
    assert all(each.any() for each in found)


# Rounds


def buildings(boxes: Sequence[Box], side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Return rectangular buildings: their boxes and the instance map."""
    instances = torch.zeros((side, side), dtype=torch.int32)
    for number, box in enumerate(boxes, 1):
        left, top, right, bottom = map(int, box)
        instances[top:bottom, left:right] = number
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), instances


def moved(box: Values, codes: Values) -> Values:
    """Move a box by dx, dy tenths of its sides and dw, dh fifths of a logarithm."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    x = (left + right) / 2 + codes[0] * 0.1 * wide
    y = (top + bottom) / 2 + codes[1] * 0.1 * high
    wide, high = wide * math.exp(codes[2] * 0.2), high * math.exp(codes[3] * 0.2)
    return np.array([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2])


def clipped(box: Values, height: int, width: int) -> Values:
    """Clip a box to an image."""
    return np.clip(box, 0, [width, height, width, height])


def test_the_rounds_share_their_weights() -> None:
    for content in (REFERENCE, OURS):
        one, two, four = (cascade(content, rounds=rounds).state_dict() for rounds in (1, 2, 4))
        assert {name: value.shape for name, value in one.items()} == {
            name: value.shape for name, value in two.items()
        }
        assert one.keys() == four.keys()


def test_the_second_round_has_the_moved_boxes() -> None:
    network = cascade(REFERENCE, [[(20.0, 30.0, 40.0, 50.0), (50.0, 2.0, 62.0, 12.0)]]).eval()
    # A tenth to the right, a fifth up; e^.4 as wide, twice as high.
    fix(network.move, 1, -2, 2, 5 * math.log(2))
    fix(network.mask_building, 0)
    seen = Seen(network)
    (found,) = network(noise())
    wide = 20 * math.exp(0.4)
    expected: list[list[float]] = [
        [32 - wide / 2, 16, 32 + wide / 2, 56],
        # The centre moves from (56, 7) to (57.2, 5); 12 e^.4 = 17.9 wide; 20 high.
        [57.2 - 6 * math.exp(0.4), 0, 64, 15],
    ]
    assert np.allclose(seen.boxes(1)[0], expected, atol=1e-4)
    # Detections are those of both rounds.
    first = [[20.0, 30, 40, 50], [50.0, 2, 62, 12]]
    assert np.allclose(found.boxes.numpy(), [*first, *expected], atol=1e-4)
    assert found.scores.tolist() == [0.5] * 4
    single = cascade(REFERENCE, [BOXES], rounds=1).eval()
    (found,) = single(noise())
    assert np.allclose(found.boxes.numpy(), BOXES)
    three = cascade(REFERENCE, [[(20.0, 30.0, 40.0, 50.0)]], rounds=3).eval()
    fix(three.move, 1, 0, 0, 0)
    (found,) = three(noise())
    assert np.allclose(found.boxes[:, 0], [20, 22, 24], atol=1e-4)


@pytest.mark.parametrize(
    "codes",
    [(0, 0, 100, 100), (0, 0, -100, -100), (1000, 0, 0, 0), (-1000, 0, 0, 0), (0, 1000, 0, 0),
     (0, -1000, 0, 0), (5, 5, 0, 0)],
)  # fmt: skip
def test_moved_boxes_stay_in_the_image_and_have_an_area(codes: tuple[float, ...]) -> None:
    boxes = [(0.0, 0.0, 10.0, 10.0), (30.0, 20.0, 50.0, 40.0), (54.0, 54.0, 64.0, 64.0)]
    network = cascade(REFERENCE, [boxes]).eval()
    fix(network.move, *codes)
    seen = Seen(network)
    (found,) = network(noise())
    (second,) = seen.boxes(1)
    assert second.min() >= 0 and second.max() <= SIDE
    assert (second[:, 2:] - second[:, :2]).min() >= 1 - 1e-5
    assert all(value.isfinite().all() for value in (found.boxes, found.scores, found.masks))


def test_the_second_round_teaches_no_boxes_to_the_first() -> None:
    for content in (REFERENCE, OURS):
        network = cascade(content, [BOXES])
        truth, instances = buildings([BOXES[0], (40, 44, 60, 60)])
        losses = network(noise(), [truth], [instances])
        others = sum(value for name, value in losses.items() if name != "box")
        gradients = torch.autograd.grad(others, list(network.move.parameters()), allow_unused=True)
        assert all(each is None or not each.any() for each in gradients)


def test_detections_have_their_scores_and_masks() -> None:
    plain = cascade(REFERENCE, [BOXES], least_score=0.05).eval()
    fix(plain.mask_building, math.log(0.06 / 0.94))
    fix(plain.building, -20)
    fix(mask_layer(plain), *[math.log(3)] * 49)
    (found,) = plain(noise())
    # The class of the mask counts alone.
    assert found.scores.tolist() == pytest.approx([0.06] * 6)
    assert found.masks.shape == (6, 7, 7)
    assert torch.allclose(found.masks, torch.full_like(found.masks, 0.75))
    assert not found.masks.requires_grad
    fix(plain.mask_building, math.log(0.04 / 0.96))
    (found,) = plain(noise())
    assert len(found.scores) == len(found.boxes) == len(found.masks) == 0

    ours = cascade(OURS, [BOXES]).eval()
    assert ours.quality is not None
    # That of the box counts, times the quality.
    fix(ours.building, math.log(0.6 / 0.4))
    fix(ours.mask_building, -20)
    fix(ours.quality, math.log(0.5 / 0.5))
    seen = Seen(ours)
    (found,) = ours(noise())
    assert found.scores.tolist() == pytest.approx([0.3] * 6)
    assert found.masks.shape == (6, 28, 28)
    # An untrained refinement only enlarges masks.
    logits = torch.cat(seen.outputs["mask"]).double().numpy()
    expected = torch.from_numpy(np.stack([bilinear(each, 28) for each in logits])).sigmoid()
    assert torch.allclose(found.masks.double(), expected, atol=1e-5)
    assert found.masks.std() > 0


@pytest.mark.parametrize("content", [REFERENCE, OURS], ids=["reference", "ours"])
def test_boxes_with_low_scores_are_left_out(content: dict[str, Any]) -> None:
    def network_of(least: float) -> CascadeNetwork:
        network = cascade(content, [BOXES, BOXES[:2], []], least_score=least).eval()
        torch.manual_seed(5)
        for layer in (network.building, network.mask_building, network.move):
            nn.init.normal_(layer.weight, std=2)
        return network

    every = network_of(0)
    seen = Seen(every)
    found = every(noise(3))
    counts = [3, 2, 0]
    first = torch.cat([each.scores[:count] for each, count in zip(found, counts, strict=True)])
    # Between the second and the third best score.
    least = float(first.sort(descending=True).values[1:3].mean())
    codes = torch.split(seen.outputs["move"][0].double(), counts)
    strict = network_of(least)
    again = Seen(strict)
    for image, (whole, part) in enumerate(zip(found, strict(noise(3)), strict=True)):
        count = counts[image]
        good = whole.scores[:count] >= least
        # Only the good boxes of the first round are moved.
        after = [
            clipped(moved(box, code), SIDE, SIDE)
            for box, code in zip(
                whole.boxes[:count][good].double().numpy(), codes[image][good].numpy(), strict=True
            )
        ]
        expected = np.array(after).reshape(-1, 4)
        assert np.allclose(again.boxes(1)[image], expected, atol=1e-3)
        assert torch.equal(part.boxes[: len(after)], whole.boxes[:count][good])
        second = whole.scores[count:][good]
        both = torch.cat([whole.scores[:count][good], second[second >= least]])
        assert torch.allclose(part.scores, both)
    assert sum(len(boxes) for boxes in again.boxes(1)) == 2


# Losses


def entropy(logits: Values, target: Values) -> float:
    """Return the mean cross entropy; 0 without values."""
    terms = np.logaddexp(0, logits) - logits * target
    return float(terms.mean()) if terms.size else 0.0


def overlap(one: Values, other: Values) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(np.prod(np.clip(sides, 0, None)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (one, other)]
    return common / (sum(areas) - common)


def plain_losses(
    seen: Seen, call: int, truth: list[Values], instances: list[Values], refined: bool
) -> dict[str, float]:
    """Compute the parts of the loss of a round from the network's outputs, box by box."""
    outputs = {
        name: calls[call].detach().double().numpy()
        for name, calls in seen.outputs.items()
        if len(calls) > call
    }
    positive, coarse, fine, qualities, good, wrong = [], [], [], [], [], 0.0
    number = chosen = 0
    for boxes, true, labels in zip(seen.boxes(call), truth, instances, strict=True):
        for box in boxes:
            overlaps = [overlap(box, each) for each in true]
            best = max(overlaps, default=0.0)
            positive.append(float(best >= 0.5))
            good.append(0.0)
            if best >= 0.5:
                index = overlaps.index(best)
                wide, high = box[2:] - box[:2]
                goal = true[index]
                codes = [
                    ((goal[0] + goal[2]) - (box[0] + box[2])) / 2 / wide / 0.1,
                    ((goal[1] + goal[3]) - (box[1] + box[3])) / 2 / high / 0.1,
                    math.log((goal[2] - goal[0]) / wide) / 0.2,
                    math.log((goal[3] - goal[1]) / high) / 0.2,
                ]
                for value, code in zip(outputs["move"][number], codes, strict=True):
                    size = abs(value - code)
                    wrong += size**2 / 2 if size < 1 else size - 0.5
                side = outputs["mask"].shape[1]
                share = covered(labels, box, index + 1, side, 4 if refined else 2)
                coarse.append((outputs["mask"][number], share >= 0.4))
                logits = outputs["mask"][number]
                if refined:
                    logits = outputs["refine"][chosen]
                    share = covered(labels, box, index + 1, 2 * side)
                    fine.append((logits, share >= 0.4))
                drawn = logits >= math.log(0.4 / 0.6)
                cell = wide * high / drawn.size
                common = (share * drawn).sum() * cell
                iou = common / (drawn.sum() * cell + (labels == index + 1).sum() - common)
                good[-1] = float(iou >= 0.5)
                if "quality" in outputs:
                    qualities.append((outputs["quality"][number, 0], iou))
                chosen += 1
            number += 1

    def over(pairs: list[tuple[Any, Any]]) -> float:
        return entropy(*(np.array([pair[k] for pair in pairs], np.float64) for k in (0, 1)))

    assert not chosen or sum(good) > 0
    losses = {
        "mask": over(coarse),
        "building": entropy(outputs["building"][:, 0], np.array(positive)),
        "mask_building": entropy(outputs["mask_building"][:, 0], np.array(good)),
        "box": wrong / number,
    }
    if refined:
        losses |= {"refined": over(fine), "quality": over(qualities)}
    return losses


@pytest.mark.parametrize("empty", [False, True], ids=["buildings", "no buildings"])
@pytest.mark.parametrize("content", [REFERENCE, OURS], ids=["reference", "ours"])
def test_losses_against_a_plain_computation(
    content: dict[str, Any], empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    corners: list[Box] = [(6, 8, 26, 32), (30, 10, 60, 26), (26, 40, 42, 64)]
    true, instances = buildings([] if empty else corners)
    instances[36:40, 10:20] = -1
    none = buildings([])
    first = [*corners, (8, 9, 28, 30), (30.5, 12, 52, 27), (20, 40, 50, 64), (2, 2, 12, 12),
             (28, 8, 44, 40), (0, 30, 64, 64)]  # fmt: skip
    proposals: list[list[Box]] = [first, [(3, 4, 30, 30), (40.5, 20, 64, 64)]]
    # The sampling is tested by itself.
    monkeypatch.setattr("satmap.networks.cascade.sample_boxes", lambda boxes, *others: boxes)
    network = cascade(content, proposals)
    with torch.no_grad():
        for layer in (network.building, network.mask_building):
            nn.init.normal_(layer.weight, std=1)
        nn.init.normal_(network.move.weight, std=2)
        for part in filter(None, (network.mask, network.refine)):
            last = [layer for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
            nn.init.normal_(last[-1].weight, std=0.3)
            assert last[-1].bias is not None
            last[-1].bias.fill_(0.4)
    seen = Seen(network)
    losses = network(noise(2), [true, none[0]], [instances, none[1]])

    # The second round has the truth and the moved boxes.
    start = 0
    truth, maps = [true.double().numpy(), np.empty((0, 4))], [instances.numpy(), none[1].numpy()]
    codes = seen.outputs["move"][0].detach().double().numpy()
    for image, boxes in enumerate(seen.boxes(0)):
        assert np.allclose(boxes, proposals[image])
        after = [
            clipped(moved(box, code), SIDE, SIDE)
            for box, code in zip(boxes, codes[start : start + len(boxes)], strict=True)
        ]
        start += len(boxes)
        assert np.allclose(seen.boxes(1)[image], [*truth[image], *after], atol=1e-4)
    assert len(seen.outputs["mask"]) == 2

    refined = content is OURS
    rounds = [plain_losses(seen, call, truth, maps, refined) for call in (0, 1)]
    expected = {name: rounds[0][name] + rounds[1][name] for name in rounds[0]}
    assert losses.keys() == {"proposal", "proposal_box", *expected}
    assert {name: losses[name].item() for name in expected} == pytest.approx(expected, rel=1e-4)
    if empty:
        none_of = {"mask", "box"} | ({"refined", "quality"} if refined else set())
        assert all(expected[name] == 0 for name in none_of)
    else:
        assert all(value > 0 for value in expected.values())


@pytest.mark.parametrize("case", ["buildings", "none", "no proposals", "neither", "ignored"])
@pytest.mark.parametrize("content", [REFERENCE, OURS], ids=["reference", "ours"])
def test_every_parameter_has_a_gradient(content: dict[str, Any], case: str) -> None:
    changes: dict[str, Any] = {}
    if case in ("no proposals", "neither"):
        changes["proposals"] = {**content["proposals"], "least_px": 1000}
    network = cascade(content, **changes)
    corners: list[Box] = [(6, 8, 26, 32), (30, 10, 60, 26)] if case != "none" else []
    true, instances = buildings([] if case in ("none", "neither", "ignored") else corners)
    if case == "ignored":
        instances[:] = -1
    losses = network(noise(2), [true] * 2, [instances] * 2)
    assert all(value.isfinite() and value.ndim == 0 for value in losses.values())
    sum(losses.values()).backward()
    for name, value in network.named_parameters():
        assert (value.grad is not None) == value.requires_grad, name
        assert value.grad is None or value.grad.isfinite().all(), name
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    # The stage of stride 32 is only used by the pyramid.
    assert frozen == (set() if content is OURS else {"encoder.stages.4.1.weight"})


@pytest.mark.usefixtures("tiny_encoders")
@pytest.mark.parametrize("name", ["tiny", "tiny_convnext"])
@pytest.mark.parametrize("content", [REFERENCE, OURS], ids=["reference", "ours"])
def test_real_encoders_learn_whether_frozen_or_not(content: dict[str, Any], name: str) -> None:
    torch.manual_seed(0)
    network = CascadeNetwork(build_encoder(name, 4), CascadeSettings.model_validate(content))
    true, instances = buildings([(6, 8, 26, 32), (30, 10, 60, 26)])
    images = torch.randn(2, 4, SIDE, SIDE)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    for frozen in (1, len(network.encoder.stages), 0):
        network.encoder.freeze(frozen)
        network.zero_grad()
        # With bfloat16, as on processors that have it.
        with torch.autocast("cpu", torch.bfloat16):
            losses = network(images, [true] * 2, [instances] * 2)
        assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
        sum(losses.values()).backward()
        learning = {name for name, value in network.named_parameters() if value.grad is not None}
        stopped = tuple(f"encoder.stages.{stage}." for stage in range(frozen))
        assert learning == {each for each in trained if not each.startswith(stopped)}
    with torch.autocast("cpu", torch.bfloat16):
        found = network.eval()(images)
    assert all(each.scores.dtype == each.masks.dtype == torch.float32 for each in found)


# Features and sizes


def test_features_of_a_box_are_those_of_its_place() -> None:
    network = cascade(REFERENCE, [[(24.0, 20.0, 44.0, 36.0)]], warp_px=14, feature_px=14).eval()
    seen = Seen(network)
    # The mean of the columns of a cell, in the first channel, and that of the rows in the second.
    with torch.no_grad():
        for stage in network.encoder.stages:
            weight = cast(nn.Conv2d, cast(nn.Sequential, stage)[1]).weight
            weight.copy_(torch.eye(*weight.shape[:2])[:, :, None, None])
    centres = torch.arange(SIDE) + 0.5
    image = torch.stack([centres.expand(SIDE, SIDE), centres.expand(SIDE, SIDE).T])
    network(torch.cat([image, torch.zeros(1, SIDE, SIDE)])[None])
    found = seen.outputs["align"][0][0]
    steps = (np.arange(14) + 0.5) / 14
    assert np.allclose(found[0].numpy(), np.tile(24 + 20 * steps, (14, 1)), atol=1e-3)
    assert np.allclose(found[1].numpy(), np.tile(20 + 16 * steps, (14, 1)).T, atol=1e-3)


def test_small_boxes_are_not_enlarged() -> None:
    # The columns of a box of half a cell, as above.
    network = cascade(REFERENCE, [[(24.0, 20.0, 32.0, 40.0)]], warp_px=14, feature_px=14).eval()
    seen = Seen(network)
    with torch.no_grad():
        for stage in network.encoder.stages:
            weight = cast(nn.Conv2d, cast(nn.Sequential, stage)[1]).weight
            weight.copy_(torch.eye(*weight.shape[:2])[:, :, None, None])
    network((torch.arange(SIDE) + 0.5).expand(1, 3, SIDE, SIDE))
    row = seen.outputs["align"][0][0, 0, 0]
    assert (row[-1] - row[0]).item() == pytest.approx(8 * 13 / 14, abs=1e-3)


@pytest.mark.parametrize("size", [(40, 40), (40, 64), (64, 40), (33, 100), (20, 90)])
@pytest.mark.parametrize("content", [REFERENCE, OURS], ids=["reference", "ours"])
def test_features_do_not_depend_on_the_padding(
    content: dict[str, Any], size: tuple[int, int]
) -> None:
    boxes: list[list[Box]] = [[(2.0, 3.0, 14.0, 19.0), (10.0, 4.0, 38.0, 18.0)]]
    image = noise(1, *size)
    padded = torch.zeros(1, 3, *(-(-side // 32) * 32 for side in size))
    padded[:, :, : size[0], : size[1]] = image
    features = []
    for each in (image, padded):
        network = cascade(content, boxes).eval()
        seen = Seen(network)
        network(each)
        features.append(seen.outputs["align"][0])
    assert torch.allclose(features[0], features[1], atol=1e-5)


def test_an_image_does_not_change_later_ones() -> None:
    network, fresh = (cascade(OURS, [BOXES[:1]]).eval() for _ in range(2))
    network(noise(1, 40, 40))
    (found,), (expected,) = network(noise()), fresh(noise())
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.masks, expected.masks)


@pytest.mark.parametrize("content", [REFERENCE, OURS], ids=["reference", "ours"])
def test_images_of_a_batch_are_found_as_alone(content: dict[str, Any]) -> None:
    # Anchors of padded cells reach at most 10 px into the image and are dropped. All others stay.
    anchors = ((12, 20),) if content is REFERENCE else ((8,), (16,), (20,), (20,))
    proposals = {"test": (3000, 1000), "least_px": 11}
    network = cascade(content, anchors=anchors, ratios=(1,), proposals=proposals).eval()
    # Convolutions of the pyramid turn zeros into their bias.
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for layer in (network.mask_building, network.move):
        nn.init.normal_(layer.weight, std=0.3)
    sizes = [(96, 64), (64, 64), (64, 96)]
    images = [noise(1, *size) for size in sizes]
    batch = torch.zeros(3, 3, 96, 96)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[2], : image.shape[3]] = image[0]

    seen = Seen(network)
    network(batch, sizes=sizes)
    together = seen.inputs["align"][0][1]
    for image in images:
        network(image)
    for boxes, (_, alone) in zip(together, seen.inputs["align"][2::2], strict=True):
        assert 8 < len(boxes) == len(alone[0])
        # Equal scores have no order. Convolutions of the pyramid spill over the border.
        distances = (boxes[:, None] - alone[0]).abs().amax(dim=2)
        most = 1e-4 if content is REFERENCE else 0.01
        assert max(distances.amin(dim=0).max(), distances.amin(dim=1).max()) < most

    # Features of boxes at the border have a share of the padding, so these are inside.
    inner = [[(4.0 + k, 3, 24 + k, 30 + k / 2) for k in range(0, 4 * n, 4)] for n in (6, 4, 2)]
    network.proposals = Given(inner)  # type: ignore[assignment]
    found = network(batch, sizes=sizes)
    for image, boxes, of_batch in zip(images, inner, found, strict=True):
        network.proposals = Given([boxes])  # type: ignore[assignment]
        (of_image,) = network(image)
        assert len(of_image.boxes) == 2 * len(boxes)
        assert torch.allclose(of_batch.boxes, of_image.boxes, atol=1e-4)
        assert torch.allclose(of_batch.scores, of_image.scores, atol=1e-5)
        assert torch.allclose(of_batch.masks, of_image.masks, atol=1e-5)


@pytest.mark.parametrize("content", [REFERENCE, OURS], ids=["reference", "ours"])
def test_images_without_any_proposal(content: dict[str, Any]) -> None:
    side = 28 if content is OURS else 7
    cases: list[list[list[Box]]] = [[[]], [[], []], [[], BOXES], [BOXES, []]]
    for boxes in cases:
        network = cascade(content, boxes).eval()
        for found, given_boxes in zip(network(noise(len(boxes))), boxes, strict=True):
            count = 2 * len(given_boxes)
            assert found.boxes.shape == (count, 4)
            assert found.scores.shape == (count,)
            assert found.masks.shape == (count, side, side)


def test_sizes_of_the_levels_must_fit() -> None:
    with pytest.raises(SatmapError, match=r"averages has 4 levels.*not 3"):
        cascade(OURS, anchors=((8,), (16,), (32,)))


# Encoders


@pytest.fixture(scope="module")
def vgg() -> Encoder:
    """VGG16 with random values, without its classifier's time."""
    with without_values():
        encoder = build_encoder("vgg16", 3)
    encoder.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for value in encoder.parameters():
            value.normal_(std=0.02 if value.ndim > 1 else 0.1)
    return encoder.eval()


def test_vgg16_has_the_published_shapes(vgg: Encoder) -> None:
    with torch.inference_mode():
        features = vgg(noise())
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)
    ]  # fmt: skip
    convolutions = [layer for layer in vgg.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 13
    assert sum(value.numel() for value in vgg.parameters()) == 14_714_688


def test_vgg16_is_that_of_torchvision(vgg: Encoder) -> None:
    theirs = make_layers(cfgs["D"])
    ours = vgg.state_dict()
    names = {their: our for our, their in vgg.timm_names().items()}
    theirs.load_state_dict({name: ours[names[f"features.{name}"]] for name in theirs.state_dict()})
    image = noise(1, 64, 96)
    with torch.inference_mode():
        features, expected = vgg(image), theirs[:30](image)
        pooled_once = theirs[:5](image)
    assert expected.abs().max() > 0
    assert torch.equal(features[3], expected)
    assert torch.equal(features[0], pooled_once)


def test_freezing_two_stages_of_vgg16_keeps_conv1_and_conv2(vgg: Encoder) -> None:
    vgg.freeze(2)
    names = vgg.timm_names()
    frozen = {names[name] for name, value in vgg.named_parameters() if not value.requires_grad}
    vgg.freeze(0)
    # conv1_1, conv1_2, conv2_1 and conv2_2.
    assert frozen == {
        f"features.{layer}.{kind}" for layer in (0, 2, 5, 7) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_builds_a_cascade(name: str) -> None:
    with without_values():
        encoder = build_encoder(name, 8)
        reference = CascadeNetwork(encoder, CascadeSettings())
        pyramid = CascadeSettings(
            pyramid=64, anchors=((8,), (16,), (32,), (64,)), mask="convolutional", mask_px=28,
            refine=True, quality=True,
        )  # fmt: skip
        ours = CascadeNetwork(encoder, pyramid)
    assert reference.in_channels == ours.in_channels == 8
    width = dict(zip(encoder.strides, encoder.channels, strict=True))[16]
    mask, path = cast(nn.Sequential, reference.mask), reference.box_path
    assert mask[1].weight.shape == (256, width * 14 * 14)
    assert mask[3].weight.shape == (441, 256)
    assert path[0].weight.shape == (4096, width * 49)
    assert [reference.building.in_features, reference.move.out_features] == [8192, 4]
    assert len(ours.pyramid.inner_blocks) == 4
