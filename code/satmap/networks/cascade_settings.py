"""Architecture of cascades as recipes state it, importable without torch."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from satmap.settings import Settings

#: Names of the parts of the loss, in the order in which they are shown.
LOSS_PARTS = ("proposal", "proposal_box", "mask", "building", "mask_building", "box")

#: Further parts of networks that sharpen masks or predict their quality.
REFINED, QUALITY = "refined", "quality"

#: Name of the loss of the probability maps, and of their logits among the outputs.
MAPS = "maps"


class ProposalSettings(Settings):
    """Settings of the proposal network.

    Attributes:
        train: in training, number of boxes before suppression, per level, and of proposals after.
        test: the same in prediction.
        image_px: side of the images that ``test`` is for. Larger images, such as larger windows of
            a scene, have more boxes and proposals, in proportion to their area. None for the same
            numbers whatever the size, as in the reference.
        suppression: of two boxes with a larger intersection over union, the better one stays.
        positive_iou: anchors with at least this intersection over union with a building are
            positive. So are the best anchors of each building.
        negative_iou: anchors below this with every building are negative.
        batch: number of anchors per image that the loss uses, at most half of them positive.
        least_px: proposals with a shorter side are dropped, pixels.
        inside_only: whether training leaves out anchors that extend beyond the image.
    """

    train: tuple[PositiveInt, PositiveInt] = (12000, 300)
    test: tuple[PositiveInt, PositiveInt] = (6000, 300)
    image_px: PositiveInt | None = None
    suppression: float = Field(0.7, gt=0, le=1)
    positive_iou: float = Field(0.7, gt=0, le=1)
    negative_iou: float = Field(0.3, ge=0, le=1)
    batch: PositiveInt = 256
    least_px: NonNegativeFloat = 16.0
    inside_only: bool = True

    @model_validator(mode="after")
    def _negative_is_lower(self) -> Self:
        if self.negative_iou > self.positive_iou:
            raise ValueError("negative_iou must not exceed positive_iou")
        return self


class BoxSettings(Settings):
    """Which boxes the first round learns from.

    Attributes:
        boxes: number of boxes per image.
        positive_share: largest share of positive boxes.
        positive_iou: boxes with at least this intersection over union with a building are positive.
        near_iou: negative boxes with at least this intersection over union are near a building.
        near_share: share of near boxes among the negative ones.
    """

    boxes: PositiveInt = 64
    positive_share: float = Field(0.3, gt=0, le=1)
    positive_iou: float = Field(0.5, gt=0, le=1)
    near_iou: float = Field(0.1, ge=0, le=1)
    near_share: float = Field(0.85, ge=0, le=1)

    @model_validator(mode="after")
    def _near_is_lower(self) -> Self:
        if self.near_iou > self.positive_iou:
            raise ValueError("near_iou must not exceed positive_iou")
        return self


class CascadeSettings(Settings):
    """Architecture of a cascade; the defaults are the reference, Multi-task Network Cascades.

    Attributes:
        pyramid: channels of a feature pyramid at strides of 4 and more; None for the encoder's
            feature at stride 16 alone.
        anchors: side lengths of the anchors of each level, pixels.
        ratios: height to width of the anchors.
        proposals: the proposal network.
        sampling: the boxes that the first round learns from.
        warp_px: side of the grid that the features of a box are resampled to.
        feature_px: side of the grid after max-pooling.
        samples: samples per cell of the grid, along each direction.
        mask: fully connected layers, as in the reference, or convolutions.
        mask_px: side of the mask's grid.
        mask_width: width of the mask's layers.
        mask_layers: number of convolutions before the mask is enlarged.
        box_width: width of the two fully connected layers that classify and move a box.
        gated: whether the features are multiplied by the mask before it is classified, as in the
            reference.
        rounds: number of rounds with the same weights; each further round is on the moved boxes.
        refine: whether the encoder's finest feature sharpens masks, to twice the side of the grid.
        quality: whether the network predicts the intersection over union of every mask with its
            building. The score of a building is then that of its box times the quality. Without
            quality it is the score of its mask.
        maps: probability maps that the network also predicts, from the same encoder.
        least_score: boxes with a lower score are left out of the result and of further rounds.
        threshold: mask probability from which a pixel belongs to a building.
    """

    pyramid: PositiveInt | None = None
    anchors: tuple[tuple[PositiveFloat, ...], ...] = Field(((128, 256, 512),), min_length=1)
    ratios: tuple[PositiveFloat, ...] = Field((0.5, 1, 2), min_length=1)
    proposals: ProposalSettings = ProposalSettings()
    sampling: BoxSettings = BoxSettings()
    warp_px: int = Field(28, ge=7)
    feature_px: int = Field(14, ge=7)
    samples: PositiveInt = 2
    mask: Literal["dense", "convolutional"] = "dense"
    mask_px: int = Field(21, ge=7, le=112)
    mask_width: PositiveInt = 256
    mask_layers: PositiveInt = 4
    box_width: PositiveInt = 4096
    gated: bool = True
    rounds: int = Field(2, ge=1, le=4)
    refine: bool = False
    quality: bool = False
    maps: tuple[Literal["building", "border", "contact"], ...] = ()
    least_score: float = Field(0.0, ge=0, lt=1)
    threshold: float = Field(0.4, gt=0, lt=1)

    @model_validator(mode="after")
    def _grids_fit(self) -> Self:
        if self.warp_px % self.feature_px:
            raise ValueError("warp_px must be a multiple of feature_px")
        if self.mask == "convolutional" and self.mask_px != 2 * self.feature_px:
            raise ValueError("convolutional masks have a mask_px of twice feature_px")
        if self.pyramid is None and len(self.anchors) != 1:
            raise ValueError("without a pyramid there is one level, so one list of anchors")
        if len({len(sizes) for sizes in self.anchors}) > 1 or not self.anchors[0]:
            raise ValueError("all levels need the same number of anchors, one or more")
        return self

    @property
    def drawn_px(self) -> int:
        """Side of the grid of the masks that the network returns."""
        return self.mask_px * (2 if self.refine else 1)

    @property
    def loss_parts(self) -> tuple[str, ...]:
        """Names of the parts of the loss, in the order in which they are shown."""
        more = {REFINED: self.refine, QUALITY: self.quality, MAPS: bool(self.maps)}
        return (*LOSS_PARTS, *(name for name, used in more.items() if used))
