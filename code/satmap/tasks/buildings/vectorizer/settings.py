"""What the building vectoriser can be told."""

from typing import Any

from pydantic import Field, model_validator

from satmap.settings import Settings


class BuildingSettings(Settings):
    """What the building vectoriser can be told; areas in pixels, as the challenges count them.

    The defaults are those that SpaceNet 4's solutions found to work.

    Attributes:
        seed: strength from which a pixel is surely inside one building, 0..1; strength is body
            probability x (1 - contact) x (1 - border).
        seed_px: smaller seeds are dropped.
        low: body probability from which a pixel belongs to a building that has a seed, 0..1.
        certain: body probability that a building without a seed reaches somewhere, 0..1.
        split: two seeds are two buildings if the strength between them is below this share of the
            weaker one's, 0..1.
        seam: they are one building if the seam between them is longer than so many times the root
            of the smaller one's area: what another encloses is a part of it. A wall of attached
            houses takes 1 to 2, a square within a roof 4.
        least_px: smaller buildings are dropped, and no smaller part is split off.
        hole_px: smaller holes are filled.
        dilate_px: every building grows by a square of so many pixels a side, up and to the left as
            an even one has no middle; 0 and 1 leave it. Two may then share pixels.
        simplify_px: tolerance of the outlines, where area and overlap with the mask stay.
        right_angles: walls that nearly run along their building's main directions do so exactly,
            where area and overlap stay; walls that buildings share stay shared.
        least_confidence: buildings with a lower mean probability x square root of the area are
            dropped, where no confidence model rates them.
        least_iou: where one does, those are dropped that may expect a lower intersection over union
            with the truth, 0..1. To F1 a false building costs as much as a missed one; average
            precision takes the surest first, loses by no building, and wants 0.
    """

    seed: float = Field(0.7, gt=0, lt=1)
    seed_px: float = Field(20, ge=0, le=1e6)
    low: float = Field(0.3, gt=0, lt=1)
    certain: float = Field(0.5, gt=0, le=1)
    split: float = Field(0.8, ge=0, le=1)
    seam: float = Field(3.0, gt=0, le=1e6)
    least_px: float = Field(100, ge=0, le=1e9)
    hole_px: float = Field(16, ge=0, le=1e9)
    dilate_px: int = Field(0, ge=0, le=64)
    simplify_px: float = Field(1.0, ge=0, le=100)
    right_angles: bool = False
    least_confidence: float = Field(0.0, ge=0, le=1e9)
    least_iou: float = Field(0.3, ge=0, le=1)

    @model_validator(mode="after")
    def _low_is_lowest(self) -> "BuildingSettings":
        if self.low > min(self.seed, self.certain):
            raise ValueError("low is above seed or certain")
        return self


class BuildingSettingsByCategory(BuildingSettings):
    """Settings of which some differ between categories of looks.

    Attributes:
        categories: category -> the settings that differ there, such as
            ``{"very off-nadir": {"least_px": 250}}``.
    """

    categories: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def of(self, category: str | None) -> BuildingSettings:
        """The settings of a category; those of all for None and for one that is not listed."""
        common = self.model_dump(exclude={"categories"})
        return BuildingSettings(**{**common, **self.categories.get(category or "", {})})

    @model_validator(mode="after")
    def _each_makes_sense(self) -> "BuildingSettingsByCategory":
        for category in self.categories:
            self.of(category)
        return self
