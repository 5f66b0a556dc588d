"""The live reporter on real (pseudo) terminals: width, colour, encoding, and that it leaves the terminal as it was."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

STORYBOARD = Path(__file__).with_name("storyboard.py")
MOVES = re.compile(r"\x1b\[[0-9;?]*[A-HJ-Zac-lnp-z]|\r")
SGR = re.compile(r"\x1b\[([0-9;]*)m")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38|48|4[0-7])[;m]")


def on_terminal(argv: list[str], *, width: int, **environ: str) -> str:
    """Everything a command writes to a terminal of that width."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    clean = {
        name: value for name, value in os.environ.items() if name not in ("CI", "COLUMNS", "NO_COLOR", "FORCE_COLOR")
    }
    settings = {"TERM": "xterm", "PYTHONIOENCODING": "utf-8", **environ}
    process = subprocess.Popen(argv, stdin=child, stdout=child, stderr=child, env={**clean, **settings})
    os.close(child)
    written = b""
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(parent)
    assert process.wait(timeout=60) == 0, written.decode()
    return written.decode()


def storyboard(scene: str, *, width: int, **environ: str) -> str:
    return on_terminal([sys.executable, str(STORYBOARD), scene], width=width, **environ)


@pytest.mark.parametrize("width", [100, 80, 60, 40])
def test_a_training_fits_the_terminal(width: int) -> None:
    written = storyboard("training", width=width)
    lines = [MOVES.sub("", SGR.sub("", line)) for line in re.split(r"\r?\n|\r", written)]
    assert max(len(line) for line in lines if " " in line) <= width, "only a URL may be wider"
    assert "step" in written
    assert "training" in written


def test_colours_are_of_the_sixteen() -> None:
    written = storyboard("all", width=100)
    codes = {code for found in SGR.findall(written) for code in found.split(";")}
    assert codes <= {"", "0", "1", "2", "4", "31", "32", "33", "36"}
    assert COLOUR.search(written)


def test_no_color_leaves_no_colour_code() -> None:
    assert not COLOUR.search(storyboard("all", width=100, NO_COLOR="1"))


def test_an_ascii_terminal_gets_ascii() -> None:
    written = storyboard("training", width=80, PYTHONIOENCODING="ascii")
    assert written.isascii()
    assert "training ====" in SGR.sub("", written)


def test_the_bottom_is_gone_and_the_cursor_back_at_the_end() -> None:
    written = storyboard("all", width=80)
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")
    assert "Ctrl-C" not in written[written.rfind("done") :]
    assert written.rstrip().endswith("tunesmith chat runs/manual-lora-3\x1b[0m")


def test_the_bottom_is_redrawn_at_most_eight_times_a_second() -> None:
    written = storyboard("training", width=80)
    num_redraws = written.count("Ctrl-C")
    assert 1 <= num_redraws <= 20, "about 0.5 s at 4 a second, and one for each line that scrolls"


def test_accessible_terminals_get_plain_lines() -> None:
    written = storyboard("training", width=80, TUNESMITH_ACCESSIBLE="1")
    assert "\x1b" not in written
    assert re.search(r"^\d\d:\d\d:\d\dZ train start run=", written)
