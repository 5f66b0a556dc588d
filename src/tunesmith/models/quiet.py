"""Silence around calls into transformers and peft, whose bars and warnings our events and checks replace."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from logging import ERROR, Filter, LogRecord, getLogger
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


class _WithoutPaddingLine(Filter):
    """Holds back one line alone: that padding is not seen in embeddings."""

    def filter(self, record: LogRecord) -> bool:
        return "will not detect padding tokens in `inputs_embeds`" not in record.getMessage()


_WITHOUT_PADDING_LINE = _WithoutPaddingLine()


def hush_padding_line(model: Any) -> None:
    """Hold back transformers' warning that this classifier sees no padding in embeddings: for a caller that moves it.

    The filter is put on the logger of the module that defines the forward pass, once.
    """
    getLogger(type(model).forward.__module__).addFilter(_WITHOUT_PADDING_LINE)
