"""Switch off other packages' bars, warnings and telemetry before they are imported; what the user has set stays."""

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
}


def silence(environ: MutableMapping[str, str]) -> None:
    """Their bars would break ours, and nothing may be sent that nobody asked for."""
    for name, value in SETTINGS.items():
        environ.setdefault(name, value)
