"""What a new run takes from the machine's measurements, and a resumed one from its own folder: precision, threads,
and a GPU's attention.

They decide last digits, so a run keeps them (training/choices.py) even where it goes on somewhere else.
"""

from __future__ import annotations

import os
from typing import Literal, TypedDict

import torch

from tunesmith.core.run import RunFolder
from tunesmith.kernels.packed_attention import kernel_of
from tunesmith.models.machine import Precision, Wish, preferred_precision
from tunesmith.models.rates import measured
from tunesmith.training.choices import Choice, choices, decided, keep
from tunesmith.training.determinism import not_exact
from tunesmith.training.learner import Learner

Threads = int | Literal["auto"]
"""The recipe's `train.threads`."""


class KeptChoices(TypedDict):
    """The choices of a run that goes on, as `Work.prepare` takes them."""

    precision: Precision | None
    attention: str | None


def kept_precision(run: RunFolder) -> Precision | None:
    """The precision that a run has computed in; None where it has not begun."""
    kept = choices(run).get("precision")
    if kept is None:
        return None
    return "bf16" if kept.value == "bf16" else "fp32"


def kept_attention(run: RunFolder) -> str | None:
    """The kernel that a run's packed rows have gone through on a GPU; None where none was chosen."""
    kept = choices(run).get("attention")
    return None if kept is None else str(kept.value)


def kept_choices(run: RunFolder | None) -> KeptChoices:
    """What a run that goes on takes from before its model is loaded; None of it where a run is new."""
    if run is None:
        return {"precision": None, "attention": None}
    return {"precision": kept_precision(run), "attention": kept_attention(run)}


def settle_attention(run: RunFolder, learner: Learner, wish: str) -> None:
    """Keep the kernel that packed rows go through on a GPU."""
    if kernel := kernel_of(learner.model) if learner.layout.is_packed else "":
        why = "the best here that can do all layers and gives what the model gives"
        decided(run, "attention", lambda: Choice(kernel, why if wish == "auto" else f"train.attention is {wish}"))


def settle(run: RunFolder, precision: Precision, wish: Wish, threads: Threads = "auto") -> None:
    """Keep the run's precision, and compute with its number of threads from here on.

    The recipe's `train.threads` decides; with `auto` `OMP_NUM_THREADS` where the user has set it, else what was
    measured to be fastest, and in a run that goes on what it began with.
    """
    ratio = preferred_precision(wish)[1]
    why = f"products are {ratio:.1f} times as fast as in fp32" if ratio else f"model.precision is {wish}"
    decided(run, "precision", lambda: Choice(precision, why))
    found = decided(run, "threads", threads_here) if threads == "auto" else keep(run, "threads", threads_here(threads))
    torch.set_num_threads(int(found.value))


def machine_line(run: RunFolder, precision: Precision) -> str:
    """What a settled run computes with, and why, in words."""
    ratio = preferred_precision("auto")[1]
    speed = f" ({ratio:.1f} times fp32 on this machine)" if precision == "bf16" and ratio else ""
    threads = choices(run)["threads"]
    number = f"{threads.value} thread{'' if threads.value == 1 else 's'}"
    inexact = f" · steps may differ in their last digits: {why}" if (why := not_exact(run)) else ""
    return f"{precision}{speed} · {number} ({threads.why}){inexact}"


def threads_here(wish: Threads = "auto") -> Choice:
    """How many threads a new run computes with on this machine, and why."""
    if wish != "auto":
        return Choice(wish, f"train.threads is {wish}")
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return Choice(torch.get_num_threads(), "OMP_NUM_THREADS")
    found = measured()
    tried = " and ".join(found.tried)
    return Choice(found.threads, f"the fastest of {tried}" if len(found.tried) > 1 else "one for each core")
