"""Silence around calls into transformers and peft, whose bars and warnings our events and checks replace."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from logging import ERROR, getLogger
from typing import Any

import transformers.utils.logging

logging: Any = transformers.utils.logging
# bitsandbytes tells of every product it rounds, and, when peft imports it, of a kernel that it could download.
getLogger("bitsandbytes").setLevel(ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it transformers shows no bars and no warnings; its settings are put back afterwards."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
