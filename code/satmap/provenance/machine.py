"""What a result depends on beside its inputs: the software, and the machine that it runs on."""

import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

import satmap
from satmap.runtime.device import precision
from satmap.runtime.resources import available_cores
from satmap.settings import Settings

_PACKAGE = Path(satmap.__file__).parent

# A checkout, or the container's copy of one, has the lock here; an installed wheel has not.
_ROOT = _PACKAGE.parents[1]

_GIT_S = 10.0


class Software(Settings):
    """The programs at work.

    Attributes:
        satmap: its version.
        commit: of the checkout that it runs from; None for any other.
        sources: SHA-256 over the package's own files, which tells a checkout with changes apart.
        lock: SHA-256 of ``requirements.lock``; None where there is none.
        python: its version.
        packages: the versions of what satmap needs, as they are installed.
    """

    satmap: str
    commit: str | None
    sources: str
    lock: str | None
    python: str
    packages: dict[str, str]


class Hardware(Settings):
    """The machine, as a process sees it.

    Attributes:
        device: ``cpu`` or ``cuda``, where networks run.
        precision: ``bfloat16`` or ``float32``, in which they compute.
        cpu: the processor's name.
        instructions: the vector instructions that torch uses of it.
        cores: how many this process may use.
        threads: how many torch computes with.
        gpu: the name of the device; None for a CPU.
        capability: its compute capability.
        gpus: the names of all that are visible.
        cuda: the version that torch was built for; None without GPUs.
        cudnn: the version at work; None without GPUs.
        system: kernel and architecture.
    """

    device: str
    precision: str
    cpu: str
    instructions: str
    cores: int
    threads: int
    gpu: str | None
    capability: str | None
    gpus: tuple[str, ...]
    cuda: str | None
    cudnn: str | None
    system: str


@cache
def this_software() -> Software:
    """What runs here; found out once, without a network."""
    return Software(
        satmap=satmap.__version__,
        commit=_commit(),
        sources=_sources(),
        lock=_lock(),
        python=platform.python_version(),
        packages=_packages(),
    )


def this_hardware(device: torch.device) -> Hardware:
    """The machine, with a device of it."""
    on_gpu = device.type == "cuda"
    capability = torch.cuda.get_device_capability(device) if on_gpu else ()
    cudnn: int | None = None
    if on_gpu:
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return Hardware(
        device=device.type,
        precision=precision(device),
        cpu=_cpu(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=available_cores(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if on_gpu else None,
        capability=".".join(map(str, capability)) or None,
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        if on_gpu
        else (),
        cuda=torch.version.cuda if on_gpu else None,
        cudnn=str(cudnn) if cudnn else None,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def differences(
    ours: tuple[Software, Hardware], theirs: tuple[Software, Hardware]
) -> dict[str, tuple[str, str]]:
    """What may make the same networks give other bytes: name to how it is in both.

    The number of GPUs and of cores, the commit and the kernel do not count; threads do on a CPU,
    which adds up in parts.
    """
    sides = [_decisive(software, hardware) for software, hardware in (ours, theirs)]
    return {
        name: (sides[0].get(name, "-"), sides[1].get(name, "-"))
        for name in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(name) != sides[1].get(name)
    }


def _decisive(software: Software, hardware: Hardware) -> dict[str, str]:
    facts = {
        "satmap's sources": f"{software.satmap} {software.sources[:12]}",
        "python": software.python,
        **software.packages,
        "device": hardware.device,
        "precision": hardware.precision,
        "cpu": hardware.cpu,
        "instructions": hardware.instructions,
    }
    if hardware.device == "cpu":
        return {**facts, "threads": str(hardware.threads)}
    named = {
        "gpu": hardware.gpu,
        "capability": hardware.capability,
        "cuda": hardware.cuda,
        "cudnn": hardware.cudnn,
    }
    return facts | {name: str(value) for name, value in named.items()}


def _commit() -> str | None:
    if not (_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=_GIT_S,
            check=True,
        )
    # No git here, or it does not trust the owner of the checkout.
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _sources() -> str:
    digest = hashlib.sha256()
    files = [path for path in _PACKAGE.rglob("*") if path.suffix in (".py", ".yaml")]
    for path in sorted(files):
        name = path.relative_to(_PACKAGE).as_posix()
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _lock() -> str | None:
    lock = _ROOT / "requirements.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None


def _packages() -> dict[str, str]:
    """Installed versions of satmap's own requirements, without those of its development."""
    try:
        required = metadata.requires("satmap") or []
    except metadata.PackageNotFoundError:
        # Run from its sources without having been installed.
        required = []
    names = [_name_of(line) for line in required if "extra ==" not in line]
    versions = {name: metadata.version(name) for name in sorted(names, key=str.lower)}
    # Its own word says which CUDA it was built for, too.
    return versions | {"torch": torch.__version__}


def _name_of(requirement: str) -> str:
    """``torch>=2.11,!=2.13.*`` is about ``torch``."""
    end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), None)
    return requirement[:end]


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            lines = [line for line in file if line.startswith("model name")]
    except OSError:
        lines = []
    return lines[0].partition(":")[2].strip() if lines else platform.processor()
