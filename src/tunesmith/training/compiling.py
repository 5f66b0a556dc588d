"""Whether a run's blocks are compiled: decided before its first step, by what one block gains and what that costs.

What was measured for a kind of block is kept in the user's cache beside the machine's rates, and so is what was
compiled, so a second run neither measures nor compiles; it reads back what was compiled in seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Progress, Warning
from tunesmith.core.publish import write_json
from tunesmith.core.run import RunFolder
from tunesmith.kernels.compiled_blocks import (
    MAX_KINDS,
    Call,
    CannotCompileError,
    CompiledBlocks,
    calls_of,
    kind_of,
)
from tunesmith.kernels.native_passes import in_use
from tunesmith.models.anatomy import blocks, encoder_blocks
from tunesmith.models.rates import cache_file, compiler, measured
from tunesmith.objectives.base import Batch
from tunesmith.recipe import TrainSettings
from tunesmith.training.choices import Choice, decided
from tunesmith.training.compiled_cache import compiled_kept_in
from tunesmith.training.learner import Learner
from tunesmith.training.recompute import RandomState

STEP = "train"
WORTH_IT = 1.03
"""A block that is so many times as fast is compiled; less is within what two measurements of one block differ by."""
LARGEST_GAIN, USUAL_GAIN = 1.5, 1.15
"""How many times as fast a block gets at most, and usually; before it was measured."""
COLD_SECONDS, WARM_SECONDS = 30.0, 8.0
"""To compile one block, and to read one back; before it was measured (docs/log.md)."""
EFFICIENCY = 0.5
"""Of the machine's product rate that blocks reach at least, before it was measured."""
NUM_TIMES = 4
"""How often a block is timed either way; the fastest counts."""


@dataclass(frozen=True)
class Measured:
    """One kind of model's blocks, plain and compiled: seconds a token of one block, forward and backward."""

    plain: float
    compiled: float
    cold_seconds: float
    """To compile them; 0 where they were read back and never compiled here."""
    warm_seconds: float = 0.0
    """To read them back; 0 where it was not tried."""

    @property
    def ratio(self) -> float:
        """How many times as fast a compiled block is."""
        return self.plain / self.compiled

    @property
    def cost_seconds(self) -> float:
        """Until a run has its compiled blocks, the next time."""
        return self.warm_seconds or min(WARM_SECONDS, self.cold_seconds or WARM_SECONDS)


class Compiling:
    """The compiled blocks of a run, if it has any; `choice` says why, or why not."""

    def __init__(
        self, learner: Learner, settings: TrainSettings, run: RunFolder, emit: Emit, *, is_joint: bool = False
    ) -> None:
        self.learner, self.settings, self.run, self.emit = learner, settings, run, emit
        self.is_joint = is_joint
        self.blocks = _trained_blocks(learner)
        self.compiled: CompiledBlocks | None = None
        self.choice = Choice(False, "not asked yet")

    def choose(self, batches: Callable[[], Sequence[Batch]], num_tokens: int) -> Choice:
        """Compile the blocks where it pays; `batches` gives two micro-batches, `num_tokens` is what the run will see.

        Called before anything else is wrapped around blocks. The same two micro-batches come again when a run goes
        on, so the same code is compiled.
        """
        wish = self.settings.compile
        if wish == "off":
            self.choice = Choice(False, "train.compile is off")
        elif wish == "on":
            self.choice = self._compile(batches, "train.compile is on")
        else:
            self.choice = decided(self.run, "compile", lambda: self._measured_choice(batches, num_tokens))
            if self.choice.value and self.compiled is None:  # a run that goes on
                self.choice = self._compile(batches, self.choice.why)
        return self.choice

    def line(self) -> str:
        """The choice in words."""
        return f"{'compiled' if self.choice.value else 'not compiled'}: {self.choice.why}"

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it training passes take the compiled blocks; afterwards blocks are what they were."""
        if self.compiled is None:
            yield
            return
        self.compiled.use(True)
        try:
            yield
        finally:
            self.compiled.take_off()

    def _compile(self, batches: Callable[[], Sequence[Batch]], why: str) -> Choice:
        try:
            self._make(batches())
        except CannotCompileError as fault:
            text = f"blocks are not compiled: {fault}; the run goes on with them as they are"
            self.emit(Warning(STEP, "not_compiled", text))
            return Choice(False, str(fault))
        return Choice(True, why)

    def _measured_choice(self, batches: Callable[[], Sequence[Batch]], num_tokens: int) -> Choice:
        if reason := why_no_compiler(self.learner.device):
            return Choice(False, reason)
        if not self.blocks:
            return Choice(False, "no block trains")
        if reason := self._too_short(num_tokens):
            return Choice(False, reason)
        file = _file_of(self.blocks, self.learner)
        known = _read(file)
        if known is not None and (reason := _not_worth_it(known, num_tokens * len(self.blocks))):
            return Choice(False, reason)
        try:
            found = self._measure(batches(), known)
        except CannotCompileError as fault:
            return Choice(False, str(fault))
        with contextlib.suppress(OSError, UserError):  # a cache that cannot be written costs the measuring next time
            write_json(file, asdict(found))
        if found.ratio < WORTH_IT:
            self._drop()
            return Choice(False, _slower(found))
        return Choice(True, f"a block is {found.ratio:.2f} times as fast")

    def _too_short(self, num_tokens: int) -> str:
        """Why compiling cannot pay at all, by arithmetic; empty where it may."""
        rates = measured().rates
        flops = rates.bf16_flops if self.learner.precision == "bf16" else rates.fp32_flops
        weights = [weight for block in self.blocks for weight in block.parameters()]
        products = sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)
        seconds = products * num_tokens / (EFFICIENCY * flops)
        known = _read(_file_of(self.blocks, self.learner))
        gain = seconds * (1 - 1 / (LARGEST_GAIN if known else USUAL_GAIN))
        cost = known.cost_seconds if known else COLD_SECONDS
        if self.learner.device.type != "cpu" or gain >= cost:  # a GPU's rate is not measured: its blocks are tried
            return ""
        return f"too short a run: {cost:.0f} s to compile, {gain:.0f} s to gain at best"

    def _make(self, batches: Sequence[Batch]) -> tuple[CompiledBlocks, list[Call]]:
        learner = self.learner
        if self.is_joint:
            raise CannotCompileError("several tasks share the blocks")
        random = RandomState()
        learner.method.set_training(learner.model)
        try:
            calls, *others = [
                calls_of(self.blocks, lambda batch=batch: learner.loss(batch), learner.autocast)  # type: ignore[misc]
                for batch in batches
            ]
            if not calls or len(calls) > MAX_KINDS:
                raise CannotCompileError(f"blocks are of {len(calls)} kinds")
            self.emit(Progress(STEP, 0, 1, "compiling a block"))
            with compiled_kept_in(cache_file().parent / "compiled"):
                self.compiled = self._compiled_for(calls, [call for other in others for call in other])
            self.emit(Progress(STEP, 1, 1, "compiling a block"))
        finally:
            random.restore()
        return self.compiled, calls

    def _compiled_for(self, calls: Sequence[Call], others: Sequence[Call]) -> CompiledBlocks:
        """The blocks, compiled for these calls, which must do for the others."""
        try:
            compiled = CompiledBlocks(self.blocks)
        except RuntimeError as fault:
            raise CannotCompileError(f"torch.compile: {str(fault).splitlines()[0]}") from fault
        try:
            compiled.warm(calls)
            if not all(compiled.fits(call) for call in others):
                raise CannotCompileError("other lengths would be compiled anew")
        except CannotCompileError:
            compiled.take_off()
            raise
        return compiled

    def _measure(self, batches: Sequence[Batch], known: Measured | None) -> Measured:
        started = time.perf_counter()
        compiled, calls = self._make(batches)
        seconds = time.perf_counter() - started
        random = RandomState()
        times = {False: 0.0, True: 0.0}
        for call in calls:
            best = {False: float("inf"), True: float("inf")}
            for _ in range(NUM_TIMES):
                for is_used in (False, True):
                    compiled.use(is_used)
                    best[is_used] = min(best[is_used], _seconds(call))
            times = {key: times[key] + best[key] / _num_positions(call) / len(calls) for key in times}
        compiled.use(False)
        random.restore()
        if known is not None:
            return Measured(times[False], times[True], known.cold_seconds, seconds)
        return Measured(times[False], times[True], seconds)

    def _drop(self) -> None:
        if self.compiled is not None:
            self.compiled.take_off()
        self.compiled = None


def why_no_compiler(device: torch.device) -> str:
    """Why nothing can be compiled for this device; empty where it can."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "Triton is not installed"
    if device.type != "cpu":
        return f"not tried on {device.type}"
    return "" if compiler() else "no C++ compiler"


