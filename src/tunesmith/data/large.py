"""Files of JSON Lines too large to be held: read twice from end to end, after which only places are kept.

The first reading makes every row an example and keeps hashes of what decides its side and its repetitions; the second
sums the training rows for the data card. The outcome is that of `load_data` row for row: the same sides, findings,
counts, labels and sums. Held-out rows are held; training rows stay in their file (`stored.py`). What was found out is
kept under the files' sums and the settings, so that the next start reads the files for their sums alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.cache import Cache
from tunesmith.core.events import Emit, Finding, Progress, silent
from tunesmith.core.records import Example
from tunesmith.data.findings import Findings
from tunesmith.data.lines import RawRow
from tunesmith.data.read import SAMPLE_ROWS, Loaded, check_columns, recognise_rows, source_files
from tunesmith.data.repeats import content_key, normalise, note_duplicate, note_leaks, question_of
from tunesmith.data.rows import is_json_lines, read_rows, row_files
from tunesmith.data.scan import STEP, NotLarge, Scan, hash_of, scan
from tunesmith.data.split import unit_hash
from tunesmith.data.stored import Places, StoredExamples
from tunesmith.data.write import contents_sha256
from tunesmith.formats.base import Format
from tunesmith.recipe import DataSettings

LARGE_BYTES = 128 * 2**20
"""Smaller files are held: their examples take some 500 MB."""
META = "meta.json"
_SIDES = ("train", "validation", "test")
_KINDS = {"file_of": "u2", "offsets": "i8", "lines": "u4"}
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class LargeSet:
    """What `load_data` needs of a large file: its training rows on disk, the others in memory."""

    train: StoredExamples
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    findings: tuple[Finding, ...]
    format_name: str
    num_read: int
    num_left_out: dict[str, int]
    rare: tuple[tuple[str, str], ...]
    """Classes of a single training row, with its place, in the order of the rows."""


def is_large(settings: DataSettings) -> bool:
    """Whether the rows of this source need not be held: JSON Lines, and nothing asked for that needs all of them.

    Near repetitions, groups of a column, shots of each class and mixtures of sources do.
    """
    if not isinstance(settings.source, str) or settings.dedup == "near" or settings.shots or settings.split.group_by:
        return False
    files = row_files(settings.source)
    return all(map(is_json_lines, files)) and sum(file.stat().st_size for file in files) >= LARGE_BYTES


def load_large(settings: DataSettings, held: Sequence[Sequence[Loaded]], seed: int, emit: Emit = silent) -> LargeSet:
    """The rows of a large file; `held` are files of validation and of test rows beside it.

    Raises:
        UserError: As `load_data`.
        NotLarge: The rows must be held in memory.
    """
    form = _recognised(settings)
    own = [tuple(example for part in side for example in part.examples) for side in held]
    details = [part.details for side in held for part in side]
    key = _key(settings, own, details, seed)

    def build(draft: Path) -> None:
        _build(draft, settings, form, own, details, seed, emit)

    with Cache.of_rows().entry(lambda: f"rows-{key}", build, emit, step=STEP) as folder:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        places = {side: _opened(folder, side, tuple(meta["files"])) for side in _SIDES}
    counts = meta["label_rows"]
    train = StoredExamples(places["train"], form, settings, identity=key, sha256=meta["sha256"], label_counts=counts)
    validation, test = (
        (*mine, *StoredExamples(places[side], form, settings)) for mine, side in zip(own, _SIDES[1:], strict=True)
    )
    return LargeSet(
        train,
        validation,
        test,
        tuple(Finding(**one) for one in meta["findings"]),
        form.name,
        meta["num_read"],
        meta["num_left_out"],
        tuple((label, where) for label, where in meta["rare"]),
    )


def _recognised(settings: DataSettings) -> Format:
    path = str(settings.source)
    items = read_rows(path, on_fault=settings.on_fault)
    head = list(islice((item for item in items if isinstance(item, RawRow)), SAMPLE_ROWS))
    if not head or not set(settings.columns) <= {name for row in head for name in row.values}:
        raise NotLarge  # a name may be right although none of the first rows has it
    check_columns(head, settings.columns, path)
    return settings.format if isinstance(settings.format, Format) else recognise_rows(head, settings, where=path)


def _key(settings: DataSettings, own: Sequence[Sequence[Example]], details: Sequence[Findings], seed: int) -> str:
    """SHA-256 over the files, the held-out rows beside them, the settings and the code that reads rows."""
    shown = settings.model_dump(mode="json", exclude={"max_length", "documents"})
    sums = [asdict(file) for file in source_files(str(settings.source))]
    parts = (seed, shown, sums, [found.all() for found in details], [contents_sha256(side) for side in own])
    digest = hashlib.sha256(repr(parts).encode())
    for folder in (Path(__file__).parent, Path(__file__).parent.parent / "formats"):
        for file in sorted(folder.glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _build(
    draft: Path,
    settings: DataSettings,
    form: Format,
    own: Sequence[Sequence[Example]],
    details: Sequence[Findings],
    seed: int,
    emit: Emit,
) -> None:
    """Read twice, and write down what was found out."""
    found = Findings()
    done = scan(settings, form, seed if settings.split.seed == "recipe" else settings.split.seed, found, emit)
    for part in details:
        found.update(part)
    kept = np.arange(len(done)) if settings.dedup == "none" else _without_repeats(done, found)
    train, validation, test = _sides(settings, done, kept)
    held_out = [*own[0], *done.examples(validation), *own[1], *done.examples(test)]
    _note_leaks(done, train, held_out, found)
    left_out = {"faults": done.num_read - len(done), "duplicates": len(done) - len(kept), "shots": 0}
    if settings.limit and settings.limit < len(train):
        left_out["limit"] = len(train) - settings.limit
        train = _limited(done, train, settings.limit, seed)
    for side, rows in zip(_SIDES, (train, validation, test), strict=True):
        _write(draft, side, done.places.some(rows))
    label_rows, rare = _label_rows(done, train)
    meta = {
        "files": done.places.files,
        "num_read": done.num_read,
        "num_left_out": left_out,
        "findings": [asdict(one) for one in found.all()],
        "label_rows": label_rows,
        "rare": rare,
        "sha256": _sum(done.examples(train), emit),
    }
    (draft / META).write_text(json.dumps(meta, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _without_repeats(done: Scan, found: Findings) -> Rows:
    """The rows that repeat no earlier one; the others are noted."""
    keys, others, places = done.keys, done.others, done.places
    order = np.lexsort((others, keys))  # stable: of equal rows the first stays first
    is_new = np.zeros(len(order), dtype=bool)
    is_new[:1] = True
    for hashes in (keys, others):  # one at a time, for the memory
        ordered = hashes[order]
        is_new[1:] |= ordered[1:] != ordered[:-1]
        del ordered
    begins, places_of_repeats = np.flatnonzero(is_new), np.flatnonzero(~is_new)
    repeats = order[places_of_repeats]
    earlier = order[begins[np.searchsorted(begins, places_of_repeats) - 1]]
    del begins
    in_order = np.argsort(repeats)
    for row, first in zip(repeats[in_order].tolist(), earlier[in_order].tolist(), strict=True):
        note_duplicate(found, places.origin(row), places.origin(first))
    return np.sort(order[is_new])


def _sides(settings: DataSettings, done: Scan, kept: Rows) -> tuple[Rows, Rows, Rows]:
    """Which rows train, validate and test: by the hash of their question, or of the row where many ask the same."""
    shares = [0.0 if getattr(settings, side) else getattr(settings.split, side) for side in _SIDES[1:]]
    groups = done.questions[kept]
    most = max(10, len(kept) // 100)
    ordered = np.sort(groups)
    common = np.unique(ordered[most:][ordered[most:] == ordered[:-most]])  # there are more than `most` of these
    del ordered
    is_common = np.isin(groups, common)
    groups[is_common] = done.keys[kept[is_common]]
    place = groups.astype(np.float64)
    place /= 2**64
    side = np.zeros(len(kept), dtype=np.int8)
    side[place < shares[1] + shares[0]] = 1
    side[place < shares[1]] = 2
    del place
    wanted = [0, *(number for number, share in enumerate(shares, 1) if share > 0)]
    if not all((side == number).any() for number in wanted):
        raise NotLarge
    _keep_labels(done, kept, groups, is_common, side)
    return kept[side == 0], kept[side == 1], kept[side == 2]


def _keep_labels(
    done: Scan, kept: Rows, groups: NDArray[np.uint64], is_common: NDArray[np.bool_], side: NDArray[Any]
) -> None:
    """Move the last group of a label that train would lack back into train, as `split` does."""
    label_of = done.label_of[kept]
    with_label: dict[str, list[int]] = {}
    for labels, number in done.label_sets.items():
        for label in labels:
            with_label.setdefault(label, []).append(number)
    trained = np.bincount(label_of[side == 0], minlength=len(done.label_sets)) > 0
    for _, numbers in sorted(with_label.items()):
        if trained[numbers].any():
            continue
        holders = np.flatnonzero(np.isin(label_of, numbers))
        names = [
            content_key(example) if is_common[row] else normalise(question_of(example))
            for row, example in zip(holders.tolist(), done.examples(kept[holders]), strict=True)
        ]
        if not names:
            continue
        _, _, row = min((int(side[row]), name, row) for row, name in zip(holders.tolist(), names, strict=True))
        side[groups == groups[row]] = 0
        trained = np.bincount(label_of[side == 0], minlength=len(done.label_sets)) > 0


def _note_leaks(done: Scan, train: Rows, held_out: Sequence[Example], found: Findings) -> None:
    asked = {hash_of(normalise(question_of(example)), done.split_seed) for example in held_out}
    suspects = train[np.isin(done.questions[train], np.asarray(sorted(asked), dtype=np.uint64))]
    note_leaks(done.examples(suspects), held_out, found)


def _limited(done: Scan, train: Rows, limit: int, seed: int) -> Rows:
    places = np.fromiter((unit_hash(f"limit {content_key(one)}", seed) for one in done.examples(train)), np.float64)
    return train[np.argsort(places, kind="stable")[:limit]]


def _label_rows(done: Scan, train: Rows) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """How many training rows have each class, and those of one row with its place."""
    numbers = done.label_of[train]
    counts = np.bincount(numbers, minlength=len(done.label_sets)).tolist()
    rows: Counter[str] = Counter()
    for labels, number in done.label_sets.items():
        rows.update({label: counts[number] for label in labels if counts[number]})
    single = {label for label, count in rows.items() if count == 1}
    wanted = [number for labels, number in done.label_sets.items() if single & set(labels)]
    sets = list(done.label_sets)
    found = np.flatnonzero(np.isin(numbers, wanted)).tolist()
    rare = [
        (label, str(done.places.origin(int(train[row]))))
        for row in found
        for label in sets[numbers[row]]
        if label in single
    ]
    return dict(rows), rare


def _sum(examples: StoredExamples, emit: Emit) -> str:
    def told() -> Iterator[Example]:
        last = time.perf_counter()
        for number, example in enumerate(examples):
            if number % 1000 == 0 and time.perf_counter() - last > 1.0:
                last = time.perf_counter()
                emit(Progress(STEP, number, len(examples), "summing", "row"))
            yield example

    return contents_sha256(told())


def _write(draft: Path, side: str, places: Places) -> None:
    for name, kind in _KINDS.items():
        getattr(places, name).astype(kind).tofile(draft / f"{side}.{name}")


def _opened(folder: Path, side: str, files: tuple[str, ...]) -> Places:
    columns = []
    for name, kind in _KINDS.items():
        path = folder / f"{side}.{name}"
        columns.append(np.asarray(np.memmap(path, kind, "r")) if path.stat().st_size else np.zeros(0, kind))
    return Places(files, *columns)
