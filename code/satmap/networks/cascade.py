"""Cascade that finds buildings as instances: boxes, masks, and whether they are buildings.

Source: Multi-task Network Cascades, https://arxiv.org/abs/1512.04412. A proposal network finds
boxes. For each box the network predicts a mask. From the features, multiplied by the mask, it
predicts whether this is a building, and moves the box. A second round does the same on the moved
boxes with the same weights. Settings (:class:`CascadeSettings`) add a feature pyramid
(https://arxiv.org/abs/1612.03144), convolutional masks (https://arxiv.org/abs/1703.06870), finer
masks from the encoder's finest feature, and the quality of masks
(https://arxiv.org/abs/1903.00241).

Features of boxes come from RoIAlign. Unlike the warping of the original, it passes no gradient to
the boxes. So the loss of the second round does not train the boxes of the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import FeaturePyramidNetwork, roi_align

from satmap.errors import SatmapError
from satmap.networks.cascade_settings import MAPS, QUALITY, REFINED, CascadeSettings
from satmap.networks.encoders import Encoder
from satmap.networks.proposals import (
    ProposalNetwork,
    is_usable,
    make_image_list,
    match_boxes,
    sample_boxes,
)
from satmap.networks.unet import DECODER_WIDTHS, UNet

#: Image sides are padded to a multiple of this.
STRIDE = 32

# Finest stride of the pyramid, and the stride of the feature without one.
_FINEST, _SINGLE = 4, 16
# Scale of the moves of boxes: 1 is a tenth of the box for dx and dy, and a fifth for dw and dh.
_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Side of the grid that boxes are classified from.
_BOX_PX = 7
# Width of the feature that sharpens masks.
_FINE_WIDTH = 16
# A box whose mask has at least this intersection over union with its building is a building.
_MASK_IOU = 0.5
# Number of boxes whose masks prediction computes at a time: few enough for the CPU's cache.
_BOXES_AT_ONCE = 64
# Sides of predicted boxes are at least this long, pixels.
_LEAST_SIDE = 1.0


@dataclass(frozen=True)
class Detections:
    """Buildings that the network found in one image, in its pixels.

    Attributes:
        boxes: float32 (n, 4), left, top, right, bottom.
        scores: float32 (n,), 0..1.
        masks: float32 (n, m, m), building probability on a grid over the box.
    """

    boxes: Tensor
    scores: Tensor
    masks: Tensor


@dataclass(frozen=True)
class _Round:
    """Outputs of one round for the boxes of all images, (n, ...); logits and moves."""

    boxes: list[Tensor]
    building: Tensor
    mask_building: Tensor
    moves: Tensor
    masks: Tensor
    quality: Tensor | None


class CascadeNetwork(nn.Module):
    """Network of the task ``instances``.

    In training it returns the parts of the loss by name, without weights, and as ``maps`` the
    logits of the probability maps, if it has any. In prediction it returns :class:`Detections` per
    image: those of all rounds that reach ``least_score``.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: CascadeSettings,
        widths: Sequence[int] = DECODER_WIDTHS,
        decoder: str = "plain",
    ) -> None:
        """Build an untrained cascade; ``widths`` and ``decoder`` are those of probability maps."""
        super().__init__()
        self.settings = settings
        self.encoder = encoder
        self._stages = len(encoder.stages)
        named = dict(zip(encoder.strides, encoder.channels, strict=True))
        if settings.pyramid:
            self._strides = [stride for stride in encoder.strides if stride >= _FINEST]
            width = settings.pyramid
            self.pyramid = FeaturePyramidNetwork(
                [named[s] for s in self._strides], width, norm_layer=nn.BatchNorm2d
            )
        else:
            self._strides, width = [_SINGLE], named[_SINGLE]
            # Deeper stages are not used.
            if not settings.maps:
                self._stages = encoder.strides.index(_SINGLE) + 1
            for stage in encoder.stages[self._stages :]:
                stage.requires_grad_(False)
        if len(settings.anchors) != len(self._strides):
            raise SatmapError(
                f"the encoder {encoder.name} has {len(self._strides)} levels, so the network needs "
                f"as many lists of anchors, not {len(settings.anchors)}"
            )
        self.proposals = ProposalNetwork(width, settings)
        self.align = _BoxFeatures(self._strides, settings.warp_px, settings.samples)
        self.mask = _mask_head(width, settings)
        features = width * _BOX_PX**2
        self.box_path = _two_layers(features, settings.box_width)
        self.mask_path = _two_layers(features, settings.box_width)
        both = 2 * settings.box_width
        self.building = nn.Linear(both, 1)
        self.mask_building = nn.Linear(both, 1)
        self.move = nn.Linear(both, 4)
        self.quality = nn.Linear(both, 1) if settings.quality else None
        self.refine: _Refinement | None = None
        if settings.refine:
            self.refine = _Refinement(encoder.channels[0], encoder.strides[0], settings)
        self.unet: UNet | None = None
        if settings.maps:
            self.unet = UNet(encoder, settings.maps, widths, decoder)
            # The cascade computes the features, and a weight file must not hold tensors twice.
            del self.unet.encoder
        for layer, spread in ((self.building, 0.01), (self.mask_building, 0.01), (self.move, 1e-3)):
            nn.init.normal_(layer.weight, std=spread)
            nn.init.zeros_(layer.bias)
        self._coder = BoxCoder(_BOX_WEIGHTS)

    @property
    def in_channels(self) -> int:
        """Number of image channels that the network needs."""
        return self.encoder.in_channels

    def forward(
        self,
        images: Tensor,
        boxes: Sequence[Tensor] | None = None,
        instances: Sequence[Tensor] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> "dict[str, Tensor] | list[Detections]":
        """Find buildings, or compute the loss.

        Args:
            images: images from ``encoder.normalize``, float (n, channels, h, w). Smaller ones of a
                batch are padded at the bottom and right.
            boxes: in training, the boxes of the buildings per image, float (k, 4).
            instances: in training, int32 (h, w) per image: 1 + index of the building, 0 for the
                ground, -1 for ignored pixels.
            sizes: height and width of each image; None for those of the batch.
        """
        height, width = images.shape[-2:]
        sizes = [(height, width)] * len(images) if sizes is None else list(sizes)
        images = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE))
        encoded = self._encode(images)
        features, fine = self._features(encoded)
        listed = make_image_list(images, sizes)
        if boxes is None or instances is None:
            proposals, _ = self.proposals(listed, features)
            return self._detect(features, fine, proposals, sizes)
        targets = [
            {"boxes": box, "instances": label} for box, label in zip(boxes, instances, strict=True)
        ]
        proposals, losses = self.proposals(listed, features, targets)
        logits = {}
        if self.unet is not None:
            logits[MAPS] = self.unet.decode(encoded, (images.shape[-2], images.shape[-1]))
        return logits | {
            "proposal": losses["loss_objectness"],
            "proposal_box": losses["loss_rpn_box_reg"],
            **self._losses(features, fine, proposals, boxes, instances, sizes),
        }

    def map_logits(self, images: Tensor) -> Tensor:
        """Return the logits of the probability maps, (n, maps, h, w), of normalised images.

        Height and width must be multiples of ``STRIDE``.
        """
        assert self.unet is not None, "the network has probability maps"
        return self.unet.decode(self._encode(images), (images.shape[-2], images.shape[-1]))

    def _encode(self, images: Tensor) -> dict[int, Tensor]:
        """Return the encoder's features by stride."""
        found = self.encoder(images, self._stages)
        return dict(zip(self.encoder.strides, found, strict=False))

    def _features(self, by_stride: dict[int, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the features by level, and the finest one of the encoder, all float32."""
        features = {str(stride): by_stride[stride] for stride in self._strides}
        if self.settings.pyramid:
            features = self.pyramid(features)
        return {name: value.float() for name, value in features.items()}, by_stride[
            self.encoder.strides[0]
        ].float()

    def _round(self, features: dict[str, Tensor], boxes: list[Tensor]) -> _Round:
        """Predict masks, classes and moves of boxes."""
        settings = self.settings
        aligned = self.align(list(features.values()), boxes)
        if settings.warp_px > settings.feature_px:
            aligned = F.max_pool2d(aligned, settings.warp_px // settings.feature_px)
        aligned = aligned.contiguous(memory_format=torch.channels_last)
        parts = aligned.split(len(aligned) if self.training else _BOXES_AT_ONCE)
        masks = torch.cat([self.mask(part) for part in parts])
        gated = aligned
        if settings.gated:
            gate = F.interpolate(
                masks[:, None].sigmoid(), (settings.feature_px,) * 2, mode="bilinear"
            )
            gated = aligned * gate
        pooled = (F.adaptive_max_pool2d(each, _BOX_PX).flatten(1) for each in (aligned, gated))
        one, other = pooled
        both = torch.cat([self.box_path(one), self.mask_path(other)], dim=1)
        return _Round(
            boxes,
            self.building(both)[:, 0].float(),
            self.mask_building(both)[:, 0].float(),
            self.move(both).float(),
            masks.float(),
            None if self.quality is None else self.quality(both)[:, 0].float(),
        )

    def _moved(self, found: _Round, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Move the boxes of a round and clip them to their images; no gradient."""
        counts = [len(boxes) for boxes in found.boxes]
        moved = self._coder.decode_single(found.moves.detach(), torch.cat(found.boxes))
        return [
            _clipped(each, size)
            for each, size in zip(torch.split(moved, counts), sizes, strict=True)
        ]

    @torch.no_grad()
    def _detect(
        self,
        features: dict[str, Tensor],
        fine: Tensor,
        boxes: list[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        parts: list[list[Detections]] = [[] for _ in boxes]
        for number in range(self.settings.rounds):
            found = self._round(features, boxes)
            scores = found.mask_building.sigmoid()
            if found.quality is not None:
                scores = found.building.sigmoid() * found.quality.sigmoid()
            chosen = scores >= self.settings.least_score
            masks = self._drawn(found, chosen, fine).sigmoid()
            in_image = torch.split(chosen, [len(each) for each in boxes])
            kept = [int(each.sum()) for each in in_image]
            score_of, mask_of = torch.split(scores[chosen], kept), torch.split(masks, kept)
            for part, of_image, use, score, mask in zip(
                parts, boxes, in_image, score_of, mask_of, strict=True
            ):
                part.append(Detections(of_image[use], score, mask))
            if number + 1 < self.settings.rounds:
                moved = self._moved(found, sizes)
                boxes = [each[use] for each, use in zip(moved, in_image, strict=True)]
        return [
            Detections(
                torch.cat([each.boxes for each in part]),
                torch.cat([each.scores for each in part]),
                torch.cat([each.masks for each in part]),
            )
            for part in parts
        ]

    def _drawn(self, found: _Round, chosen: Tensor, fine: Tensor) -> Tensor:
        """Return the logits of the final masks of the chosen boxes; ``chosen`` is bool (n,)."""
        masks = found.masks[chosen]
        if self.refine is None:
            return masks
        counts = [len(boxes) for boxes in found.boxes]
        boxes = [
            box[use] for box, use in zip(found.boxes, torch.split(chosen, counts), strict=True)
        ]
        refined: Tensor = self.refine(fine, boxes, masks)
        return refined.float()

    def _losses(
        self,
        features: dict[str, Tensor],
        fine: Tensor,
        proposals: list[Tensor],
        truth: Sequence[Tensor],
        instances: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Return the sum over the rounds of each part of the loss."""
        chosen = [
            sample_boxes(boxes, each, labels, self.settings.sampling)
            for boxes, each, labels in zip(proposals, truth, instances, strict=True)
        ]
        boxes = [_never_empty(each, size) for each, size in zip(chosen, sizes, strict=True)]
        found = self._round(features, boxes)
        total = self._round_losses(found, fine, truth, instances)
        for _ in range(1, self.settings.rounds):
            moved = self._moved(found, sizes)
            boxes = [
                torch.cat([each.to(near), near]) for each, near in zip(truth, moved, strict=True)
            ]
            found = self._round(features, boxes)
            losses = self._round_losses(found, fine, truth, instances)
            total = {name: value + losses[name] for name, value in total.items()}
        return total

    def _round_losses(
        self,
        found: _Round,
        fine: Tensor,
        truth: Sequence[Tensor],
        instances: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        settings = self.settings
        best, counted, target, moves, areas = [], [], [], [], []
        for boxes, each, labels in zip(found.boxes, truth, instances, strict=True):
            iou, index = match_boxes(boxes, each)
            size = torch.bincount(labels.clamp(min=0).flatten(), minlength=len(each) + 2)
            positive = iou >= settings.sampling.positive_iou
            # Without buildings no box is positive, and the moves do not matter.
            goal = each[index].to(boxes) if len(each) else boxes
            best.append(positive)
            counted.append(positive | is_usable(boxes, labels))
            index, near = index[positive] + 1, boxes[positive]
            areas.append(size[index].to(boxes))
            target.append(truth_in_boxes(labels, near, index, settings.drawn_px))
            moves.append(self._coder.encode_single(goal[positive], near))
        positive, used, share, move, area = map(torch.cat, (best, counted, target, moves, areas))
        drawn = self._drawn(found, positive, fine)
        sides = torch.cat(found.boxes)[positive]
        mask_iou = mask_ious(drawn.detach().sigmoid() >= settings.threshold, share, sides, area)
        is_good = torch.zeros_like(found.mask_building)
        is_good[positive] = (mask_iou >= _MASK_IOU).float()
        coarse = share
        if settings.refine and len(share):
            coarse = F.avg_pool2d(share[:, None], 2)[:, 0]
        wrong = F.smooth_l1_loss(found.moves[positive], move, reduction="sum")
        losses = {
            "mask": _mean(found.masks[positive], (coarse >= settings.threshold).float()),
            "building": _mean(found.building[used], positive[used].float()),
            "mask_building": _mean(found.mask_building[used], is_good[used]),
            "box": wrong / max(len(positive), 1),
        }
        if settings.refine:
            losses[REFINED] = _mean(drawn, (share >= settings.threshold).float())
        if found.quality is not None:
            losses[QUALITY] = _mean(found.quality[positive], mask_iou)
        return losses


class _DenseMask(nn.Sequential):
    """Mask from two fully connected layers, as in the reference: (n, c, f, f) to (n, m, m)."""

    def __init__(self, channels: int, settings: CascadeSettings) -> None:
        side = settings.mask_px
        super().__init__(
            nn.Flatten(),
            nn.Linear(channels * settings.feature_px**2, settings.mask_width),
            nn.ReLU(),
            nn.Linear(settings.mask_width, side**2),
            nn.Unflatten(1, (side, side)),
        )


class _ConvolutionalMask(nn.Sequential):
    """Mask from convolutions, of twice the side of the features: (n, c, f, f) to (n, 2f, 2f)."""

    def __init__(self, channels: int, settings: CascadeSettings) -> None:
        width, layers = settings.mask_width, []
        for _ in range(settings.mask_layers):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        super().__init__(
            *layers,
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.ReLU(),
            nn.Conv2d(width, 1, 1),
            nn.Flatten(1, 2),
        )
        for layer in self:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)


class _Refinement(nn.Module):
    """Sharpens masks with the encoder's finest feature: logits (n, m, m) to (n, 2m, 2m)."""

    def __init__(self, channels: int, stride: int, settings: CascadeSettings) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, _FINE_WIDTH, 1)
        self.align = _BoxFeatures([stride], settings.drawn_px, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(_FINE_WIDTH + 1, _FINE_WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_FINE_WIDTH, _FINE_WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_FINE_WIDTH, 1, 1),
        )
        # At first the masks stay as they are.
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, fine: Tensor, boxes: list[Tensor], masks: Tensor) -> Tensor:
        """Sharpen masks with the feature (images, c, h, w) in the boxes of each image."""
        coarse = F.interpolate(
            masks[:, None].detach().float(), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        aligned = self.align([self.narrow(fine).float()], boxes)
        change: Tensor = self.layers(torch.cat([aligned, coarse.sigmoid()], dim=1))
        return (coarse + change)[:, 0]


class _BoxFeatures(nn.Module):
    """Features of boxes on a grid, by RoIAlign.

    As in feature pyramids, larger boxes use coarser levels: boxes of 224 px that of stride 16.
    torchvision's ``MultiScaleRoIAlign`` is not used. It estimates the strides from the sizes of the
    images, which fails for small images, and it shifts features by half a cell.
    """

    def __init__(self, strides: Sequence[int], side: int, samples: int) -> None:
        super().__init__()
        self._strides, self._side, self._samples = tuple(strides), side, samples

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Resample the features in each box to a grid.

        Args:
            features: (images, c, h, w) of each level, the finest first.
            boxes: (n, 4) of each image, in its pixels.

        Returns:
            (boxes of all images, c, side, side).
        """
        every = torch.cat(list(boxes))
        image = torch.cat([each.new_full((len(each), 1), n) for n, each in enumerate(boxes)])
        regions = torch.cat([image, every], dim=1)
        size = (every[:, 2:] - every[:, :2]).prod(dim=1).sqrt()
        wanted = 16 * size / 224
        level = torch.zeros(len(every), dtype=torch.int64, device=every.device)
        for number, stride in enumerate(self._strides):
            level[wanted >= stride] = number
        shape = len(every), features[0].shape[1], self._side, self._side
        found = features[0].new_zeros(shape)
        for number, (stride, feature) in enumerate(zip(self._strides, features, strict=True)):
            at = torch.nonzero(level == number).flatten()
            part = roi_align(
                feature, regions[at], self._side, 1 / stride, self._samples, aligned=True
            )
            found = found.index_put((at,), part)
        return found


def truth_in_boxes(instances: Tensor, boxes: Tensor, labels: Tensor, side: int) -> Tensor:
    """Return the share of each cell of a grid over a box that its building covers.

    Each cell is sampled at 2 x 2 points; points outside the image count as ground.

    Args:
        instances: int32 (h, w), the building of each pixel.
        boxes: (n, 4) in pixels.
        labels: (n,), the building of each box.
        side: side of the grid.

    Returns:
        float32 (n, side, side), 0..1.
    """
    height, width = instances.shape
    steps = (torch.arange(2 * side, device=boxes.device, dtype=boxes.dtype) + 0.5) / (2 * side)
    x = boxes[:, 0:1] + steps * (boxes[:, 2:3] - boxes[:, 0:1])
    y = boxes[:, 1:2] + steps * (boxes[:, 3:4] - boxes[:, 1:2])
    column, row = x.floor().long(), y.floor().long()
    outside = ((column < 0) | (column >= width))[:, None] | ((row < 0) | (row >= height))[
        :, :, None
    ]
    column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    at = instances[row[:, :, None], column[:, None, :]]
    hit = ((at == labels[:, None, None]) & ~outside).float()
    return F.avg_pool2d(hit[:, None], 2)[:, 0]


def _mask_head(channels: int, settings: CascadeSettings) -> nn.Module:
    if settings.mask == "dense":
        return _DenseMask(channels, settings)
    return _ConvolutionalMask(channels, settings)


def _two_layers(features: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def _mean(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross entropy; without values a 0 that has gradients."""
    if not logits.numel():
        return logits.sum()
    return F.binary_cross_entropy_with_logits(logits, target)


def mask_ious(drawn: Tensor, share: Tensor, boxes: Tensor, areas: Tensor) -> Tensor:
    """Return the intersection over union of predicted masks with whole buildings.

    Args:
        drawn: bool (n, m, m), predicted masks on grids over the boxes.
        share: float (n, m, m), the building's share of each cell.
        boxes: (n, 4) in pixels.
        areas: (n,), pixels of the buildings, inside and outside the boxes.
    """
    cell = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) / drawn.shape[-1] ** 2
    common = (drawn * share).sum(dim=(1, 2)) * cell
    return common / (drawn.sum(dim=(1, 2)) * cell + areas - common).clamp(min=1e-6)


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip boxes to an image of a height and width; their sides stay at least ``_LEAST_SIDE``."""
    limit = boxes.new_tensor([size[1], size[0]])
    start = boxes[:, :2].clamp(min=0).minimum(limit - _LEAST_SIDE)
    end = boxes[:, 2:].minimum(limit).maximum(start + _LEAST_SIDE)
    return torch.cat([start, end], dim=1)


def _never_empty(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the boxes; if there are none, the whole image as a box without a building."""
    return boxes if len(boxes) else boxes.new_tensor([[0, 0, size[1], size[0]]])
