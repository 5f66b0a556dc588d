"""What a command gets: where to say things, where results go, and the home folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.reporters.base import Reporter
from tunesmith.reporters.text import Output, is_accessible, spoken

if TYPE_CHECKING:
    from tunesmith.core.home import Home


@dataclass
class Session:
    """One run of the command line; a command finds it as `ctx.obj`."""

    emit: Reporter
    """The reporter: hand it to steps."""
    out: Output
    """stdout: results only."""
    err: Output
    """stderr: everything said on the way."""
    is_json: bool = False
    is_debug: bool = False
    is_quiet: bool = False
    home_option: str = ""

    @cached_property
    def home(self) -> Home:
        """The folder of runs, models and feedback."""
        from tunesmith.core.home import Home

        return Home.open(self.home_option)

    @property
    def width(self) -> int:
        """Columns to write results in."""
        return self.out.width

    def result(self, value: Any, text: str = "") -> None:
        """The command's result on stdout: the text, or with `--json` the value as one JSON object."""
        self.emit.stop()
        if self.is_json:
            text = json.dumps(value, ensure_ascii=not self.out.has_glyphs, allow_nan=False, default=str)
            self.out.stream.write(text + "\n")
            self.out.stream.flush()
        elif text:
            self._write(self.out, text)

    def print(self, text: str = "") -> None:
        """A part of the result on stdout; nothing with `--json`."""
        if not self.is_json:
            self.emit.stop()
            self._write(self.out, text)

    def say(self, text: str = "") -> None:
        """Something on the way, on stderr; nothing with `--quiet`."""
        if not self.is_quiet:
            self.emit.stop()
            self._write(self.err, text)

    @staticmethod
    def _write(output: Output, text: str) -> None:
        output.write(spoken(text) if is_accessible(os.environ) else text)
