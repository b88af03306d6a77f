"""Proposal network, and the choice of the boxes that a cascade learns from.

Built on torchvision's region proposal network (https://arxiv.org/abs/1506.01497). Anchors and boxes
on ground that training ignores are left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou

from satmap.networks.cascade_settings import BoxSettings, CascadeSettings

#: Value of ignored pixels in instance maps.
IGNORED = -1

# Anchors and boxes with a larger share of ignored pixels are neither positive nor negative.
_MOST_IGNORED = 0.5


class _Head(RPNHead):  # type: ignore[misc]
    """Head whose outputs are float32, also under autocast, as suppression needs them."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [each.float() for each in logits], [each.float() for each in deltas]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """Region proposal network that can leave out anchors in training.

    Called with images, features by name, and in training targets with ``boxes``, float (n, 4), and
    ``instances``, int32 (h, w). Returns proposals (n, 4) per image, detached, and two losses.
    """

    def __init__(self, channels: int, settings: CascadeSettings) -> None:
        chosen = settings.proposals
        anchors = AnchorGenerator(settings.anchors, (settings.ratios,) * len(settings.anchors))
        super().__init__(
            anchors,
            _Head(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=chosen.positive_iou,
            bg_iou_thresh=chosen.negative_iou,
            batch_size_per_image=chosen.batch,
            positive_fraction=0.5,
            pre_nms_top_n={"training": chosen.train[0], "testing": chosen.test[0]},
            post_nms_top_n={"training": chosen.train[1], "testing": chosen.test[1]},
            nms_thresh=chosen.suppression,
        )
        self.min_size = chosen.least_px
        self._inside_only = chosen.inside_only
        self._image_px = chosen.image_px
        self._times_area = 1.0

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Propose boxes; in training also compute the losses."""
        self._times_area = 1.0
        if self._image_px and not self.training:
            height, width = images.tensors.shape[-2:]
            self._times_area = max(height * width / self._image_px**2, 1.0)
        found: tuple[list[Tensor], dict[str, Tensor]] = super().forward(images, features, targets)
        return found

    def pre_nms_top_n(self) -> int:
        """Return the number of boxes of each level before suppression."""
        return int(super().pre_nms_top_n() * self._times_area + 0.5)

    def post_nms_top_n(self) -> int:
        """Return the number of proposals."""
        return int(super().post_nms_top_n() * self._times_area + 0.5)

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Match anchors with buildings.

        Returns:
            Per image: 1 for positive anchors, 0 for negative ones and -1 for those that the loss
            leaves out, float (n,); and the box of the matched building, (n, 4).
        """
        labels, boxes = [], []
        for each, target in zip(anchors, targets, strict=True):
            usable = torch.ones(len(each), dtype=torch.bool, device=each.device)
            if self._inside_only:
                height, width = target["instances"].shape
                limit = each.new_tensor([width, height])
                usable = ~((each[:, :2] < 0) | (each[:, 2:] > limit)).any(dim=1)
            label, matched = each.new_full((len(each),), -1), torch.zeros_like(each)
            if bool(usable.any()):
                (found,), (of,) = super().assign_targets_to_anchors([each[usable]], [target])
                label[usable], matched[usable] = found, of.to(each)
            label[(label == 0) & ~is_usable(each, target["instances"])] = -1
            labels.append(label)
            boxes.append(matched)
        return labels, boxes

    def compute_loss(
        self, objectness: Tensor, deltas: Tensor, labels: list[Tensor], targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of class and position; 0 if no anchor of the batch counts."""
        if not any(bool((each >= 0).any()) for each in labels):
            return objectness.sum() * 0, deltas.sum() * 0
        losses: tuple[Tensor, Tensor] = super().compute_loss(objectness, deltas, labels, targets)
        return losses


def make_image_list(images: Tensor, sizes: Sequence[tuple[int, int]]) -> ImageList:
    """Return a batch as torchvision's proposal network expects it."""
    return ImageList(images, list(sizes))


def is_usable(boxes: Tensor, instances: Tensor) -> Tensor:
    """Return which boxes (n, 4) lie mostly on ground that training does not ignore, bool (n,)."""
    return ignored_share(boxes, instances) <= _MOST_IGNORED


def ignored_share(boxes: Tensor, instances: Tensor) -> Tensor:
    """Return the share of ignored pixels in the part of each box (n, 4) inside the image."""
    ignored = instances == IGNORED
    if not bool(ignored.any()):
        return boxes.new_zeros(len(boxes))
    height, width = ignored.shape
    sums = torch.zeros((height + 1, width + 1), dtype=torch.float32, device=boxes.device)
    sums[1:, 1:] = ignored.float().cumsum(0).cumsum(1)
    x = boxes[:, 0::2].round().long().clamp(0, width)
    y = boxes[:, 1::2].round().long().clamp(0, height)
    inside = sums[y[:, 1], x[:, 1]] - sums[y[:, 0], x[:, 1]] - sums[y[:, 1], x[:, 0]]
    inside = inside + sums[y[:, 0], x[:, 0]]
    area = (x[:, 1] - x[:, 0]) * (y[:, 1] - y[:, 0])
    return inside / area.clamp(min=1)


def match_boxes(boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return each box's highest intersection over union with a building, and its building's index.

    ``boxes`` is (n, 4), ``truth`` (m, 4), the results (n,). Without buildings both are 0.
    """
    if not len(truth):
        return boxes.new_zeros(len(boxes)), torch.zeros(
            len(boxes), dtype=torch.int64, device=boxes.device
        )
    best, index = box_iou(boxes, truth).max(dim=1)
    return best, index


def sample_boxes(boxes: Tensor, truth: Tensor, instances: Tensor, settings: BoxSettings) -> Tensor:
    """Choose the boxes (n, 4) that the first round learns from, at random.

    The truth (m, 4) is added to the boxes. At most ``positive_share`` of the chosen boxes are
    positive, and ``near_share`` of the negative ones are near a building. If there are too few near
    boxes, more of the others are taken, and the other way round.

    Returns:
        Boxes (k, 4), at most ``settings.boxes``, at least one if there is any.
    """
    boxes = torch.cat([truth.to(boxes), boxes])
    best, _ = match_boxes(boxes, truth)
    usable = is_usable(boxes, instances)
    positive = torch.nonzero(best >= settings.positive_iou).flatten()
    near = torch.nonzero((best < settings.positive_iou) & (best >= settings.near_iou) & usable)
    far = torch.nonzero((best < settings.near_iou) & usable)
    chosen = _some(positive, int(settings.boxes * settings.positive_share + 1e-9))
    room = settings.boxes - len(chosen)
    near, far = near.flatten(), far.flatten()
    wanted = min(max(round(room * settings.near_share), room - len(far)), len(near))
    taken = [chosen, _some(near, wanted), _some(far, room - wanted)]
    return boxes[torch.cat(taken)]


def _some(indices: Tensor, count: int) -> Tensor:
    """Return at most ``count`` of the indices, chosen at random."""
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
