"""All cases of the campaign, quick ones first."""

from faults.case import Case
from faults.disk_cases import disk_cases
from faults.label_cases import label_cases
from faults.machine_cases import machine_cases
from faults.moment_cases import moment_cases
from faults.recipe_cases import recipe_cases
from faults.scale_cases import scale_cases
from faults.state_cases import state_cases
from faults.table_cases import table_cases
from faults.tiff_cases import tiff_cases
from faults.weight_cases import weight_cases


def all_cases() -> list[Case]:
    """Return all cases in playing order."""
    return [
        *table_cases(), *recipe_cases(), *label_cases(), *tiff_cases(), *weight_cases(),
        *state_cases(), *disk_cases(), *machine_cases(), *moment_cases(), *scale_cases(),
    ]  # fmt: skip
