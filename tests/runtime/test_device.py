"""GPUs that a build of torch can use, and the messages for others."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import satmap.cli.checks
import satmap.runtime.device
from satmap.cli import main
from satmap.errors import SatmapError
from satmap.runtime.device import has_kernels, visible_gpus

# Architectures in torch's wheels for CUDA 13 and for CUDA 12.6.
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
CUDA_12 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.mark.parametrize(
    ("capability", "compiled", "runs"),
    [
        ((7, 0), CUDA_13, False),  # V100
        ((7, 0), CUDA_12, True),
        ((7, 5), CUDA_13, True),  # T4
        ((8, 9), CUDA_13, True),  # L4: code for 8.6 runs on 8.9
        ((8, 0), ["sm_86"], False),  # but not on 8.0
        ((9, 0), ["sm_80"], False),  # nor on another major
        ((13, 2), CUDA_13, True),  # PTX runs on all that come
        ((9, 0), ["compute_80"], True),
        ((7, 5), ["compute_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["compute_100f"], False),
        ((9, 0), ["gfx90a"], False),  # AMD's names
        ((9, 0), [], False),
    ],
)
def test_kernels(capability: tuple[int, int], compiled: list[str], runs: bool) -> None:
    assert has_kernels(capability, compiled) is runs


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: Sequence[tuple[int, int]],
    compiled: list[str] = CUDA_13,
    available: bool = True,
) -> None:
    """Simulate a machine with GPUs of these capabilities."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available and bool(capabilities))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: compiled)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")


def test_all_gpus_are_used_where_torch_has_kernels_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, [(7, 5), (8, 0)])
    assert visible_gpus("auto") == visible_gpus("cuda") == 2
    assert visible_gpus("cuda:1") == visible_gpus("cpu") == 0
    pretend(monkeypatch, [(7, 0)] * 4, CUDA_12)
    assert visible_gpus("auto") == 4


def test_a_gpu_without_kernels_ends_the_run_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, [(7, 5), (7, 0)])
    with pytest.raises(SatmapError, match=r"GPU 1 \(Card 1\) has compute capability 7.0.*cuda12"):
        visible_gpus("auto")
    # Without weights a prediction would end before it looks for GPUs.
    monkeypatch.setattr(satmap.cli.checks, "check_prediction", lambda *arguments: None)
    for arguments in (["train"], ["predict", str(tmp_path / "out.csv")]):
        with pytest.raises(SystemExit) as ended:
            main([arguments[0], str(tmp_path), *arguments[1:]])
        assert ended.value.code == 1
        assert "compute capability 7.0" in capsys.readouterr().err
    # An explicit CPU is always possible.
    assert visible_gpus("cpu") == 0


def test_an_old_driver_is_an_error_instead_of_a_cpu_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, [(8, 0)], available=False)
    with pytest.raises(SatmapError, match="driver is too old"):
        visible_gpus("auto")


def test_a_container_without_gpus_on_a_machine_with_a_driver_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(satmap.runtime.device, "_DRIVER", tmp_path / "version")
    assert visible_gpus("auto") == 0
    assert capsys.readouterr().err == ""
    (tmp_path / "version").touch()
    assert visible_gpus("auto") == 0
    assert "--gpus all" in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus("auto") == 0
    assert capsys.readouterr().err == ""
