import math

import pytest
import torch
import torchvision

from satmap.recipes.schedules import CosineSchedule, StepSchedule
from satmap.recipes.task_settings import HeadLoss
from satmap.tasks.losses import (
    IGNORED_BIT,
    centreline_dice_loss,
    dice_loss,
    feature_loss,
    head_loss,
    recall_loss,
    soft_skeleton,
)
from satmap.tasks.roads.losses import road_loss, split_heads
from satmap.tasks.roads.settings import LEVEL_MAPS, ROAD_MAPS, RoadHeadLoss
from satmap.tasks.roads.settings import RoadLosses as Losses
from satmap.tasks.roads.targets import (
    CENTRE_BIT,
    CROSSING_BIT,
    CROSSING_UNKNOWN_BIT,
    DECK_BIT,
    DECK_UNKNOWN_BIT,
    JUNCTION_BIT,
)
from satmap.training.epoch import learning_rate


def test_packed_targets_split_into_heads() -> None:
    target = torch.tensor([[[0, 1, 10, 5 + JUNCTION_BIT, JUNCTION_BIT]]], dtype=torch.uint8)
    heads = split_heads(target)
    assert heads["road"].flatten().tolist() == [False, True, True, True, False]
    assert heads["junction"].flatten().tolist() == [False, False, False, True, True]
    assert heads["speed"].shape == (1, 10, 1, 5)
    assert heads["speed"][0, :, 0].nonzero().tolist() == [[0, 1], [4, 3], [9, 2]]


def test_focal_and_cross_entropy_agree_with_torchvision() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 16, 16) * 4, (torch.rand(2, 3, 16, 16) > 0.7).float()
    focal = head_loss(logits, target, HeadLoss(focal=1))
    expected = torchvision.ops.sigmoid_focal_loss(logits, target, alpha=-1, reduction="mean")
    assert focal.item() == pytest.approx(expected.item(), rel=1e-5)
    both = head_loss(logits, target, HeadLoss(focal=2, bce=0.5))
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    assert both.item() == pytest.approx(2 * expected.item() + 0.5 * bce.item(), rel=1e-5)


def test_dice_by_hand() -> None:
    # Half of 200 target pixels found, 100 pixels predicted wrongly: 1 - 2 * 100 / (200 + 200).
    target = torch.zeros(1, 1, 20, 20)
    target[..., :10] = 1
    logits = torch.full_like(target, -40)
    logits[..., 5:15] = 40
    assert dice_loss(logits, target).item() == pytest.approx(0.5, abs=1e-4)
    assert dice_loss((target - 0.5) * 80, target).item() == pytest.approx(0, abs=1e-4)


def test_dice_skips_channels_with_little_target() -> None:
    target = torch.zeros(1, 2, 20, 20)
    target[:, 0, :, :10] = 1
    target[:, 1, 0] = 1
    logits = torch.full_like(target, -40.0)
    # Channel 0 finds nothing; channel 1 has only 20 pixels.
    assert dice_loss(logits, target).item() == pytest.approx(1, abs=1e-4)
    assert dice_loss(logits[:, 1:], target[:, 1:]).item() == 0


def test_recall_loss_counts_only_the_middles_of_roads() -> None:
    target = torch.zeros(1, 20, 20, dtype=torch.uint8)
    target[:, 5:15] = 3
    target[:, 9:11] |= CENTRE_BIT
    heads = split_heads(target)
    assert [int(heads[name].sum()) for name in ("road", "centre")] == [200, 40]
    # The left half is found, with many false positives.
    logits = torch.full((1, 1, 20, 20), -40.0)
    logits[..., :10] = 40
    missed = recall_loss(logits, heads["centre"].float())
    assert missed.item() == pytest.approx(0.5)
    assert recall_loss(logits, torch.zeros_like(logits)).item() == 0
    maps = logits.expand(1, 12, 20, 20)
    losses = [
        Losses(road=RoadHeadLoss(dice=1, recall=recall), speed=HeadLoss(), junction=HeadLoss())
        for recall in (None, 0.25)
    ]
    without, with_recall = (road_loss(maps, ROAD_MAPS, target, each)[0] for each in losses)
    assert with_recall.item() - without.item() == pytest.approx(0.25 * 0.5)


def test_road_loss_adds_up_and_reaches_every_map() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 12, 32, 32, requires_grad=True)
    target = torch.randint(0, 11, (2, 32, 32), dtype=torch.uint8) | (
        JUNCTION_BIT * torch.randint(0, 2, (2, 32, 32), dtype=torch.uint8)
    )
    losses = Losses(
        road=RoadHeadLoss(dice=0.5, focal=2, bce=0.1),
        speed=HeadLoss(dice=0.1, focal=2, bce=1),
        junction=HeadLoss(dice=0.1, focal=1),
    )
    total, parts = road_loss(logits, ROAD_MAPS, target, losses)
    assert total.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-6)
    total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad.abs().sum((0, 2, 3)) > 0).all()
    # The names decide the order of the maps.
    order = torch.randperm(12)
    names = tuple(ROAD_MAPS[i] for i in order)
    again, _ = road_loss(logits[:, order], names, target, losses)
    assert again.item() == pytest.approx(total.item(), rel=1e-5)


def test_step_schedule() -> None:
    schedule = StepSchedule(rates={0: 5e-4, 1: 1e-4, 20: 5e-5})
    rates = [learning_rate(schedule, step, 10, 38) for step in (0, 9, 10, 199, 200, 379)]
    assert rates == [5e-4, 5e-4, 1e-4, 1e-4, 5e-5, 5e-5]


