"""What the road vectoriser can be told."""

from pydantic import Field, model_validator

from satmap.settings import Settings


class RoadSettings(Settings):
    """What the road vectoriser can be told; lengths in metres, areas in square metres.

    Attributes:
        smooth_m: standard deviation of the Gaussian blur of the road plane.
        high: probability of certain road, 0..1.
        low: probability from which a pixel is road where no certain road is near, 0..1.
        apart_m: how near that is.
        object_m2: smaller objects are dropped.
        hole_m2: smaller holes are filled.
        border_m: the plane goes on so far beyond the image's edge while thinning.
        spur_m: shorter dead ends are pruned; doubtful ones, whose probability is low beside the
            image's other roads, up to four times as long.
        merge_m: junctions linked by less road become one.
        component_m: connected parts of less road are dropped if doubtful; certain ones need a
            quarter, and all need less where they leave the image.
        simplify_m: tolerance of Douglas-Peucker.
        gap_m: aligned free ends with no more open ground between them are joined without evidence.
        tee_m: a free end with no more open ground before a road ahead is led to it without
            evidence.
        edge_m: a free end so near to the image's edge ahead is led to it without evidence.
        bridge_m: reach of all three with evidence.
        bridge_degrees: greatest angle between a road and a bridge.
        bridge_probability: mean road probability along a bridge that counts as evidence, 0..1.
        speed_evidence: least sum over the speed bins of the mean probability along a road, 0..1.
        default_speed_mph: speed where the planes know none, miles an hour.
    """

    smooth_m: float = Field(0.4, ge=0, le=10)
    high: float = Field(0.6, gt=0, le=1)
    low: float = Field(0.25, gt=0, le=1)
    apart_m: float = Field(2.0, ge=0, le=20)
    object_m2: float = Field(4.0, ge=0, le=10000)
    hole_m2: float = Field(9.0, ge=0, le=10000)
    border_m: float = Field(4.0, ge=0, le=100)
    spur_m: float = Field(5.0, ge=0, le=1000)
    merge_m: float = Field(4.0, ge=0, le=100)
    component_m: float = Field(36.0, ge=0, le=10000)
    simplify_m: float = Field(0.6, ge=0, le=100)
    gap_m: float = Field(16.0, ge=0, le=200)
    tee_m: float = Field(10.0, ge=0, le=200)
    edge_m: float = Field(3.0, ge=0, le=200)
    bridge_m: float = Field(33.0, ge=0, le=200)
    bridge_degrees: float = Field(30.0, ge=0, le=90)
    bridge_probability: float = Field(0.2, ge=0, le=1)
    speed_evidence: float = Field(0.05, gt=0, le=1)
    default_speed_mph: float = Field(25.0, ge=1, le=200)

    @model_validator(mode="after")
    def _low_is_not_high(self) -> "RoadSettings":
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g}, above high, which is {self.high:g}")
        return self
