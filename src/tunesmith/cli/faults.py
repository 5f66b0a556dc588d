"""What a person sees when a command fails, and the exit code: 1 you can fix it, 2 usage, 70 a bug, 130 interrupted."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

from tunesmith.cli.flags import UsageError
from tunesmith.core.errors import Interrupted, UserError
from tunesmith.reporters.text import Output, paint

FRAME_LINES = 4


def report(fault: BaseException, out: Output, err: Output, *, is_json: bool, is_debug: bool) -> int:
    """Say what went wrong, for a person or as `{"error": …}`; returns the exit code."""
    error, code = _as_error(fault, is_debug=is_debug)
    if is_debug and code == 70:
        err.write("".join(traceback.format_exception(fault)).rstrip())
    if is_json:
        out.stream.write(json.dumps({"error": error.to_dict()}) + "\n")
        out.stream.flush()
    elif code == 130:
        err.write(f"{paint('stopped', 'yellow')}  {error.message}")
        if error.remedy:
            err.write(f"{paint('resume', 'bold')}   {error.remedy}")
    else:
        err.write(f"{paint('error', 'bold', 'red')}  {error.line()}")
        if error.frame and err.is_terminal:
            err.write("\n".join(error.frame.splitlines()[:FRAME_LINES]))
    return code


def _as_error(fault: BaseException, *, is_debug: bool) -> tuple[UserError, int]:
    if isinstance(fault, UserError):
        return fault, 2 if isinstance(fault, UsageError) else 1
    if isinstance(fault, Interrupted):
        return UserError(fault.message, code="interrupted", remedy=fault.resume), 130
    if isinstance(fault, KeyboardInterrupt):
        return UserError("interrupted; what was saved stays.", code="interrupted"), 130
    log = write_log(fault)
    what = f"{type(fault).__name__}: {fault}".splitlines()[0][:200]
    show = "" if is_debug else " Add --debug to see it here."
    return UserError(
        f"a bug in Tunesmith, not in your input ({what}).",
        code="bug",
        remedy=f"The traceback is in {log}; please report it with that file, after removing what is private.{show}",
    ), 70


def write_log(fault: BaseException) -> Path:
    """Append the traceback, the command and the time to the log file; returns its path."""
    lines = [f"--- {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}  {' '.join(sys.argv)}", *traceback.format_exception(fault)]
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tunesmith"
    for folder in (state, Path(tempfile.gettempdir())):
        path = folder / "tunesmith.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("\n".join(lines) + "\n")
        except OSError:
            continue
        return path
    return Path(os.devnull)
