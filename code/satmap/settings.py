"""What all groups of settings have in common."""

from pydantic import BaseModel, ConfigDict, ValidationError

from satmap.io.text import printable


class Settings(BaseModel):
    """Frozen values; unknown keys, infinities and NaN are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def first_fault(error: ValidationError) -> str:
    """Return where the first fault of a file's content is, and what it is, for a message."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{printable(place, 80)}: {printable(first['msg'], 200)}"
