"""Which reporter fits: a terminal, a pipe, a notebook, another program, or silence."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Literal

from tunesmith.reporters.base import Reporter
from tunesmith.reporters.text import Output, is_accessible

Progress = Literal["auto", "live", "lines", "none"]


def choose(
    output: Output,
    *,
    progress: Progress = "auto",
    events: Literal["", "jsonl"] = "",
    is_quiet: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Reporter:
    """The reporter for stderr; what the user asked for by name comes first."""
    from tunesmith.reporters.quiet import Quiet

    if events == "jsonl":
        from tunesmith.reporters.jsonl import JsonLines

        return JsonLines(output.stream)
    if is_quiet or progress == "none" or environ.get("RANK", "0") != "0":
        return Quiet(output)
    if progress == "auto" and in_notebook():
        from tunesmith.reporters.notebook import Notebook

        return Notebook()
    if progress == "live" or (progress == "auto" and can_draw(output, environ)):
        from tunesmith.reporters.live import Live

        return Live(output)
    from tunesmith.reporters.lines import Lines

    return Lines(output)


def can_draw(output: Output, environ: Mapping[str, str]) -> bool:
    """Whether lines may be redrawn: a capable terminal, no CI, no screen reader."""
    is_capable = output.is_terminal and environ.get("TERM", "") not in ("", "dumb", "unknown")
    return is_capable and not environ.get("CI") and not is_accessible(environ)


def in_notebook() -> bool:
    """Whether this process is an IPython kernel (not IPython's terminal)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
