"""The library of native passes: compiled once by the machine's C++ compiler, proven, and kept in the user's cache.

It takes some seconds. What was compiled is used where it gives what the kernels' plain forms give, and sooner;
whatever else happens, those are there. Nothing but the language's own library is needed, no headers of Python's or
PyTorch's. Threads are those of PyTorch: it is linked with the OpenMP library that this process has loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from tunesmith.core.cache import Cache, user_cache
from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Warning
from tunesmith.core.run import RunFolder
from tunesmith.kernels.block_attention import block_attention
from tunesmith.kernels.cross_entropy import chunked_cross_entropy
from tunesmith.kernels.example_groups import UNLIMITED, Attend, kept
from tunesmith.kernels.fused_lora import Terms
from tunesmith.kernels.gated_mlp import gated_mlp
from tunesmith.kernels.native_passes import ACTIVATIONS, SOURCES, NativePasses, used
from tunesmith.kernels.rms_norm import rms_norm
from tunesmith.kernels.rotary import rotary
from tunesmith.models.rates import compiler, processor_name
from tunesmith.recipe import TrainSettings
from tunesmith.training.choices import Choice, decided

STEP = "train"
NAME, ATTENTION = "native", "native_attention"
"""Of the choices."""
WORTH_IT = 1.05
"""The passes are used where half of the kernels are so many times as fast as with PyTorch's operations."""
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math"),
    *("-fassociative-math", "-fno-signed-zeros"),  # sums in any order; NaN and infinity stay what they are
)
OPENMP = ("libgomp", "libiomp5", "libomp")
"""Libraries that have the functions which g++ calls for `#pragma omp parallel`."""
SECONDS = 120.0
"""After so many a compiler is given up."""
LIMIT_BYTES = 2**24
"""Of all libraries that are kept, some 50 kB each."""
_Work = Callable[[torch.dtype], list[Tensor]]
LIBRARY, VERDICT = "passes.so", "verdict.json"
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}
"""Of the largest number of a result, between native and plain passes."""


@dataclass(frozen=True)
class Found:
    """The passes, if they are to be used, and why or why not in words."""

    passes: NativePasses | None
    why: str

    def line(self) -> str:
        """What the kernels take, and why, in words."""
        taken = "native passes" if self.passes else "PyTorch's operations"
        return f"{taken}: {self.why}"


def settle_native(run: RunFolder, settings: TrainSettings, device: torch.device, emit: Emit) -> Found:
    """The passes of a run: decided when it begins and kept, since others would change last digits."""
    here = wished(settings, device)
    if settings.native == "off":
        return here
    attends_here = here.passes is not None and here.passes.attends
    choice = decided(run, NAME, lambda: Choice(here.passes is not None, here.why))
    attends = decided(run, ATTENTION, lambda: Choice(attends_here, here.why)).value
    lost = "passes" if choice.value and here.passes is None else "attention" if attends and not attends_here else ""
    if lost:
        text = f"the run began with native {lost} and goes on without ({here.why}): last digits will differ"
        emit(Warning(STEP, "no_native_passes", text))
        return here
    if not choice.value or here.passes is None:
        return Found(None, choice.why)
    return Found(here.passes if attends == attends_here else here.passes.without_attention(), choice.why)


def wished(settings: TrainSettings, device: torch.device) -> Found:
    """The passes that a new run would take."""
    if settings.native == "off":
        return Found(None, "train.native is off")
    return native_passes() if device.type == "cpu" else Found(None, "native passes are for processors")


@cache
def native_passes() -> Found:
    """What the cache has for this processor and compiler, or what is compiled and proven now."""
    name = compiler()
    if not name:
        return Found(None, "no C++ compiler")
    try:
        version = _run([*name.split(), "-dumpfullversion", "-dumpversion"]).strip()
        folder = Cache(user_cache() / "native", LIMIT_BYTES).open(_key(name, version), partial(_make, name))
        verdict = json.loads((folder / VERDICT).read_text(encoding="utf-8"))
        ratio, is_right, attention = float(verdict["ratio"]), bool(verdict["is_right"]), float(verdict["attention"])
        passes = NativePasses(folder / LIBRARY, attends=attention >= WORTH_IT)
    except (OSError, AttributeError, UserError, ValueError, KeyError, subprocess.SubprocessError) as fault:
        return Found(None, f"not compiled: {_first_line(fault)}")
    by = f"{Path(name.split()[0]).name} {version}"
    if not is_right:
        return Found(None, f"what {by} made is not what PyTorch computes")
    if ratio < WORTH_IT:
        return Found(None, f"native passes by {by} are {ratio:.2f} times as fast, which does not pay")
    of_attention = f", attention {attention:.1f} times" if passes.attends else ""
    return Found(passes, f"{ratio:.1f} times as fast as PyTorch's operations{of_attention}, by {by}")


def _make(name: str, draft: Path) -> None:
    """Compile, prove, and write down what came of it."""
    library = draft / LIBRARY
    threads = [] if "clang" in name else _openmp()  # clang's code calls a library of its own
    command = name.split()
    objects = []
    for source in sorted(SOURCES.glob("*.cpp")):
        objects.append(draft / f"{source.stem}.o")
        _run([*command, *FLAGS, *(["-fopenmp"] if threads else []), "-c", str(source), "-o", str(objects[-1])])
    _run([*command, "-shared", *map(str, objects), "-o", str(library), *threads])
    for one in objects:
        one.unlink()
    try:
        verdict = _verdict(library)
    except OSError as fault:  # the folder may hold no programs, or the compiler be one for another machine
        raise ValueError("what was compiled cannot be loaded") from fault
    _random.cache_clear()
    (draft / VERDICT).write_text(json.dumps(verdict), encoding="utf-8")


