"""What a new run takes from the machine's measurements, and a resumed one from its own folder: precision, threads.

Both decide last digits, so a run keeps them (training/choices.py) even where it goes on somewhere else.
"""

from __future__ import annotations

import os

import torch

from tunesmith.core.run import RunFolder
from tunesmith.models.machine import Precision
from tunesmith.models.rates import measured
from tunesmith.training.choices import Choice, choices, decided


def kept_precision(run: RunFolder) -> Precision | None:
    """The precision that a run has computed in; None where it has not begun."""
    kept = choices(run).get("precision")
    if kept is None:
        return None
    return "bf16" if kept.value == "bf16" else "fp32"


def settle(run: RunFolder, precision: Precision, wish: str) -> None:
    """Keep the run's precision, and compute with its number of threads from here on.

    `OMP_NUM_THREADS` decides for a new run where the user has set it, else what was measured to be fastest.
    """
    ratio = measured().rates.ratio if wish == "auto" and not torch.cuda.is_available() else 0.0
    why = f"products are {ratio:.1f} times as fast as in fp32" if ratio else f"model.precision is {wish}"
    decided(run, "precision", lambda: Choice(precision, why))
    threads = decided(run, "threads", _threads)
    torch.set_num_threads(int(threads.value))


def _threads() -> Choice:
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return Choice(torch.get_num_threads(), "OMP_NUM_THREADS")
    found = measured()
    tried = " and ".join(found.tried)
    return Choice(found.threads, f"the fastest of {tried}" if len(found.tried) > 1 else "one for each core")
