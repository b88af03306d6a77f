"""Shared test setup: a small synthetic city, and one thread per process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from synthcity import make_city
from tiny_trainings import add_tiny_encoders

# On a busy machine an example or its generation may take long, which is no fault.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# Two test processes on two cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic city of six small training chips and two test chips; tests must not change it."""
    directory = tmp_path_factory.mktemp("city")
    make_city(directory, chips=6, test_chips=2, size=160, seed=3)
    return directory


@pytest.fixture(scope="module")
def tiny_encoders() -> Iterator[None]:
    """Add tiny encoders for test modules that do not depend on the architecture."""
    with pytest.MonkeyPatch.context() as patch:
        add_tiny_encoders(patch)
        yield
