"""Anchors, their matching, the loss of proposals, and the boxes that a cascade learns from.

Everything is compared with values worked out by hand or with slow loops.
"""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from satmap.networks.cascade_settings import BoxSettings, CascadeSettings, ProposalSettings
from satmap.networks.proposals import (
    ProposalNetwork,
    ignored_share,
    make_image_list,
    match_boxes,
    sample_boxes,
)

Box = tuple[float, float, float, float]
Boxes = Sequence[Box | tuple[float, int, int, int]]


def proposals_of(
    anchors: tuple[tuple[float, ...], ...] = ((16,),),
    ratios: tuple[float, ...] = (1,),
    channels: int = 4,
    **settings: object,
) -> ProposalNetwork:
    """Return a proposal network in training mode."""
    torch.manual_seed(0)
    pyramid = None if len(anchors) == 1 else channels
    chosen = ProposalSettings.model_validate({"least_px": 1.0, **settings})
    return ProposalNetwork(
        channels,
        CascadeSettings(pyramid=pyramid, anchors=anchors, ratios=ratios, proposals=chosen),
    )


def anchors_of(network: ProposalNetwork, size: tuple[int, int], strides: list[int]) -> Tensor:
    """Return the anchors of one image; its sides are multiples of the strides."""
    images = torch.zeros(1, 3, *size)
    features = [torch.zeros(1, 4, size[0] // each, size[1] // each) for each in strides]
    found: list[Tensor] = network.anchor_generator(make_image_list(images, [size]), features)
    return found[0]


def ground(height: int, width: int) -> Tensor:
    """Return an instance map without buildings."""
    return torch.zeros((height, width), dtype=torch.int32)


def iou(one: Box | list[float], other: Box | list[float]) -> float:
    """Intersection over union of two boxes."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    common = max(wide, 0) * max(high, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def assigned(
    network: ProposalNetwork, anchors: Boxes, truth: Boxes, instances: Tensor
) -> tuple[list[float], Tensor]:
    """Return the labels of anchors, and their buildings."""
    target = {"boxes": torch.tensor(truth).reshape(-1, 4), "instances": instances}
    labels, boxes = network.assign_targets_to_anchors([torch.tensor(anchors)], [target])
    return labels[0].tolist(), boxes[0]


def test_the_nine_anchors_of_the_reference() -> None:
    network = ProposalNetwork(4, CascadeSettings())
    found = anchors_of(network, (32, 48), [16])
    # Ratios are height to width. 128 / sqrt(.5) = 181.02 and 128 * sqrt(.5) = 90.51, and so on;
    # half sides are rounded.
    halves = {
        (91, 45), (64, 64), (45, 91),
        (181, 91), (128, 128), (91, 181),
        (362, 181), (256, 256), (181, 362),
    }  # fmt: skip
    expected = {
        (16 * column - x, 16 * row - y, 16 * column + x, 16 * row + y)
        for row in range(2)
        for column in range(3)
        for x, y in halves
    }
    assert found.shape == (54, 4)
    assert {tuple(each) for each in found.int().tolist()} == expected
    # Those of one place follow each other, and places run along the rows.
    centres = (found[:, :2] + found[:, 2:]) / 2
    assert centres[::9].tolist() == [[0, 0], [16, 0], [32, 0], [0, 16], [16, 16], [32, 16]]


def test_every_level_of_a_pyramid_has_its_anchors() -> None:
    network = proposals_of(anchors=((8, 12), (16, 24), (32, 48), (64, 96)))
    found = anchors_of(network, (64, 128), [4, 8, 16, 32])
    counts = [2 * (64 // stride) * (128 // stride) for stride in (4, 8, 16, 32)]
    assert len(found) == sum(counts)
    for level, stride, sides in zip(
        torch.split(found, counts), (4, 8, 16, 32), ((8, 12), (16, 24), (32, 48), (64, 96)),
        strict=True,
    ):  # fmt: skip
        widths, heights = (level[:, 2:] - level[:, :2]).T
        assert torch.equal(widths, heights)
        assert sorted(set(widths.tolist())) == list(sides)
        centres = ((level[:, :2] + level[:, 2:]) / 2)[::2].tolist()
        assert centres == [
            [x, y] for y in range(0, 64, stride) for x in range(0, 128, stride)
        ]  # fmt: skip


def test_anchors_are_matched_by_their_overlap() -> None:
    truth = [(10.0, 10, 30, 30), (60, 60, 80, 80)]
    # Intersections of 400, 300, 240, 120 and 100 with the first building, of 400 pixels.
    anchors = {
        (10.0, 10, 30, 30): 1,
        (10, 10, 30, 25): 1,
        (10, 10, 30, 22): -1,
        # Exactly .3 is not below it.
        (10, 10, 30, 16): -1,
        (10, 10, 30, 15): 0,
        (0, 60, 20, 80): 0,
        # Intersection 200 of 400 with the second building, which has no better one.
        (60, 60, 80, 70): 1,
        (60, 60, 80, 68): -1,
    }
    labels, boxes = assigned(proposals_of(), list(anchors), truth, ground(100, 100))
    assert labels == list(anchors.values())
    assert boxes[[0, 1, 6]].tolist() == [list(truth[index]) for index in (0, 0, 1)]


def test_anchors_beyond_the_image_are_left_out() -> None:
    truth = [(10.0, 10, 30, 30)]
    anchors = [
        (10.0, 10, 30, 30), (0, 0, 40, 60), (9, 40, 40, 60),
        (-1, 40, 20, 60), (20, -1, 40, 9), (30, 40, 41, 60), (0, 50, 20, 61),
    ]  # fmt: skip
    # The image is 40 wide and 60 high; padding of a batch is not part of it.
    labels, _ = assigned(proposals_of(), anchors, truth, ground(60, 40))
    assert labels == [1, 0, 0, -1, -1, -1, -1]
    labels, _ = assigned(proposals_of(inside_only=False), anchors, truth, ground(60, 40))
    assert labels == [1, 0, 0, 0, 0, 0, 0]


def test_the_best_anchor_of_a_building_is_one_inside_the_image() -> None:
    # Intersection over union 400 / 484 and 400 / 600.
    anchors = [(-2.0, -2, 20, 20), (0, 0, 20, 30), (20, 20, 40, 40)]
    labels, _ = assigned(proposals_of(), anchors, [(0.0, 0, 20, 20)], ground(40, 40))
    assert labels == [-1, 1, 0]
    labels, _ = assigned(
        proposals_of(inside_only=False), anchors, [(0.0, 0, 20, 20)], ground(40, 40)
    )
    assert labels == [1, -1, 0]


def test_images_without_buildings_have_negative_anchors() -> None:
    labels, _ = assigned(proposals_of(), [(0.0, 0, 9, 9), (30, 30, 45, 45)], [], ground(40, 40))
    assert labels == [0, -1]


def test_anchors_over_ignored_pixels_are_left_out() -> None:
    instances = ground(40, 40)
    instances[:, 20:] = -1
    instances[10:20, 25:35] = 1
    # All, more than half, exactly half and none of it is ignored; the last one is a building.
    anchors = [(20.0, 20, 40, 40), (15, 20, 27, 30), (10, 20, 30, 30), (0, 0, 10, 10),
               (25, 10, 35, 20)]  # fmt: skip
    labels, _ = assigned(proposals_of(), anchors, [(25.0, 10, 35, 20)], instances)
    assert labels == [-1, -1, 0, 0, 1]
    # Only the part inside the image counts.
    shares = ignored_share(torch.tensor([*anchors, (30.0, 0, 60, 5), (50, 50, 60, 60)]), instances)
    expected = [1, 7 / 12, 0.5, 0, 0, 1, 0]
    assert shares.tolist() == pytest.approx(expected)
    assert ignored_share(torch.tensor(anchors), ground(40, 40)).tolist() == [0] * 5


class GivenHead(nn.Module):
    """Head whose outputs are parameters: one level, logits (n, a, h, w), deltas (n, 4a, h, w)."""

    def __init__(self, images: int, anchors: int, height: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.logits = nn.Parameter(torch.randn(images, anchors, height, width, generator=generator))
        deltas = torch.randn(images, 4 * anchors, height, width, generator=generator)
        self.deltas = nn.Parameter(deltas * 0.3)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [self.logits], [self.deltas]


def smooth(difference: float, beta: float) -> float:
    """Smooth L1 loss."""
    size = abs(difference)
    return size**2 / (2 * beta) if size < beta else size - beta / 2


def test_the_loss_of_proposals_by_loops() -> None:
    network = proposals_of(ratios=(0.5, 1), batch=1000)
    head = GivenHead(2, 2, 4, 6)
    network.head = head
    instances = [ground(64, 96), ground(48, 80)]
    instances[0][:, 70:] = -1
    truth = [[(14.0, 18, 32, 33), (40.0, 20, 62, 31), (20.0, 46, 40, 58)], []]
    targets = [
        {"boxes": torch.tensor(boxes).reshape(-1, 4), "instances": each}
        for boxes, each in zip(truth, instances, strict=True)
    ]
    images = make_image_list(torch.zeros(2, 3, 64, 96), [(64, 96), (48, 80)])
    boxes, losses = network(images, {"16": torch.zeros(2, 4, 4, 6)}, targets)
    assert not any(each.requires_grad for each in boxes)
    anchors = anchors_of(network, (64, 96), [16]).tolist()

    used = entropy = moved = 0.0
    positive = 0
    touched = torch.zeros_like(head.logits, dtype=torch.bool)
    for image, of_image in enumerate(truth):
        height, width = instances[image].shape
        bests = [max(iou(anchor, box) for anchor in anchors) for box in of_image]
        for number, anchor in enumerate(anchors):
            overlaps = [iou(anchor, box) for box in of_image]
            best = max(overlaps, default=0)
            is_best = any(
                math.isclose(a, b, abs_tol=1e-6) for a, b in zip(overlaps, bests, strict=True)
            )
            left, top, right, bottom = anchor
            if left < 0 or top < 0 or right > width or bottom > height:
                continue
            label = 1 if best >= 0.7 or is_best else 0 if best < 0.3 else None
            part = instances[image][int(top) : int(bottom), int(left) : int(right)]
            if label is None or (label == 0 and (part == -1).float().mean() > 0.5):
                continue
            # Anchors of one place follow each other.
            place, kind = divmod(number, 2)
            row, column = divmod(place, 6)
            touched[image, kind, row, column] = True
            logit = head.logits[image, kind, row, column].item()
            used += 1
            entropy += math.log1p(math.exp(-logit if label else logit))
            if label:
                positive += 1
                box = of_image[max(range(len(of_image)), key=overlaps.__getitem__)]
                w, h = right - left, bottom - top
                goal = [
                    ((box[0] + box[2]) - (left + right)) / 2 / w,
                    ((box[1] + box[3]) - (top + bottom)) / 2 / h,
                    math.log((box[2] - box[0]) / w),
                    math.log((box[3] - box[1]) / h),
                ]
                given = head.deltas[image, 4 * kind : 4 * kind + 4, row, column].tolist()
                # A sigma of 3 is a beta of a ninth.
                moved += sum(smooth(a - b, 1 / 9) for a, b in zip(given, goal, strict=True))
    assert 3 <= positive < used / 4
    assert losses["loss_objectness"].item() == pytest.approx(entropy / used, rel=1e-5)
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(moved / used, rel=1e-5)
    (gradient,) = torch.autograd.grad(losses["loss_objectness"], [head.logits])
    assert torch.equal(gradient != 0, touched)


def test_at_most_half_of_the_anchors_in_the_loss_are_positive() -> None:
    network = proposals_of(batch=8)
    head = GivenHead(1, 1, 8, 8)
    network.head = head
    anchors = anchors_of(network, (128, 128), [16])
    # Every inner anchor is a building, except for those of the last two rows.
    inside = ((anchors >= 0) & (anchors <= 128)).all(dim=1)
    truth = anchors[inside & (anchors[:, 1] < 80)]
    target = {"boxes": truth, "instances": ground(128, 128)}
    images = make_image_list(torch.zeros(1, 3, 128, 128), [(128, 128)])
    _, losses = network(images, {"16": torch.zeros(1, 4, 8, 8)}, [target])
    (gradient,) = torch.autograd.grad(losses["loss_objectness"], [head.logits])
    # Probabilities of positive anchors are to rise, those of negative ones to fall.
    assert [int((gradient < 0).sum()), int((gradient > 0).sum())] == [4, 4]


@pytest.mark.parametrize("why", ["ignored", "larger than the image"])
def test_images_without_any_usable_anchor_have_a_finite_loss(why: str) -> None:
    network = proposals_of(anchors=((16 if why == "ignored" else 512,),))
    instances = ground(64, 64)
    if why == "ignored":
        instances[:] = -1
    head = GivenHead(1, 1, 4, 4)
    network.head = head
    target = {"boxes": torch.empty(0, 4), "instances": instances}
    images = make_image_list(torch.zeros(1, 3, 64, 64), [(64, 64)])
    _, losses = network(images, {"16": torch.zeros(1, 4, 4, 4)}, [target])
    assert {name: value.item() for name, value in losses.items()} == {
        "loss_objectness": 0,
        "loss_rpn_box_reg": 0,
    }
    sum(losses.values()).backward()
    assert all(value.grad is not None for value in head.parameters())


def test_proposals_are_clipped_large_enough_and_distinct() -> None:
    network = proposals_of(least_px=6, test=(100, 5), suppression=0.5).eval()
    head = GivenHead(1, 1, 4, 4)
    network.head = head
    images = make_image_list(torch.zeros(1, 3, 64, 64), [(40, 50)])
    (boxes,), losses = network(images, {"16": torch.zeros(1, 4, 4, 4)})
    assert losses == {}
    assert 0 < len(boxes) <= 5
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 50).all() and (boxes[:, 3] <= 40).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 6).all()
    overlaps = [iou(a, b) for k, a in enumerate(boxes.tolist()) for b in boxes[:k].tolist()]
    assert max(overlaps) <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("image_px", "size", "expected"),
    [(None, (64, 128), 5), (64, (64, 128), 10), (64, (32, 64), 5), (64, (96, 96), 11)],
)
def test_larger_images_have_more_proposals(
    image_px: int | None, size: tuple[int, int], expected: int
) -> None:
    network = proposals_of(test=(5, 5), train=(3, 3), suppression=1.0, image_px=image_px)
    images = make_image_list(torch.zeros(1, 3, *size), [size])
    features = {"16": torch.rand(1, 4, size[0] // 16, size[1] // 16)}
    (boxes,), _ = network.eval()(images, features)
    assert len(boxes) == expected
    # Training does not depend on the size of its crops.
    target = {"boxes": torch.tensor([[0.0, 0, 16, 16]]), "instances": ground(*size)}
    (boxes,), _ = network.train()(images, features, [target])
    assert len(boxes) == 3


# Boxes that a cascade learns from

TRUTH = (100.0, 100.0, 200.0, 200.0)
LAND = ground(400, 400)


def shifted(by: float, count: int) -> list[Box]:
    """Return different boxes that are moved to the right.

    The intersection over union of a move d is (100 - d) / (100 + d).
    """
    return [(100 + by + k / 100, 100.0, 200 + by + k / 100, 200) for k in range(count)]


# Their intersections over union are .9, .43, .05 and 0.
POSITIVE, NEAR, FAR, APART = (shifted(by, 40) for by in (5, 40, 90, 150))


def counted(boxes: Tensor, truth: list[Box]) -> tuple[int, int, int]:
    """Return the number of positive, near and far boxes."""
    best = [max((iou(box, each) for each in truth), default=0) for box in boxes.tolist()]
    near = sum(0.1 <= value < 0.5 for value in best)
    return sum(value >= 0.5 for value in best), near, sum(value < 0.1 for value in best)


def sampled(
    proposals: Sequence[Box], truth: Sequence[Box], instances: Tensor = LAND, **settings: object
) -> Tensor:
    """Sample 20 boxes, unless the settings differ."""
    chosen = BoxSettings.model_validate({"boxes": 20, **settings})
    given, true = (torch.tensor(each).reshape(-1, 4) for each in (proposals, truth))
    torch.manual_seed(0)
    return sample_boxes(given, true, instances, chosen)


def test_positive_near_and_far_boxes_have_their_shares() -> None:
    every = [*APART, *POSITIVE, *FAR, *NEAR]
    found = sampled(every, [TRUTH])
    # 30 % of 20, and 85 % of the other 14, which is 11.9.
    assert counted(found, [TRUTH]) == (6, 12, 2)
    assert {tuple(box) for box in found.tolist()} <= {
        tuple(box) for box in torch.tensor([*every, TRUTH]).tolist()
    }
    assert len({tuple(box) for box in found.tolist()}) == 20
    # The defaults are those of the reference: 19 of 64; of the other 45, 38 are near.
    assert counted(sampled(every, [TRUTH], boxes=64), [TRUTH]) == (19, 38, 7)
    halves = sampled(every, [TRUTH], positive_share=0.5, near_share=0.5)
    assert counted(halves, [TRUTH]) == (10, 5, 5)


def test_boxes_are_chosen_at_random() -> None:
    every = torch.tensor([*POSITIVE, *NEAR, *FAR])
    torch.manual_seed(0)
    seen = {
        tuple(box)
        for _ in range(300)
        for box in sample_boxes(every, torch.tensor([TRUTH]), LAND, BoxSettings(boxes=20)).tolist()
    }
    # A draw has 2 of the 40 far ones.
    assert len(seen) == 121


def test_the_truth_is_among_the_boxes() -> None:
    truth = [TRUTH, (300.0, 300.0, 320.0, 320.0)]
    found = sampled([*NEAR, *FAR], truth)
    assert [list(box) in found.tolist() for box in truth] == [True, True]
    # Two positive ones leave room for 18: 15.3 near ones.
    assert counted(found, truth) == (2, 15, 3)


def test_bands_begin_at_their_limits() -> None:
    half, tenth = (100.0, 100.0, 200.0, 150.0), (100.0, 100.0, 200.0, 110.0)
    assert counted(sampled([half] * 30, [TRUTH]), [TRUTH]) == (6, 0, 0)
    # All but one of the positive ones; 85 % of 19 is 16.15.
    found = sampled([tenth] * 30 + APART, [TRUTH])
    assert counted(found, [TRUTH]) == (1, 16, 3)


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [(3, 40, (6, 3, 11)), (40, 1, (6, 13, 1)), (0, 40, (6, 0, 14)), (40, 0, (6, 14, 0)),
     (4, 5, (6, 4, 5)), (0, 0, (6, 0, 0)), (12, 2, (6, 12, 2))],
)  # fmt: skip
def test_one_kind_fills_the_place_of_the_other(
    near: int, far: int, expected: tuple[int, int, int]
) -> None:
    boxes = [*POSITIVE, *NEAR[:near], *FAR[:far]]
    assert counted(sampled(boxes, [TRUTH]), [TRUTH]) == expected


def test_images_without_buildings_give_far_boxes() -> None:
    assert sampled(NEAR, []).shape == (20, 4)
    assert sampled(NEAR[:3], []).shape == (3, 4)
    assert sampled([], []).shape == (0, 4)
    assert sampled([], [TRUTH]).tolist() == [list(TRUTH)]


def test_boxes_on_ignored_ground_are_no_negative_ones() -> None:
    instances = ground(400, 400)
    # Right of the building, and a part of it.
    instances[:, 195:] = -1
    instances[100:200, 100:195] = 1
    # Boxes from 140 to 240 are ignored by .45, those from 190 on by .95.
    found = sampled([*POSITIVE, *NEAR, *FAR, *APART], [TRUTH], instances)
    assert counted(found, [TRUTH]) == (6, 14, 0)
    instances[:, 185:] = -1
    found = sampled([*POSITIVE, *NEAR, *FAR, *APART], [TRUTH], instances)
    assert counted(found, [TRUTH]) == (6, 0, 0)
    # A building that is mostly ignored still counts.
    instances[:, 110:] = -1
    assert sampled([*NEAR], [TRUTH], instances).tolist() == [list(TRUTH)]
    assert sampled(NEAR, [], torch.full_like(instances, -1)).shape == (0, 4)


def test_matches_are_the_best_buildings() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 30], [0, 0, 5, 5], [12, 10, 32, 30]])
    truth = torch.tensor([[14.0, 10, 34, 30], [10, 10, 30, 40]])
    best, index = match_boxes(boxes, truth)
    # 320 / 480 and 400 / 600; nothing; 360 / 440 and 360 / 640.
    assert best.tolist() == pytest.approx([400 / 600, 0, 360 / 440])
    assert index[2] == 0
    best, index = match_boxes(boxes, torch.empty(0, 4))
    assert (best.tolist(), index.tolist()) == ([0, 0, 0], [0, 0, 0])