def _verdict(library: Path) -> dict[str, float | bool]:
    """Whether the passes give what their plain forms give, and how many times as fast the middle one of them is.

    Attention has a ratio of its own, 0 where the processor has not what its pass takes: there are processors that
    have, and multiply faster in another way.
    """
    passes, with_attention = NativePasses(library, attends=False), NativePasses(library)
    is_right, ratios = _compared([(work, dtype) for dtype in TOLERANCE for work in _WORKS], None, passes)
    attention = 0.0
    if with_attention.attends:
        works: list[tuple[_Work, torch.dtype]] = [(work, torch.bfloat16) for work in _ATTENTIONS]
        is_right_too, attentions = _compared(works, passes, with_attention)
        is_right, attention = is_right and is_right_too, median(attentions)
    return {"is_right": is_right, "ratio": median(ratios), "attention": attention}


def _compared(
    works: Sequence[tuple[_Work, torch.dtype]], before: NativePasses | None, after: NativePasses
) -> tuple[bool, list[float]]:
    """Whether the works' outputs and gradients are the same with both, and how many times as fast they are after."""
    is_right, ratios = True, []
    for work, dtype in works:
        results, seconds = [], []
        for some in (before, after):
            with used(some):
                results.append(work(dtype))
                seconds.append(_best_seconds(partial(work, dtype)))
        ratios.append(seconds[0] / seconds[1])
        for expected, found in zip(*results, strict=True):
            largest = float(expected.float().abs().max())
            difference = float((expected.float() - found.float()).abs().max())
            is_right &= difference <= TOLERANCE[dtype] * largest  # False for NaN
    return is_right, ratios


def _norm(dtype: torch.dtype) -> list[Tensor]:
    x, weight = _states(1, 500, 576, dtype=dtype), _states(576, dtype=dtype)
    return _with_gradients(rms_norm(x, weight, 1e-5), x, weight)


def _turn(dtype: torch.dtype) -> list[Tensor]:
    x, angles = _states(1, 500, 9, 64, dtype=dtype), _states(1, 500, 64, dtype=dtype).detach()
    return _with_gradients(rotary(x.transpose(1, 2), angles.cos(), angles.sin()), x)


def _mlp(dtype: torch.dtype) -> list[Tensor]:
    x = _states(1, 500, 24, dtype=dtype)
    gate, up, down = (Terms(_states(*shape, dtype=dtype)) for shape in ((1536, 24), (1536, 24), (24, 1536)))
    return [one for kind in ACTIVATIONS for one in _with_gradients(gated_mlp(x, gate, up, down, kind), x)]


def _attend(dtype: torch.dtype, longest: int = 100, left: int = UNLIMITED, right: int = 0) -> list[Tensor]:
    query, key = _states(1, 500, 9, 64, dtype=dtype), _states(1, 500, 3, 64, dtype=dtype)
    value = _states(1, 500, 3, 64, dtype=dtype, seed=1)
    bounds = [(start, min(start + longest, 500)) for start in range(0, 500, longest)]
    spans = torch.tensor([(0, *bound, *bound) for bound in bounds])
    num_kept = kept(spans.tolist(), left, right)
    states = [one.transpose(1, 2) for one in (query, key, value)]
    output = block_attention(states[0], states[1], states[2], spans, Attend(0.125, left, right), num_kept=num_kept)
    return _with_gradients(output, query, key, value)


def _lose(dtype: torch.dtype) -> list[Tensor]:
    hidden, head = _states(50, 24, dtype=dtype), _states(10_000, 24, dtype=dtype).detach()
    return _with_gradients(chunked_cross_entropy(hidden, head, torch.arange(50), z_loss=0.1), hidden)


_WORKS: tuple[_Work, ...] = (_norm, _turn, _mlp, _attend, _lose)
"""The kernels that have native passes, each on random states, forward and backward: its output and gradients."""
_ATTENTIONS: tuple[_Work, ...] = (
    _attend,
    partial(_attend, longest=190),
    partial(_attend, longest=450, left=100),
    partial(_attend, longest=230, right=UNLIMITED),
)


def _states(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return _random(shape, sum(shape) + seed).to(dtype).detach().requires_grad_()


@cache
def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    """Drawn once, since it would be most of the times."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _with_gradients(output: Tensor, *leaves: Tensor) -> list[Tensor]:
    upstream = torch.empty_like(output).copy_(_states(*output.shape, dtype=output.dtype).detach())  # laid out as it is
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def _best_seconds(work: Callable[[], object], times: int = 4) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _run(command: list[str]) -> str:
    """What a command prints.

    Raises:
        OSError, subprocess.SubprocessError: It is not there, fails or does not end.
    """
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout


def _openmp() -> list[str]:
    """The OpenMP library of this process, whose threads PyTorch's operations run on; none where it has none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            path = line[line.find("/") :] if "/" in line else ""
            if path and Path(path).name.startswith(OPENMP):
                return [path]
    return []


def _key(name: str, version: str) -> str:
    """What decides the library's bytes and what they are worth."""
    here = (processor_name(), _openmp(), torch.__version__, torch.get_num_threads())
    parts = ([path.read_bytes() for path in sorted(SOURCES.iterdir())], name, version, FLAGS, *here)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _first_line(fault: Exception) -> str:
    printed = getattr(fault, "stderr", None)
    lines = (printed or str(fault) or type(fault).__name__).strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0])
