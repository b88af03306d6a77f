"""Import the parts of timm that satmap uses, without what the whole of timm loads.

``import timm`` also loads 80 files of other networks, torchvision and torch's compiler, which takes
as long as importing torch itself. Only the ``__init__.py`` of a few packages load all this. They
run here when a name from them is needed for the first time, as in ``timm.list_models()``.
"""

import importlib
import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

# Packages of which a few modules are enough, parents first.
_PACKAGES = (
    "timm",
    "timm.data",
    "timm.models",
    "torchvision",
    "torchvision.models",
    "torchvision.ops",
)

# Packages from which timm's networks import constants, and the modules that define these.
_CONSTANTS = {"timm": "timm.version", "timm.data": "timm.data.constants"}


class _Package(ModuleType):
    """Package whose ``__init__.py`` has not run."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]
        if self.__spec__ and self.__spec__.loader:
            self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _defer(name: str) -> None:
    """Import a package without running its ``__init__.py``, unless it is already imported."""
    if name in sys.modules or (spec := find_spec(name)) is None:
        return
    package = sys.modules[name] = module_from_spec(spec)
    package.__class__ = _Package
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, package)
    if name in _CONSTANTS:
        for constant, value in vars(importlib.import_module(_CONSTANTS[name])).items():
            vars(package).setdefault(constant, value)


for _name in _PACKAGES:
    _defer(_name)

import timm.models.convnext  # noqa: E402
import timm.models.densenet  # noqa: E402
import timm.models.dpn  # noqa: E402
import timm.models.efficientnet  # noqa: E402
import timm.models.inception_resnet_v2  # noqa: E402
import timm.models.inception_v4  # noqa: E402
import timm.models.resnet  # noqa: E402
import timm.models.senet  # noqa: E402
import timm.models.vgg  # noqa: E402, F401
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402
from timm.layers.conv2d_same import Conv2dSame  # noqa: E402
from timm.layers.norm_act import BatchNormAct2d  # noqa: E402
from timm.models._factory import create_model  # noqa: E402
from timm.models._pretrained import PretrainedCfg  # noqa: E402
from timm.models._registry import get_pretrained_cfg  # noqa: E402

__all__ = [
    "IMAGENET_DEFAULT_MEAN",
    "IMAGENET_DEFAULT_STD",
    "BatchNormAct2d",
    "Conv2dSame",
    "PretrainedCfg",
    "create_model",
    "get_pretrained_cfg",
]
