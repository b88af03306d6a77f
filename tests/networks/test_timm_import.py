"""satmap loads only parts of timm and torchvision, which stay complete for others."""

import subprocess
import sys

from repository import ROOT

# torch's compiler and what it needs; the rest of timm and torchvision.
NEEDLESS = (
    "torch._dynamo", "sympy", "torchvision.datasets", "torchvision.transforms",
    "timm.data.loader", "timm.models.beit",
)  # fmt: skip

SCRIPT = f"""
import sys

import satmap.prediction.run
from satmap.networks.encoders import ENCODERS, build_encoder, pretrained_config

build_encoder("efficientnet_lite0", 3)
assert all(pretrained_config(name).first_conv for name in ENCODERS)
print([name for name in {NEEDLESS} if name in sys.modules])

import timm
import torch
import torchvision
from satmap.networks import timm_import

assert timm.create_model is timm_import.create_model
assert timm.layers.BatchNormAct2d is timm_import.BatchNormAct2d
assert len(timm.list_models()) > 1000 and timm.data.create_transform
assert timm.layers.norm_act.FrozenBatchNorm2d is torchvision.ops.misc.FrozenBatchNorm2d
assert torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
assert torchvision.models.resnet18 and torchvision.transforms.Resize
"""


def test_prediction_loads_few_modules_and_the_packages_stay_complete() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        env={"PYTHONPATH": str(ROOT / "code")},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
