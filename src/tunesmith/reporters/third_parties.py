"""Switch off other packages' bars, warnings, telemetry and busy waiting before they are imported.

What the user has set stays. OpenMP's threads spin while they wait for each other, which is harmless on an idle machine
and ruins a shared one: with other work on the same 2 cores a training step took 2 to 3 times as long.
"""

from __future__ import annotations

from collections.abc import MutableMapping

SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "BITSANDBYTES_NOWELCOME": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def silence(environ: MutableMapping[str, str]) -> None:
    """Their bars would break ours, and nothing may be sent that nobody asked for."""
    for name, value in SETTINGS.items():
        environ.setdefault(name, value)