def test_cosine_schedule() -> None:
    schedule = CosineSchedule(peak=1.0, final=0.1, warmup=0.1)
    rates = [learning_rate(schedule, step, 10, 10) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert all(math.isfinite(rate) for rate in rates)


def test_ignored_pixels_do_not_count() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, len(ROAD_MAPS), 32, 32, requires_grad=True)
    target = torch.randint(0, 11, (2, 32, 32), dtype=torch.uint8) * (torch.rand(2, 32, 32) > 0.5)
    target |= (torch.rand(2, 32, 32) > 0.8).to(torch.uint8) * JUNCTION_BIT
    target |= (torch.rand(2, 32, 32) > 0.7).to(torch.uint8) * CENTRE_BIT
    head = HeadLoss(dice=0.5, focal=2, bce=0.1)
    losses = Losses(road=RoadHeadLoss(dice=1, bce=1, recall=0.5), speed=head, junction=head)
    half = (slice(None), ..., slice(16))
    expected, _ = road_loss(logits[half], ROAD_MAPS, target[half], losses)
    target[..., 16:] = IGNORED_BIT
    loss, _ = road_loss(logits, ROAD_MAPS, target, losses)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[..., 16:].any()
    assert logits.grad[..., :16].any()
    nothing, _ = road_loss(logits, ROAD_MAPS, torch.full_like(target, IGNORED_BIT), losses)
    assert nothing.item() == 0


def test_levels_that_the_labels_do_not_tell_do_not_count() -> None:
    torch.manual_seed(0)
    head = HeadLoss(dice=0.5, bce=1)
    losses = Losses(road=RoadHeadLoss(dice=1, bce=1), speed=head, junction=head, levels=head)
    names = losses.map_names
    assert names == (*ROAD_MAPS, *LEVEL_MAPS)
    logits = torch.randn(2, len(names), 32, 32, requires_grad=True)
    target = torch.randint(0, 11, (2, 32, 32, 2), dtype=torch.uint8)
    target[..., 1] = 0
    target[:, :10, :10, 1] = CROSSING_BIT | DECK_BIT
    target[0, :, 16:, 1] = DECK_UNKNOWN_BIT
    target[1, ..., 1] = CROSSING_UNKNOWN_BIT | DECK_UNKNOWN_BIT
    loss, parts = road_loss(logits, names, target, losses)
    assert list(parts) == ["road", "speed", "junction", "levels"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    crossing, deck = logits.grad[:, -2], logits.grad[:, -1]
    assert crossing[0].all()
    assert deck[0, :, :16].all()
    assert not deck[0, :, 16:].any()
    assert not logits.grad[1, -2:].any()
    # The other maps learn from all pixels.
    assert logits.grad[1, :-2].any()
    everything, _ = road_loss(logits, names, target.fill_(IGNORED_BIT), losses)
    assert everything.item() == 0


def test_soft_skeleton_is_the_middle_of_a_bar() -> None:
    bar = torch.zeros(1, 1, 21, 40)
    bar[..., 6:15, :] = 1
    skeleton = soft_skeleton(bar)[0, 0]
    assert skeleton[10, 10:30].tolist() == [1] * 20
    assert skeleton.sum(0)[10:30].tolist() == [1] * 20


def test_centreline_dice_by_hand() -> None:
    """A road of 40 pixels, half found, and a false road of 20 pixels beside it."""
    road = torch.zeros(1, 1, 40, 40)
    road[..., 8:13, :] = 1
    centre = torch.zeros_like(road)
    centre[..., 10, :] = 1
    assert centreline_dice_loss((road - 0.5) * 80, road, centre).item() == pytest.approx(
        0, abs=0.02
    )
    found = road.clone()
    found[..., 20:] = 0
    found[..., 28:33, :20] = 1
    # Precision and recall are about a half, and so is their harmonic mean.
    loss = centreline_dice_loss((found - 0.5) * 80, road, centre)
    assert loss.item() == pytest.approx(0.5, abs=0.05)
    nothing = torch.zeros_like(road)
    assert centreline_dice_loss((found - 0.5) * 80, nothing, nothing).item() == 0


def test_feature_loss_prefers_a_moved_edge_to_a_gap() -> None:
    """Both predictions have the same number of wrong pixels."""
    road = torch.zeros(1, 1, 64, 64)
    road[..., 28:36, :] = 1
    gap, narrow = road.clone(), road.clone()
    gap[..., 28:36, 30:34] = 0
    narrow[..., 28, 16:48] = 0
    assert (gap != road).sum() == (narrow != road).sum() == 32
    losses = [feature_loss((found - 0.5) * 80, road) for found in (road, narrow, gap)]
    assert losses[0].item() == pytest.approx(0, abs=1e-4)
    assert losses[0] < losses[1] < losses[2]
    logits = torch.zeros_like(road, requires_grad=True)
    feature_loss(logits, road).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["recall", "centreline_dice", "features"])
def test_further_road_losses_ignore_pixels_and_have_their_weight(name: str) -> None:
    torch.manual_seed(0)
    target = torch.zeros(2, 32, 32, dtype=torch.uint8)
    target[:, 10:16] = 1 + CENTRE_BIT
    target[..., 16:] = IGNORED_BIT
    logits = torch.randn(2, len(ROAD_MAPS), 32, 32)
    others = {"speed": HeadLoss(), "junction": HeadLoss()}
    once, twice = (
        road_loss(logits, ROAD_MAPS, target, Losses(road=RoadHeadLoss(**{name: w}), **others))[0]
        for w in (1.0, 2.0)
    )
    assert once > 0 and twice.item() == pytest.approx(2 * once.item(), rel=1e-5)
    changed = logits.clone()
    changed[..., 16:] = 9
    losses = Losses(road=RoadHeadLoss(**{name: 1.0}), **others)
    assert torch.equal(road_loss(changed, ROAD_MAPS, target, losses)[0], once)
