"""What all tests share: a small made city, and one thread a process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from synthcity import make_city
from tiny_trainings import add_tiny_encoders

# Two test processes on two cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made city of six small training chips and two test chips; not to be changed."""
    directory = tmp_path_factory.mktemp("city")
    make_city(directory, chips=6, test_chips=2, size=160, seed=3)
    return directory


@pytest.fixture(scope="module")
def tiny_encoders() -> Iterator[None]:
    """Encoders for the tests of a module to which it does not matter what networks are like."""
    with pytest.MonkeyPatch.context() as patch:
        add_tiny_encoders(patch)
        yield
