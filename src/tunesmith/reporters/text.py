"""Words, numbers, tables and small drawings for a terminal, as plain strings.

Everything here is made with the full set of glyphs and with styles as SGR codes; `Output` is the only
place that knows the stream, and takes away what it cannot show (colour, glyphs, control characters).
"""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

# The toolkit offers these too: a command needs one import to print.
from tunesmith.core.quantities import count as count  # noqa: PLC0414
from tunesmith.core.quantities import duration as duration  # noqa: PLC0414
from tunesmith.core.quantities import gib as gib  # noqa: PLC0414
from tunesmith.core.quantities import interval as interval  # noqa: PLC0414
from tunesmith.core.quantities import millions as millions  # noqa: PLC0414
from tunesmith.core.quantities import number as number  # noqa: PLC0414
from tunesmith.core.quantities import signed as signed  # noqa: PLC0414

Align = Literal["left", "right"]
ColorWish = Literal["auto", "always", "never"]

NARROW = 60
"""Below so many columns tables become `name: value` lines."""
UNKNOWN_WIDTH = 80
SMALLEST_CUT = 12
"""A column of text is cut to no fewer columns than this."""
BARS = "▁▂▃▄▅▆▇█"
ASCII = {
    **dict(zip(BARS, ".:-=+*##", strict=True)),
    **{"✓": "ok", "✗": "x", "·": "-", "→": "->", "±": "+/-", "×": "x", "━": "=", "─": "-", "├": "|", "●": "o"},
    **{"┤": "|", "│": "|", "–": "-", "−": "-", "▼": "v", "⏎": "$", "…": "...", "≥": ">=", "≤": "<="},
}
GLYPHS = "".join(ASCII)
STYLES = {"bold": "1", "dim": "2", "underline": "4", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

_SGR = re.compile(r"\x1b\[([0-9;]*)m")
_CONTROL = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SPACES_OR_GLYPH = re.compile(r" {3,}|\n|[" + re.escape(GLYPHS) + "]")
_INTERVAL = re.compile(r"(\S+)\s+\[([^,\]]+), ([^\]]+)\]")


# --- drawings ------------------------------------------------------------------------------------


def sparkline(values: Sequence[float], width: int = 0) -> str:
    """One block per value, higher is fuller; `width` averages neighbours so that so many remain."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    if 0 < width < len(known):
        edges = [i * len(known) // width for i in range(width + 1)]
        known = [sum(known[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(known), max(known) - min(known)
    if not span:
        return BARS[0] * len(known)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in known)


def interval_bar(value: float, low: float, high: float, width: int, lowest: float, highest: float) -> str:
    """`├─●─┤` at its place on an axis from `lowest` to `highest`; exactly `width` characters."""
    if not all(map(math.isfinite, (value, low, high))):
        return " " * width
    span = (highest - lowest) or 1.0
    at_low, at, at_high = (
        round(min(1.0, max(0.0, (x - lowest) / span)) * (width - 1)) for x in (min(low, value), value, max(high, value))
    )
    cells = [" "] * width
    cells[at_low : at_high + 1] = "─" * (at_high - at_low + 1)
    cells[at_low], cells[at_high] = "├", "┤"
    cells[at] = "●"
    return "".join(cells)


def progress_bar(done: float, total: float, width: int) -> str:
    """`━━━━────`, exactly `width` characters; all empty where the total is unknown."""
    share = min(1.0, max(0.0, done / total)) if total else 0.0
    full = int(share * width)
    return "━" * full + "─" * (width - full)


# --- text ----------------------------------------------------------------------------------------


def paint(text: str, *styles: str) -> str:
    """The text in styles of `STYLES` (`bold`, `green` …); `Output` takes them off where they are not wanted."""
    codes = ";".join(STYLES[style] for style in styles)
    return f"\x1b[{codes}m{text}\x1b[0m" if codes and text else text


def plain(text: str) -> str:
    """The text without styles; other control characters become visible."""
    return _CONTROL.sub(lambda match: "" if _SGR.fullmatch(match.group()) else _visible(match.group()), text)


def _visible(code: str) -> str:
    return f"\\x{ord(code[0]):02x}" + code[1:]


def cell_width(text: str) -> int:
    """Columns that the text takes: styles and combining marks none, wide characters two."""
    plain = _SGR.sub("", text)
    if plain.isascii():
        return len(plain)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in plain
    )


def pad(text: str, width: int, align: Align = "left") -> str:
    """The text with spaces up to `width` columns."""
    space = " " * max(0, width - cell_width(text))
    return space + text if align == "right" else text + space


def shorten(text: str, width: int) -> str:
    """The text on one line in at most `width` columns, cut after a word and marked with `…`."""
    text = " ".join(text.split())
    if cell_width(text) <= width:
        return text
    cut = ""
    for char in text:
        if cell_width(cut + char) > width - 1:
            break
        cut += char
    at_word = cut.rpartition(" ")[0]
    return (at_word if len(at_word) > len(cut) // 2 else cut).rstrip() + "…"


def fold(text: str, width: int, indent: int = 0) -> str:
    """Lines of at most `width` columns, broken at ` · ` or else at spaces; all but the first indented."""
    lines = [""]
    for piece in _pieces(text, width - indent):
        joined = lines[-1] + piece
        room = width - (indent if len(lines) > 1 else 0)
        if lines[-1] and cell_width(joined.rstrip(" ·")) > room:
            lines[-1] = lines[-1].rstrip(" ·")
            lines.append(piece.lstrip())
        else:
            lines[-1] = joined
    return ("\n" + " " * indent).join(line.rstrip() for line in lines)


def _pieces(text: str, width: int) -> list[str]:
    parts = re.split(r"(?<= · )", text)
    return [word for part in parts for word in ([part] if cell_width(part) <= width else re.split(r"(?<= )", part))]


def facts(lines: Iterable[tuple[str, str]], width: int) -> str:
    """`label    text` lines with one edge; long texts are folded under themselves."""
    lines = list(lines)
    edge = max((cell_width(label) for label, _ in lines), default=0)
    if is_flat(width):
        return "\n".join(fold(f"{label}: {spoken(text)}" if label else spoken(text), width) for label, text in lines)
    edge = max(9, edge + 2)
    return "\n".join(
        pad(label, edge) + fold(text, width - edge).replace("\n", "\n" + " " * edge) for label, text in lines
    )


def spoken(text: str) -> str:
    """The text as a screen reader should say it: intervals and signs in words."""
    text = _INTERVAL.sub(r"\1, interval \2 to \3", text)
    return text.replace(" %", " percent").replace(" → ", " to ").replace(" · ", ", ").replace("●", "")


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a table. The least important are left out first; a drawing is left out where rows are read aloud."""

    title: str
    importance: int = 1
    align: Align = "left"
    is_drawing: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> str:
    """Aligned columns without boxes, at most `width` wide; `name: value` lines where that is too narrow.

    Columns are dropped by importance; among equals the widest text is cut, or else the rightmost column dropped.
    """
    if is_flat(width):
        return _flat(columns, rows, width)
    kept = list(range(len(columns)))
    widths = _widths(columns, rows)
    while (excess := _total(kept, widths, 2) - width) > 0:
        widest = max((i for i in kept if columns[i].align == "left"), key=lambda i: widths[i], default=kept[0])
        are_equal = len({columns[i].importance for i in kept}) == 1
        if len(kept) == 1 or (are_equal and widths[widest] - excess >= SMALLEST_CUT):
            widths[widest] = max(1, widths[widest] - excess)
            break
        kept.remove(min(kept, key=lambda i: (columns[i].importance, -i)))
    gap = " " * (3 if _total(kept, widths, 3) <= width else 2)
    lines = []
    for row in ([column.title for column in columns], *rows):
        cells = (_cell(row[i], widths[i], columns[i].align) for i in kept)
        lines.append(gap.join(cells).rstrip())
    return "\n".join(lines if any(columns[i].title for i in kept) else lines[1:])


def natural_width(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    """How wide the table is at least with every column and no text cut."""
    return _total(range(len(columns)), _widths(columns, rows), 2)


def is_flat(width: int) -> bool:
    """Whether rows are said as `name: value` lines: narrow terminals, and `TUNESMITH_ACCESSIBLE`."""
    return width < NARROW or is_accessible(os.environ)


def is_accessible(environ: Mapping[str, str]) -> bool:
    """Whether the user asked for output that a screen reader can follow."""
    return environ.get("TUNESMITH_ACCESSIBLE", "") not in ("", "0")


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max([cell_width(c.title), *(cell_width(row[i]) for row in rows)]) for i, c in enumerate(columns)]


def _total(kept: Sequence[int], widths: Sequence[int], gap: int) -> int:
    return sum(widths[i] for i in kept) + gap * (len(kept) - 1)


def _cell(text: str, width: int, align: Align) -> str:
    return pad(text if cell_width(text) <= width else shorten(text, width), width, align)


def _flat(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> str:
    blocks = []
    for place, row in enumerate(rows, 1):
        lines = [f"Row {place} of {len(rows)}: {spoken(row[0]).strip()}"]
        for column, cell in list(zip(columns, row, strict=True))[1:]:
            if cell.strip() and cell.strip() != "–" and not column.is_drawing:
                lines.append(f"{column.title}: {spoken(cell).strip()}" if column.title else spoken(cell).strip())
        blocks.append("\n".join(fold(line, width, 2) for line in lines))
    return "\n\n".join(blocks)


# --- the stream ----------------------------------------------------------------------------------


class Output:
    """A stream, and what it can show: colours, glyphs, and how many columns."""

    def __init__(self, stream: TextIO, *, color: ColorWish = "auto", environ: Mapping[str, str] = os.environ) -> None:
        self.stream = stream
        self.is_terminal = _is_terminal(stream)
        self.has_color = _has_color(color, environ, self.is_terminal)
        self.has_styles = self.has_color or (color != "never" and _is_capable(environ, self.is_terminal))
        self.has_glyphs = _encodes(stream, GLYPHS)
        self._environ = environ
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    @property
    def width(self) -> int:
        """Columns of the terminal (or `COLUMNS`), 80 where they are unknown."""
        return terminal_width(self.stream, self._environ)

    def fit(self, text: str) -> str:
        """The text with only what this stream can show; control characters become visible."""
        text = _CONTROL.sub(self._control, text)
        return text if self.has_glyphs else to_ascii(text)

    def write(self, text: str) -> None:
        """Write the text and a line end, at once."""
        self.stream.write(self.fit(text) + "\n")
        self.stream.flush()

    def _control(self, match: re.Match[str]) -> str:
        code = match.group()
        style = _SGR.fullmatch(code)
        if not style:
            return _visible(code)
        if self.has_color:
            return code
        if not self.has_styles:
            return ""
        plain = [part for part in style.group(1).split(";") if part in ("", "0", "1", "2", "4")]
        return f"\x1b[{';'.join(plain)}m" if plain else ""


def terminal_width(stream: TextIO, environ: Mapping[str, str] = os.environ) -> int:
    """Columns by `COLUMNS`, by the stream's terminal, or by any of ours; else 80."""
    if environ.get("COLUMNS", "").isdigit() and int(environ["COLUMNS"]) > 0:
        return int(environ["COLUMNS"])
    try:
        return os.get_terminal_size(stream.fileno()).columns or UNKNOWN_WIDTH
    except (OSError, ValueError, AttributeError):
        return shutil.get_terminal_size((UNKNOWN_WIDTH, 24)).columns


def to_ascii(text: str) -> str:
    """Our glyphs in ASCII; where one grows, the next run of spaces shrinks, so that columns stay in line."""
    debt = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal debt
        found = match.group()
        if found == "\n":
            debt = 0
            return found
        if found[0] == " ":
            paid = min(debt, len(found) - 2)
            debt -= paid
            return found[paid:]
        debt += len(ASCII[found]) - 1
        return ASCII[found]

    return _SPACES_OR_GLYPH.sub(replace, text)


def _encodes(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def _is_capable(environ: Mapping[str, str], is_terminal: bool) -> bool:
    return is_terminal and environ.get("TERM", "") not in ("", "dumb", "unknown")


def _has_color(wish: ColorWish, environ: Mapping[str, str], is_terminal: bool) -> bool:
    if wish != "auto":
        return wish == "always"
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR", "") not in ("", "0"):
        return True
    return _is_capable(environ, is_terminal)
