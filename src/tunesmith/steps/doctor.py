"""What is right and wrong with this machine, before anything is trained or served on it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Finished, Progress, Started, silent
from tunesmith.core.home import Home
from tunesmith.core.quantities import gib

STEP = "doctor"
PORT = 8321
SHOWN_PACKAGES = ("torch", "transformers", "peft")
NEEDED_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "fastapi", "sqlalchemy")
LITTLE_DISK, NO_DISK = 5 * 2**30, 2**29
LITTLE_MEMORY, NO_MEMORY = 2 * 2**30, 2**29
MATRIX_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "bf16": "BF16"}
"""Flags of /proc/cpuinfo that promise bf16 in hardware; whether it is fast is measured."""
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
Level = Literal["good", "note", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at."""

    checks: tuple[Check, ...]

    @property
    def num_problems(self) -> int:
        """What must be mended before work."""
        return sum(check.level == "problem" for check in self.checks)

    @property
    def num_warnings(self) -> int:
        """What may get in the way."""
        return sum(check.level == "warning" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """As `--json` gives it."""
        return {
            "checks": [asdict(check) for check in self.checks],
            "problems": self.num_problems,
            "warnings": self.num_warnings,
        }


def doctor(home: Home, *, port: int = PORT, emit: Emit = silent, environ: Mapping[str, str] = os.environ) -> Diagnosis:
    """Look at everything; a part that fails is a problem, never an exception."""
    looks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("packages", packages),
        ("processor", processor),
        ("accelerator", accelerator),
        ("memory", memory),
        ("disk", lambda: disk(home.runs)),
        ("server", lambda: free_port(port)),
        ("network", lambda: network(environ)),
        ("store", lambda: store(home)),
    )
    emit(Started(STEP))
    checks = []
    for done, (name, look) in enumerate(looks):
        emit(Progress(STEP, done, len(looks), label=name))
        try:
            checks.append(look())
        except UserError as fault:
            checks.append(Check(name, "problem", fault.message, fault.remedy))
    emit(Finished(STEP))
    return Diagnosis(tuple(checks))


def packages() -> Check:
    """Python and the packages that everything needs."""
    versions = {name: _version(name) for name in NEEDED_PACKAGES}
    missing = [name for name, version in versions.items() if not version]
    shown = " · ".join(f"{name} {versions[name]}" for name in SHOWN_PACKAGES if versions[name])
    text = f"Python {platform.python_version()} · {shown}"
    if missing:
        return Check(
            "packages", "problem", f"{text} · missing: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        )
    return Check("packages", "good", text)


def processor() -> Check:
    """Cores, which precision is faster here (measured), and what a compiler is for here."""
    from tunesmith.models.machine import describe
    from tunesmith.models.rates import compiler, measured
    from tunesmith.training.native import native_passes

    machine = describe()
    flags = _cpu_flags()
    unit = next((name for flag, name in MATRIX_UNITS.items() if flag in flags), "")
    head = f"{machine.cores} cores{', ' + unit if unit else ''}"
    if machine.device != "cpu":
        return Check("processor", "good", f"{head}; computing is left to the accelerator")
    kernels = native_passes()
    rates = measured().rates
    flops = max(rates.fp32_flops, rates.bf16_flops) / 1e12
    head += f", {measured().threads} threads: {flops:.2f} TFLOP/s, {rates.bytes_per_second / 1e9:.0f} GB/s"
    native = f"kernels take {kernels.line()}"
    blocks = "blocks are compiled where it pays" if compiler() else "blocks stay as they are"
    only = "" if machine.precision == "bf16" else "only "
    precision = f"bf16 {only}{machine.ratio:.1f} times fp32, so {machine.precision} is used"
    return Check("processor", "good", f"{head}: {precision}; {native}; {blocks}")


def accelerator() -> Check:
    """The device that training would use."""
    import torch

    from tunesmith.models.machine import describe

    machine = describe()
    if machine.device != "cpu":
        kind = "ROCm" if torch.version.hip else "CUDA"
        text = f"{machine.device_name} · {gib(machine.device_memory_bytes)} · {kind} · {machine.precision} is used"
        return Check("accelerator", "good", text)
    unused = [
        name
        for name, is_there in (("MPS", torch.backends.mps.is_available()), ("XPU", torch.xpu.is_available()))
        if is_there
    ]
    if unused:
        return Check("accelerator", "note", f"{unused[0]} is there, but not used by this version; the processor is")
    return Check("accelerator", "note", "none (looked for CUDA, ROCm, MPS, XPU)")


def memory() -> Check:
    """Main memory that is free for this process, a container's limit included."""
    import psutil

    found = psutil.virtual_memory()
    total, free = found.total, found.available
    limit = _container_limit()
    if limit and limit < total:
        total, free = limit, min(free, max(0, limit - psutil.Process().memory_info().rss))
    level: Level = "problem" if free < NO_MEMORY else "warning" if free < LITTLE_MEMORY else "good"
    remedy = "" if level == "good" else "Close other programs, or train a smaller model."
    return Check("memory", level, f"{free / 2**30:.1f} of {gib(total)} free", remedy)


def disk(runs: Path) -> Check:
    """Room where runs are kept."""
    place = _existing(runs)
    free = shutil.disk_usage(place).free
    level: Level = "problem" if free < NO_DISK else "warning" if free < LITTLE_DISK else "good"
    remedy = "" if level == "good" else "Delete old runs, or use another disk: --home DIR"
    return Check("disk", level, f"{gib(free)} free under {runs}/", remedy)


def free_port(port: int) -> Check:
    """Whether `tunesmith serve` could listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            return Check("server", "problem", f"port {port} is not allowed for you", "tunesmith serve NAME --port 8321")
        except (OSError, OverflowError):
            owner = _owner(port)
            by = f" by {owner}" if owner else ""
            return Check("server", "problem", f"port {port} is taken{by}", f"tunesmith serve NAME --port {port + 1}")
    return Check("server", "good", f"port {port} is free")


def network(environ: Mapping[str, str]) -> Check:
    """What could leave the machine: nothing is asked of the network here."""
    token = "HF_TOKEN is set and is never written anywhere" if environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    offline = " · HF_HUB_OFFLINE is set" if environ.get("HF_HUB_OFFLINE", "") not in ("", "0") else ""
    return Check("network", "good", f"not needed; no telemetry; {token}{offline}")


def store(home: Home) -> Check:
    """Whether runs and versions can be written, and the database answers."""
    place = _existing(home.registry)
    if not place.is_dir():
        return Check("store", "problem", f"{place} is a file where a folder is needed", "Use another home: --home DIR")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as fault:
        text = f"{place} cannot be written: {fault.strerror or fault}"
        return Check("store", "problem", text, "Use another home: --home DIR")
    from tunesmith.core.store import Store

    with Store.open(home) as opened:
        opened.check()
        num_models = len(opened.names())
    models = f"{num_models} model{'' if num_models == 1 else 's'}" if num_models else "empty"
    return Check("store", "good", f"{home.registry} can be written · {models}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return next(
        (set(line.partition(":")[2].split()) for line in lines if line.startswith(("flags", "Features"))), set()
    )


def _container_limit() -> int:
    for file in CGROUP_LIMITS:
        try:
            text = Path(file).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return 0


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _owner(port: int) -> str:
    import psutil

    try:
        found = psutil.net_connections("inet")
        pid = next((c.pid for c in found if c.status == "LISTEN" and c.laddr and c.laddr[1] == port and c.pid), None)
        return f"process {pid} ({psutil.Process(pid).name()})" if pid else ""
    except (psutil.Error, OSError):
        return ""
