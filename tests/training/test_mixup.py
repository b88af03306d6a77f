import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from satmap.tasks.base import Batch
from satmap.training.mixup import mean_loss, mix_up

N = 6


def batch() -> Batch:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8)
    points = [torch.tensor([float(i)]) for i in range(N)]
    chips = [f"chip{i}" for i in range(N)]
    target = torch.randint(0, 2, (N, 8, 8), dtype=torch.uint8)
    return Batch({"image": image, "target": target, "points": points}, chips)  # type: ignore[arg-type]


def test_images_are_mixed_with_those_of_the_other_samples() -> None:
    plain = batch()
    (first, share), (other, rest) = mix_up(plain, 0.4, (1, 2, 3))
    assert share + rest == 1 and 0 < share < 1
    assert first["image"] is other["image"] and first["image"].dtype == torch.uint8
    order = [int(point) for point in other["points"]]
    assert sorted(order) == list(range(N)) != order
    assert [f"chip{i}" for i in order] == [str(chip) for chip in other.chips]
    assert torch.equal(other["target"], plain["target"][order])
    assert torch.equal(first["target"], plain["target"])
    expected = share * plain["image"].double() + rest * plain["image"][order].double()
    assert (first["image"].double() - expected).abs().max() <= 0.501
    # The seed decides everything.
    (again, same), _ = mix_up(plain, 0.4, (1, 2, 3))
    assert same == share and torch.equal(again["image"], first["image"])
    assert mix_up(plain, 0.4, (1, 2, 4))[0][1] != share


def test_the_mean_of_cross_entropies_is_that_of_the_soft_target() -> None:
    mixture = mix_up(batch(), 1.0, (5,))
    logits = torch.randn(N, 8, 8)

    def loss_of(of: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = F.binary_cross_entropy_with_logits(logits, of["target"].float())
        return loss, {"road": loss.detach()}

    (first, share), (other, rest) = mixture
    soft = share * first["target"].float() + rest * other["target"].float()
    expected = F.binary_cross_entropy_with_logits(logits, soft).item()
    loss, parts = mean_loss(mixture, loss_of)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert parts["road"].item() == pytest.approx(expected, rel=1e-5)
    assert mean_loss([(first, 1.0)], loss_of)[0].item() == loss_of(first)[0].item()
