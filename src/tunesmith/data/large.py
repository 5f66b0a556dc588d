"""Files too large to be held: read once from end to end, after which only places are kept.

The reading makes every row an example and keeps hashes of what decides its side and its repetitions (`scan.py`). The
outcome is that of `load_data` row for row: the same sides, findings, counts, labels and sums. Held-out rows are held;
training rows stay on disk (`stored.py`), those of other files than JSON Lines in a copy (`spool.py`). What was found
out is kept under the files' sums and the settings, so that the next start reads the files for their sums alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from tunesmith.core.cache import Cache
from tunesmith.core.events import Emit, Finding, silent
from tunesmith.core.records import Example
from tunesmith.data.drawn import limited, shots_of
from tunesmith.data.findings import Findings
from tunesmith.data.lines import RawRow
from tunesmith.data.mix import settings_of, sources_of
from tunesmith.data.read import SAMPLE_ROWS, Loaded, check_columns, recognise_rows, source_files
from tunesmith.data.rows import is_packed, read_rows, row_files, why_not_spooled
from tunesmith.data.scan import PLACES, STEP, Rows, Scan, Wishes, fill
from tunesmith.data.sides import SIDES, TEST, TRAIN, VALIDATION, Division
from tunesmith.data.spool import NAME, NotLarge
from tunesmith.data.stored import Places, Reading, StoredExamples
from tunesmith.data.write import contents_sha256
from tunesmith.formats.base import Format
from tunesmith.recipe import MOST_VALIDATION, USUAL_VALIDATION, DataSettings

LARGE_BYTES = 128 * 2**20
"""Smaller files are held: their examples take some 500 MB."""
PACKED_TIMES = 4
"""A byte of a file that packs itself (gzip, Parquet) counts as so many: text packs 3 to 5 times."""
META = "meta.json"
_MOST_FILES = 2**16
_FIRSTS = "first"
"""Beside the sides: the first row of each source."""


@dataclass(frozen=True)
class LargeSet:
    """What `load_data` needs of large files: their training rows on disk, the others in memory."""

    train: StoredExamples
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    firsts: tuple[Example, ...]
    """The first usable row of each source."""
    findings: tuple[Finding, ...]
    num_read: int
    num_left_out: dict[str, int]
    label_rows: dict[str, int]
    """How many rows each class has on the training side before any are drawn."""
    rare: tuple[tuple[str, str], ...]
    """Classes of a single row of those, where it is trained, with its place, in the order of the rows."""
    source_rows: dict[str, int]
    """How many training rows each source has."""


def is_large(settings: DataSettings) -> bool:
    """Whether the files of the rows are too large to be held, where that can be helped."""
    files = [file for source in sources_of(settings) for file in row_files(source.path)]
    return sum(file.stat().st_size * (PACKED_TIMES if is_packed(file) else 1) for file in files) >= LARGE_BYTES


def load_large(settings: DataSettings, held: Sequence[Sequence[Loaded]], seed: int, emit: Emit = silent) -> LargeSet:
    """The rows of large files; `held` are files of validation and of test rows beside them.

    Raises:
        UserError: As `load_data`.
        NotLarge: The rows must be held in memory.
    """
    files, readings = _readings(settings)
    own = [tuple(example for part in side for example in part.examples) for side in held]
    details = [part.details for side in held for part in side]
    key = _key(settings, own, details, seed)

    def build(draft: Path) -> None:
        with Scan(draft, files, readings, Wishes.of(settings, seed)) as scan:
            _build(draft, scan, settings, own, details, emit)

    with Cache.of_rows().entry(lambda: f"rows-{key}", build, emit, step=STEP) as folder:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        sides = {
            name: StoredExamples(
                _opened(folder, name),
                files,
                readings,
                folder / NAME,
                identity=key if name == SIDES[TRAIN] else "",
                sha256=meta["sha256"] if name == SIDES[TRAIN] else "",
                label_counts=meta["label_rows"],
            )
            for name in (*SIDES, _FIRSTS)
        }
    return LargeSet(
        train=sides[SIDES[TRAIN]],
        validation=(*own[0], *sides[SIDES[VALIDATION]]),
        test=(*own[1], *sides[SIDES[TEST]]),
        firsts=tuple(sides[_FIRSTS]),
        findings=tuple(Finding(**one) for one in meta["findings"]),
        num_read=meta["num_read"],
        num_left_out=meta["num_left_out"],
        label_rows=meta["whole_label_rows"],
        rare=tuple((label, where) for label, where in meta["rare"]),
        source_rows=meta["source_rows"],
    )


def _readings(settings: DataSettings) -> tuple[tuple[str, ...], tuple[Reading, ...]]:
    """The names of all files, and how the rows of each become examples."""
    sources = sources_of(settings)
    files: list[str] = []
    readings: list[Reading] = []
    for source in sources:
        mine = settings_of(settings, source)
        reading = Reading(_recognised(source.path, mine), mine, source.name if len(sources) > 1 else "")
        for file in row_files(source.path):
            if reason := why_not_spooled(file):
                raise NotLarge(reason)
            files.append(str(file))
            readings.append(reading)
    if len(files) >= _MOST_FILES:
        raise NotLarge(f"there are more than {_MOST_FILES:,} files")
    return tuple(files), tuple(readings)


def _recognised(path: str, settings: DataSettings) -> Format:
    items = read_rows(path, on_fault=settings.on_fault)
    head = list(islice((item for item in items if isinstance(item, RawRow)), SAMPLE_ROWS))
    if not head:
        raise NotLarge("none can be read")
    if not set(settings.columns) <= {name for row in head for name in row.values}:
        raise NotLarge("none of the first has a column that `data.columns` names")
    check_columns(head, settings.columns, path)
    return settings.format if isinstance(settings.format, Format) else recognise_rows(head, settings, where=path)


def _key(settings: DataSettings, own: Sequence[Sequence[Example]], details: Sequence[Findings], seed: int) -> str:
    """SHA-256 over the files, the held-out rows beside them, the settings and the code that reads rows."""
    shown = settings.model_dump(mode="json", exclude={"max_length", "documents"})
    sums = [[asdict(file) for file in source_files(source.path)] for source in sources_of(settings)]
    shares = (USUAL_VALIDATION, MOST_VALIDATION)  # of `auto`, which the settings do not show
    parts = (seed, shown, shares, sums, [found.all() for found in details], [contents_sha256(side) for side in own])
    digest = hashlib.sha256(repr(parts).encode())
    for folder in (Path(__file__).parent, Path(__file__).parent.parent / "formats"):
        for file in sorted(folder.glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _build(
    draft: Path,
    scan: Scan,
    settings: DataSettings,
    own: Sequence[Sequence[Example]],
    details: Sequence[Findings],
    emit: Emit,
) -> None:
    """Read, and write down what was found out."""
    found = Findings()
    fill(scan, found, emit)
    for part in details:
        found.update(part)
    division = Division(scan)
    if settings.dedup != "none":
        division.leave_out_repeats(found)
    if settings.dedup == "near":
        division.leave_out_near_repeats(found, emit)
    division.divide()
    held_out = {side: np.concatenate([*division.rows(side)]) for side in (VALIDATION, TEST)}
    beside = [(*mine, *scan.examples(rows)) for mine, rows in zip(own, held_out.values(), strict=True)]
    division.note_leaks((*beside[0], *beside[1]), found)
    whole = partial(division.rows, TRAIN)
    train, left_out = _drawn(scan, division, settings, found)
    parts: dict[str, Iterable[Rows]] = {SIDES[side]: [rows] for side, rows in held_out.items()}
    firsts = np.asarray(list(scan.firsts.values()))
    for name, rows_of in {**parts, SIDES[TRAIN]: train(), _FIRSTS: [firsts]}.items():
        _write(draft, name, scan, rows_of)
    meta = {
        "num_read": scan.num_read,
        "num_left_out": left_out,
        "findings": [asdict(one) for one in found.all()],
        **_counts(scan, whole, train),
    }
    (draft / META).write_text(json.dumps(meta, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _drawn(
    scan: Scan, division: Division, settings: DataSettings, found: Findings
) -> tuple[Callable[[], Iterator[Rows]], dict[str, int]]:
    """The training rows, and how many of all are left out, by reason."""
    num_kept, num_train = (int(np.count_nonzero(of)) for of in (division.side_of >= TRAIN, division.side_of == TRAIN))
    left_out = {"faults": scan.num_read - len(scan), "duplicates": len(scan) - num_kept, "shots": 0}
    train: Callable[[], Iterator[Rows]] = partial(division.rows, TRAIN)
    if settings.shots:
        drawn = shots_of(scan, division.rows(TRAIN), settings.shots, found)
        left_out["shots"], num_train = num_train - len(drawn), len(drawn)
        train = partial(iter, [drawn])
    if settings.limit and settings.limit < num_train:
        left_out["limit"] = num_train - settings.limit
        train = partial(iter, [limited(scan, train(), settings.limit)])
    return train, left_out


def _write(draft: Path, name: str, scan: Scan, parts: Iterable[Rows]) -> None:
    for column in PLACES:
        (draft / f"{name}.{column}").touch()
    for rows in parts:
        for column in PLACES:
            with (draft / f"{name}.{column}").open("ab") as file:
                scan.take(column, rows).tofile(file)


def _counts(scan: Scan, whole: Callable[[], Iterator[Rows]], train: Callable[[], Iterator[Rows]]) -> dict[str, object]:
    """The sum of the training rows; how many each class and each source has; classes rare before any are drawn."""
    digest, rows_of_file = hashlib.sha256(), np.zeros(len(scan.files), np.int64)
    for rows in train():
        digest.update(scan.take("digest", rows).tobytes())
        rows_of_file += np.bincount(scan.take("file_of", rows), minlength=len(rows_of_file))
    source_rows: Counter[str] = Counter()
    for reading, count in zip(scan.readings, rows_of_file.tolist(), strict=True):
        source_rows[reading.source_name] += count
    of_all = _label_rows(scan, whole())
    return {
        "sha256": digest.hexdigest(),
        "label_rows": _label_rows(scan, train()),
        "whole_label_rows": of_all,
        "rare": _rare(scan, train, {label for label, count in of_all.items() if count == 1}),
        "source_rows": source_rows,
    }


def _label_rows(scan: Scan, parts: Iterable[Rows]) -> Counter[str]:
    rows_of_set = np.zeros(len(scan.label_sets), np.int64)
    for rows in parts:
        rows_of_set += np.bincount(scan.take("labels", rows), minlength=len(rows_of_set))
    label_rows: Counter[str] = Counter()
    for labels, count in zip(scan.label_sets, rows_of_set.tolist(), strict=True):
        label_rows.update(dict.fromkeys(labels, count) if count else {})
    return label_rows


def _rare(scan: Scan, train: Callable[[], Iterator[Rows]], single: set[str]) -> list[tuple[str, str]]:
    """These classes with the places of their rows, in the order of the rows."""
    sets = list(scan.label_sets)
    wanted = [number for number, labels in enumerate(sets) if single & set(labels)]
    rare: list[tuple[str, str]] = []
    for rows in train() if wanted else ():
        numbers = scan.take("labels", rows)
        mine = np.flatnonzero(np.isin(numbers, wanted))
        for number, origin in zip(numbers[mine].tolist(), scan.origins(rows[mine]), strict=True):
            rare += [(label, str(origin)) for label in sets[number] if label in single]
    return rare


def _opened(folder: Path, name: str) -> Places:
    columns = []
    for column, kind in PLACES.items():
        path = folder / f"{name}.{column}"
        columns.append(np.asarray(np.memmap(path, kind, "r")) if path.stat().st_size else np.zeros(0, kind))
    return Places(*columns)
