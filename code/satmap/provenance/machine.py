"""Record the software and hardware that a result depends on besides its inputs."""

import hashlib
import platform
import re
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

# A checkout, or the container's copy of one, has requirements.lock here; an installed wheel has
# none.
_ROOT = _PACKAGE.parents[1]


class Software(Settings):
    """Versions of the software.

    Attributes:
        commit: git commit of the checkout; None if satmap does not run from a checkout.
        sources: SHA-256 over the package's own files, which reveals local changes.
        lock: SHA-256 of ``requirements.lock``; None if there is none.
        packages: installed versions of the packages that satmap requires.
    """

    satmap: str
    commit: str | None
    sources: str
    lock: str | None
    python: str
    packages: dict[str, str]


class Hardware(Settings):
    """Hardware of the machine, as this process sees it.

    Attributes:
        device: device of the networks, ``cpu`` or ``cuda``. On a CPU, ``gpu`` and the fields after
            it are None or empty.
        precision: precision of the networks, ``bfloat16`` or ``float32``.
        instructions: vector instructions of the processor that torch uses.
        cores: number of cores that this process may use.
        threads: number of threads that torch uses.
        gpu: name of the GPU that networks run on.
        capability: compute capability of that GPU.
        gpus: names of all visible GPUs.
        cuda: CUDA version that torch was built for.
        system: operating system, kernel and architecture.
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
    """Return the software of this process; cached, determined without network access."""
    lock = _ROOT / "requirements.lock"
    return Software(
        satmap=satmap.__version__,
        commit=_commit(),
        sources=_sources(),
        lock=hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        python=platform.python_version(),
        packages=_packages(),
    )


def this_hardware(device: torch.device) -> Hardware:
    """Return the hardware of this machine with the given device."""
    on_gpu = device.type == "cuda"
    capability = torch.cuda.get_device_capability(device) if on_gpu else ()
    gpus = torch.cuda.device_count() if on_gpu else 0
    cudnn = torch.backends.cudnn.version() if on_gpu else None  # type: ignore[no-untyped-call]
    return Hardware(
        device=device.type,
        precision=precision(device),
        cpu=_cpu(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=available_cores(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if on_gpu else None,
        capability=".".join(map(str, capability)) or None,
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(gpus)),
        cuda=torch.version.cuda if on_gpu else None,
        cudnn=str(cudnn) if cudnn else None,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def differences(
    ours: tuple[Software, Hardware], theirs: tuple[Software, Hardware]
) -> dict[str, tuple[str, str]]:
    """Return differences that may change the bytes of a result: both values by name.

    The number of GPUs and cores, the commit and the kernel do not count. The number of threads
    counts on a CPU, because it changes the order of sums.
    """
    sides = [_decisive(software, hardware) for software, hardware in (ours, theirs)]
    return {
        name: (sides[0].get(name, "-"), sides[1].get(name, "-"))
        for name in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(name) != sides[1].get(name)
    }


def _decisive(software: Software, hardware: Hardware) -> dict[str, str]:
    sources = f"{software.satmap} {software.sources[:12]}"
    names = ["device", "precision", "cpu", "instructions"]
    names += ["threads"] if hardware.device == "cpu" else ["gpu", "capability", "cuda", "cudnn"]
    facts = {"satmap's sources": sources, "python": software.python, **software.packages}
    return facts | {name: str(getattr(hardware, name)) for name in names}


def _commit() -> str | None:
    if not (_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    # git is not installed, or does not trust the owner of the checkout.
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


def _packages() -> dict[str, str]:
    """Return the installed versions of satmap's requirements, without the optional ones."""
    try:
        required = metadata.requires("satmap") or []
    except metadata.PackageNotFoundError:
        # satmap runs from its sources without being installed.
        required = []
    # The name alone: ``torch`` of ``torch>=2.11,!=2.13.*``.
    names = [re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line]
    versions = {name: metadata.version(name) for name in sorted(names, key=str.lower)}
    # torch's own version string also names the CUDA version that it was built for.
    return versions | {"torch": torch.__version__}


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            lines = [line for line in file if line.startswith("model name")]
    except OSError:
        lines = []
    return lines[0].partition(":")[2].strip() if lines else platform.processor()