def require_compiler(settings: TrainSettings, device: torch.device) -> None:
    """Refuse `train.compile=on` where nothing can be compiled.

    Raises:
        UserError: There is no compiler.
    """
    if settings.compile == "on" and (reason := why_no_compiler(device)):
        raise UserError(
            f"blocks cannot be compiled: {reason}.",
            code="no_compiler",
            where="train.compile",
            remedy="Install g++ (on a GPU: triton), or set train.compile=auto.",
        )


def _trained_blocks(learner: Learner) -> tuple[nn.Module, ...]:
    """The blocks that gradients go through."""
    found = []
    for group in (encoder_blocks(learner.model), blocks(learner.model)):
        places = [place for place, block in enumerate(group) if any(w.requires_grad for w in block.parameters())]
        found += group[places[0] :] if places else []
    return tuple(found)


def _not_worth_it(known: Measured, num_positions: int) -> str:
    """Why blocks measured before are not compiled for a run of so many tokens times blocks."""
    if known.ratio < WORTH_IT:
        return _slower(known)
    gain = num_positions * (known.plain - known.compiled)
    if gain < known.cost_seconds:
        return f"too short a run: {known.cost_seconds:.0f} s to compile, {gain:.0f} s to gain"
    return ""


def _slower(found: Measured) -> str:
    return f"a compiled block is {found.ratio:.2f} times as fast, which does not pay"


def _seconds(call: Call) -> float:
    """What a call takes: on a GPU by the clock, on a processor by what the calling thread computes of it.

    Other work on a processor would stretch either by the clock, and what was measured once is kept for later runs.
    """
    is_on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if is_on_gpu else time.thread_time
    started = clock()
    call.run()
    if is_on_gpu:
        torch.cuda.synchronize()
    return clock() - started


def _num_positions(call: Call) -> int:
    states = next(one for one in (*call.args, *call.kwargs.values()) if isinstance(one, torch.Tensor))
    return states.shape[0] * states.shape[1]


def _file_of(some: Sequence[nn.Module], learner: Learner) -> Path:
    """Where what was measured for such blocks on this machine is kept: plain ones with native passes are others."""
    device = torch.cuda.get_device_name() if learner.device.type == "cuda" else "cpu"
    kinds = sorted({repr(kind_of(block)) for block in some})
    key = repr((cache_file().stem, device, learner.precision, learner.layout.is_packed, in_use(), kinds))
    return cache_file().parent / f"compile-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(file: Path) -> Measured | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = Measured(**{name: float(value) for name, value in json.loads(file.read_text("utf-8")).items()})
        if found.plain > 0 and found.compiled > 0:
            return found
    return None
