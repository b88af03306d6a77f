"""Cyclic schedules, warm restarts, and losses that change within a stage."""

import math

import pytest
import torch

from satmap.errors import SatmapError
from satmap.recipes.schedules import CyclicSchedule, RestartSchedule
from satmap.recipes.schema import parse_recipe
from satmap.training.epoch import learning_rate
from tiny_trainings import road_member, road_recipe, stage


def test_triangles_between_two_rates() -> None:
    schedule = CyclicSchedule(high=1e-4, low=1e-6)
    rates = [learning_rate(schedule, step, 4, 60) for step in (0, 10, 20, 30, 40, 50, 60)]
    middle = (1e-4 + 1e-6) / 2
    assert rates == pytest.approx([1e-4, middle, 1e-6, middle, 1e-4, middle, 1e-6])


def test_cosine_cycles_are_those_of_torch() -> None:
    # The reference steps torch's annealing beyond its end, where it rises again.
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=1e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5, eta_min=1e-6)
    schedule = CyclicSchedule(high=1e-4, low=1e-6, half_period=5, shape="cosine")
    for epoch in range(23):
        assert learning_rate(schedule, 7 * epoch, 7, 23) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-6
        )
        optimizer.step()
        theirs.step()


def test_warm_restarts_are_those_of_torch() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=3, T_mult=2, eta_min=1e-5
    )
    schedule = RestartSchedule(peak=1e-3, final=1e-5, period=3, factor=2)
    for step in range(4 * 25):
        assert learning_rate(schedule, step, 4, 25) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-6
        )
        optimizer.step()
        theirs.step((step + 1) / 4)
    # Without a factor all periods have the same length.
    same = RestartSchedule(peak=1.0, period=2)
    assert learning_rate(same, 45, 4, 20) == pytest.approx((1 + math.cos(math.pi * 5 / 8)) / 2)


def test_losses_change_from_an_epoch_on() -> None:
    own = road_member()["losses"]
    later = {"road": {"dice": 3}, "speed": {"focal": 2}, "junction": {"focal": 1}}
    last = later | {"road": {"bce": 1}}
    stages = [stage(epochs=60, later_losses={25: later, 40: last}), stage()]
    member = parse_recipe(road_recipe(road_member(encoder="resnet18", stages=stages)), "x").members[
        0
    ]
    assert member.losses_of(0, 24).road.dice == own["road"]["dice"] == 0.5
    assert [member.losses_of(0, epoch).road.dice for epoch in (25, 39.5, 40)] == [3, 3, 0]
    assert member.losses_of(1, 50) == member.losses
    with pytest.raises(SatmapError, match="later_losses: the stage ends before epoch 7"):
        parse_recipe(
            road_recipe(road_member(stages=[stage(epochs=7, later_losses={7: later})])), "x"
        )
    with pytest.raises(SatmapError, match="low must be below high"):
        schedule = {"kind": "cyclic", "high": 1e-6, "low": 1e-4}
        parse_recipe(road_recipe(road_member(stages=[stage(schedule=schedule)])), "x")
