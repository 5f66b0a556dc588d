"""Lines of a file as text, with their numbers: plain or gzipped, UTF-8, bounded in length.

What is wrong with one line is a `Fault`, which the caller stops at or puts aside; what is wrong with the whole file
is a `UserError`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from tunesmith.core.errors import UserError, suggest
from tunesmith.core.records import Origin

MAX_LINE_BYTES = 16 * 2**20
MAX_WHOLE_BYTES = 2 * 2**30
"""Files that must be read at once (a JSON array) are at most this large, unpacked."""
MAX_GZIP_RATIO = 500
"""Text packs 3 to 50 times; an archive that unpacks further than this (beyond 64 MiB) is a bomb."""
GZIP_FREE_BYTES = 64 * 2**20
_BOMS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be used: where, a stable code, what is wrong, what to do."""

    origin: Origin
    code: str
    message: str
    remedy: str

    def error(self) -> UserError:
        """The fault as the error that stops a run."""
        remedy = f"{self.remedy[:1].upper()}{self.remedy[1:]}." if self.remedy else ""
        return UserError(f"{self.message}.", code=self.code, where=str(self.origin), remedy=remedy)


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as its file has it."""

    values: Mapping[str, Any]
    origin: Origin


Item = RawRow | Fault
"""What a reader gives, in the order of the file."""


def read_lines(path: Path, shown: str) -> Iterator[tuple[int, str] | Fault]:
    """Each line's number and its text without the line break; `shown` is the path for messages.

    Raises:
        UserError: The file is missing, is not UTF-8 from its first bytes, or unpacks beyond all measure.
    """
    return (line if isinstance(line, Fault) else (line[0], line[2]) for line in placed_lines(path, shown))


def placed_lines(path: Path, shown: str) -> Iterator[tuple[int, int, str] | Fault]:
    """As `read_lines`, with the byte (unpacked) at which each line begins between its number and its text."""
    number = offset = 0
    is_packed = path.suffix == ".gz"
    with open_binary(path, shown) as file:
        while True:
            number += 1
            try:
                raw = file.readline(MAX_LINE_BYTES + 1)
                size = len(raw)
                if size > MAX_LINE_BYTES:
                    size += _skip_line(file, raw)
            except (EOFError, gzip.BadGzipFile, zlib.error):
                yield _broken_gzip(Origin(shown, number))
                return
            if not raw:
                return
            if number == 1:
                raw = _without_bom(raw, shown)
            offset += size
            if is_packed:
                _refuse_bomb(path, offset, shown)
            if size > MAX_LINE_BYTES:
                yield _too_long(Origin(shown, number), size)
                continue
            try:
                yield number, offset - size, raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as fault:
                yield not_utf8(fault, Origin(shown, number), offset - size + fault.start)


def read_whole(path: Path, shown: str) -> str | Fault:
    """The whole text of a file, byte-order mark removed.

    Raises:
        UserError: As `read_lines`, or the file is too large to be read at once.
    """
    try:
        with open_binary(path, shown) as file:
            raw = file.read(_most_bytes(path) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return _broken_gzip(Origin(shown, 1))
    _refuse_bomb(path, len(raw), shown)
    if len(raw) > MAX_WHOLE_BYTES:
        raise UserError(
            "the file is larger than 2 GiB and must be read at once.",
            code="too_large",
            where=shown,
            remedy="Write one object per line into a .jsonl file.",
        )
    raw = _without_bom(raw, shown)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as fault:
        return not_utf8(fault, Origin(shown, raw.count(b"\n", 0, fault.start) + 1), fault.start)


@contextmanager
def open_binary(path: Path, shown: str) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked.

    Raises:
        UserError: It does not exist or may not be read.
    """
    try:
        with cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as file:
            yield file
    except gzip.BadGzipFile:
        raise
    except OSError as fault:
        if isinstance(fault, FileNotFoundError):
            raise missing_file(path, shown) from None
        raise UserError(
            f"the file cannot be read: {fault.strerror or fault}.", code="cannot_read", where=shown
        ) from None


def missing_file(path: Path, shown: str) -> UserError:
    """The error for a file that does not exist, with near names from its folder."""
    names = [p.name for p in path.parent.iterdir() if not p.name.startswith(".")] if path.parent.is_dir() else []
    near = suggest(path.name, names).here
    remedy = "Did you mean " + " or ".join(str(Path(shown).parent / name) for name in near) + "?" if near else ""
    if not remedy:
        remedy = "Check the path; it is taken from the working directory."
    return UserError("there is no such file.", code="no_file", where=shown, remedy=remedy)


def not_utf8(fault: UnicodeDecodeError, origin: Origin, offset: int) -> Fault:
    """The fault for bytes that are not UTF-8 (Latin-1, most often)."""
    name = Path(origin.file).name
    return Fault(
        origin,
        "not_utf8",
        f"byte 0x{fault.object[fault.start]:02X} at offset {offset:,} is not UTF-8",
        f"if the file is Latin-1, run: iconv -f LATIN1 -t UTF-8 {name} > utf8-{name}",
    )


def _without_bom(raw: bytes, shown: str) -> bytes:
    for mark, name in _BOMS:
        if raw.startswith(mark):
            raise UserError(
                f"the file is {name}, not UTF-8.",
                code="not_utf8",
                where=shown,
                remedy=f"Run: iconv -f {name} -t UTF-8 {Path(shown).name} > utf8-{Path(shown).name}",
            )
    return raw.removeprefix(b"\xef\xbb\xbf")


def _skip_line(file: BinaryIO, raw: bytes) -> int:
    skipped = 0
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(MAX_LINE_BYTES)
        skipped += len(raw)
    return skipped


def _too_long(origin: Origin, size: int) -> Fault:
    limit = MAX_LINE_BYTES // 2**20
    return Fault(origin, "line_too_long", f"the line has {size:,} bytes, more than {limit} MiB", "divide or delete it")


def _broken_gzip(origin: Origin) -> Fault:
    return Fault(
        origin, "broken_gzip", "the gzip file is damaged or cut off here; what follows is lost", "copy the file again"
    )


def _most_bytes(path: Path) -> int:
    """As much as is ever read at once: of a gzip file no more than shows that it is a bomb."""
    if path.suffix != ".gz":
        return MAX_WHOLE_BYTES
    return min(MAX_WHOLE_BYTES, max(GZIP_FREE_BYTES, path.stat().st_size * MAX_GZIP_RATIO))


def _refuse_bomb(path: Path, unpacked: int, shown: str) -> None:
    if unpacked <= GZIP_FREE_BYTES or path.suffix != ".gz":
        return
    packed = path.stat().st_size
    if unpacked > packed * MAX_GZIP_RATIO:
        raise UserError(
            f"the gzip file unpacks to more than {MAX_GZIP_RATIO} times its {packed:,} bytes.",
            code="gzip_bomb",
            where=shown,
            remedy="Unpack it yourself if you trust it.",
        )
