"""From the recipe's `data` section to examples: read, recognise, leave out repetitions, hold out, mix.

Everything that is left out is counted and shown as a finding. A folder written by `tunesmith data prepare` is taken as
it is, after its manifest was verified.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Finding, Warning, silent
from tunesmith.core.plugins import build
from tunesmith.core.publish import verify
from tunesmith.core.records import Example, LabelExample, MultiLabelExample, Origin, TagExample
from tunesmith.data.findings import Findings
from tunesmith.data.labels import in_order, labels_in, learnt_labels
from tunesmith.data.large import LargeSet, is_large, load_large
from tunesmith.data.mix import copies_per_epoch, named, refuse_tasks, settings_of, sources_of
from tunesmith.data.read import Loaded, SourceFile, read_examples, recognise, source_files
from tunesmith.data.repeats import content_key, normalise, note_leaks, question_of, without_repeats
from tunesmith.data.shots import draw_shots
from tunesmith.data.split import Sides, split, unit_hash
from tunesmith.data.spool import NotLarge
from tunesmith.data.stored import StoredExamples
from tunesmith.data.write import FORMATS, contents_sha256
from tunesmith.recipe import DataSettings, SourceSettings

__all__ = ["CARD", "DataSet", "Loaded", "SourceFile", "load_data", "read_examples", "recognise", "source_files"]

CARD = "card.json"


@dataclass(frozen=True)
class DataSet:
    """Examples for training, validation and the final scores, with what was found on the way."""

    train: Sequence[Example]
    """In memory, or in their file where that is large (`StoredExamples`)."""
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    findings: tuple[Finding, ...] = ()
    labels: tuple[str, ...] = ()
    """Class names in the order of their indices; empty where rows have no labels."""
    format_name: str = ""
    num_read: int = 0
    num_left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows read but not used, by reason."""
    files: tuple[SourceFile, ...] = ()
    seed: int = 0
    copies: Mapping[str, float] = field(default_factory=dict)
    """How often each source's rows are read in an epoch, where there are several sources."""

    def card(self) -> dict[str, Any]:
        """The data card: counts, sums of the files and of each side's contents. Equal data have equal cards."""
        sides = {"train": self.train, "validation": self.validation, "test": self.test}
        if isinstance(self.train, StoredExamples):
            labels = Counter(self.train.label_counts)
        else:
            labels = Counter(label for example in self.train for label in labels_in(example))
        return {
            "version": 1,
            "format": self.format_name,
            "seed": self.seed,
            "rows": {"read": self.num_read, **{side: len(examples) for side, examples in sides.items()}},
            **({"copies": dict(self.copies)} if self.copies else {}),
            "left_out": dict(self.num_left_out),
            "labels": {label: labels[label] for label in self.labels},
            "files": [{"name": f.name, "bytes": f.num_bytes, "sha256": f.sha256} for f in self.files],
            "contents_sha256": {side: contents_sha256(examples) for side, examples in sides.items()},
            "findings": [{"level": f.level, "code": f.code, "rows": f.num_rows} for f in self.findings],
        }


def load_data(settings: DataSettings, *, seed: int, emit: Emit = silent) -> DataSet:
    """The data set of a recipe; equal settings, files and seed give an equal one. `emit` hears of large files.

    Raises:
        UserError: A file or row is wrong, nothing is left to train on, or a label cannot be learnt or scored.
    """
    if isinstance(settings.source, str) and (Path(settings.source) / CARD).is_file():
        return _load_prepared(settings, Path(settings.source), seed, emit)
    sources = sources_of(settings)
    refuse_tasks(settings)
    if large := _on_disk(settings, emit, lambda: _load_large(settings, seed, emit)):
        return large
    loaded = [read_examples(source.path, settings_of(settings, source)) for source in sources]
    held = [_held(settings, sources, side) for side in ("validation", "test")]
    everything = [*loaded, *(part for side in held for part in side.values())]
    _refuse_mixed_kinds(everything)
    found = Findings()
    for part in everything:
        found.update(part.details)
    num_faults = sum(part.num_faults for part in everything)

    has_several = len(sources) > 1
    parts = [
        named(part.examples, of.name) if has_several else part.examples
        for of, part in zip(sources, loaded, strict=True)
    ]
    examples: Sequence[Example] = [example for part in parts for example in part]
    num_found = len(examples)
    keys: Sequence[str] = [content_key(e) for e in examples]
    if settings.dedup != "none":
        examples, keys = without_repeats(examples, keys, found, near=settings.dedup == "near")
    if not examples:
        raise UserError(
            f"no row is left to train on: {sum(p.num_read for p in loaded):,} read, {num_faults:,} with faults.",
            code="no_rows",
            where=sources[0].path,
            remedy="See what is wrong with: tunesmith data check " + sources[0].path,
        )
    sides = _sides(settings, examples, keys, seed)
    validation, test = (
        (*(e for part in files.values() for e in part.examples), *(examples[i] for i in split_off))
        for files, split_off in zip(held, (sides.validation, sides.test), strict=True)
    )
    train = [examples[i] for i in sides.train]
    note_leaks(train, (*validation, *test), found)
    num_whole, learnable = len(train), _label_counts(train)
    if settings.shots:
        train = draw_shots(train, settings.shots, seed, found)
    left_out = {"faults": num_faults, "duplicates": num_found - len(examples), "shots": num_whole - len(train)}
    if settings.limit and settings.limit < len(train):
        left_out["limit"] = len(train) - settings.limit
        train = _limited(train, settings.limit, seed)
    return DataSet(
        train=tuple(train),
        validation=validation,
        test=test,
        findings=found.all(),
        labels=_labels(train, validation, test, learnable),
        format_name=loaded[0].format_name,
        num_read=sum(part.num_read for part in everything),
        num_left_out={reason: number for reason, number in left_out.items() if number},
        files=_files(sources, held),
        seed=seed,
        copies=_copies(settings, sources, Counter(example.source_name for example in train)),
    )


def _load_large(settings: DataSettings, seed: int, emit: Emit) -> DataSet:
    """Large files, whose training rows stay on disk.

    Raises:
        UserError: As `load_data`.
        NotLarge: The rows must be held in memory after all.
    """
    sources = sources_of(settings)
    held = [_held(settings, sources, side) for side in ("validation", "test")]
    large = load_large(settings, [list(side.values()) for side in held], seed, emit)
    beside = [part for side in held for part in side.values()]
    _refuse_mixed_kinds([*(Loaded((first,), (), "") for first in large.firsts), *beside])
    left_out = {**large.num_left_out, "faults": large.num_left_out["faults"] + sum(part.num_faults for part in beside)}
    return replace(
        _of_large(large, seed),
        num_read=large.num_read + sum(part.num_read for part in beside),
        num_left_out={reason: number for reason, number in left_out.items() if number},
        files=_files(sources, held),
        copies=_copies(settings, sources, large.source_rows),
    )


def _of_large(large: LargeSet, seed: int) -> DataSet:
    """What a large set says by itself; what is counted beside it is the caller's."""
    return DataSet(
        train=large.train,
        validation=large.validation,
        test=large.test,
        findings=large.findings,
        labels=_labels_of_large(large),
        format_name=large.train.format_name,
        num_read=large.num_read,
        seed=seed,
    )


def _limited(train: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """So many rows, the first by the hash of their contents; of equal ones the earlier."""
    return sorted(train, key=lambda example: unit_hash(f"limit {content_key(example)}", seed))[:limit]


def _on_disk(settings: DataSettings, emit: Emit, load: Callable[[], DataSet]) -> DataSet | None:
    """What `load` gives, where files are large; None, which is said, where their rows must be held after all."""
    if not is_large(settings):
        return None
    try:
        return load()
    except NotLarge as fault:
        path, reason = sources_of(settings)[0].path, str(fault)
    held = f"the rows of {path} are held in memory, some 4 bytes for each byte of text: {reason}"
    text = f"{held}; otherwise they would stay on disk"
    emit(Warning("train", "rows_held", text, {"path": path, "reason": reason}))
    return None


def _files(sources: Sequence[SourceSettings], held: Sequence[Mapping[str, Loaded]]) -> tuple[SourceFile, ...]:
    paths = [*(source.path for source in sources), *(path for side in held for path in side)]
    return tuple(file for path in paths for file in source_files(path))


def _copies(settings: DataSettings, sources: Sequence[SourceSettings], sizes: Mapping[str, int]) -> dict[str, float]:
    """How often the rows of each source are read in an epoch, where there are several; `sizes` are rows."""
    if len(sources) < 2:
        return {}
    counts = [sizes.get(source.name, 0) for source in sources]
    each = copies_per_epoch(counts, [source.weight for source in sources], settings.mixing)
    return {source.name: times for source, times in zip(sources, each, strict=True) if times}


def _labels_of_large(large: LargeSet) -> tuple[str, ...]:
    """As `_labels`, from the counts of the training rows."""
    held_out = (*large.validation, *large.test)
    if isinstance(large.train[0], MultiLabelExample | TagExample):
        return learnt_labels(large.train.label_counts, held_out)
    total = Counter(large.label_rows) + _label_counts(held_out)
    for label, where in large.rare:
        if total[label] == 1:
            raise _rare_label(label, where)
    return _checked(Counter(large.train.label_counts), total, held_out)


def _held(settings: DataSettings, sources: Sequence[SourceSettings], side: str) -> dict[str, Loaded]:
    """The files of held-out rows: the recipe's one for all sources, and those of single sources."""
    found: dict[str, Loaded] = {}
    whole = getattr(settings, side)
    if whole:
        found[whole] = read_examples(whole, settings)
    for source in sources:
        path = getattr(source, side)
        if path:
            part = read_examples(path, settings_of(settings, source))
            found[path] = replace(part, examples=named(part.examples, source.name)) if len(sources) > 1 else part
    return found


def _sides(
    settings: DataSettings,
    examples: Sequence[Example],
    keys: Sequence[str],
    seed: int,
) -> Sides:
    """Who is held out; a source with a file of its own for a side gives no rows to that side."""
    share = settings.split
    validation_share = settings.validation_share(len(examples))
    together = _togetherness(examples, keys)
    groups: dict[tuple[float, float], list[int]] = {}
    sources = sources_of(settings)
    of = {source.name: source for source in sources}
    for i, example in enumerate(examples):
        source = of.get(example.source_name, sources[0])
        has = [getattr(settings, side) or getattr(source, side) for side in ("validation", "test")]
        groups.setdefault((0.0 if has[0] else validation_share, 0.0 if has[1] else share.test), []).append(i)
    chosen: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for (validation, test), members in groups.items():
        sides = split(
            [examples[i] for i in members],
            [together[i] for i in members],
            validation=validation,
            test=test,
            group_by=share.group_by,
            seed=seed if share.seed == "recipe" else share.seed,
        )
        for side, rows in chosen.items():
            rows.extend(members[i] for i in getattr(sides, side))
    return Sides(*(sorted(rows) for rows in chosen.values()))


def _refuse_mixed_kinds(parts: Sequence[Loaded]) -> None:
    kinds: dict[type[Example], Origin] = {}
    for part in parts:
        for example in part.examples[:1]:
            kinds.setdefault(type(example), example.origin)
    if len(kinds) > 1:
        said = " and ".join(f"{FORMATS[kind]} rows ({origin.file})" for kind, origin in kinds.items())
        raise UserError(
            f"the files hold different kinds of rows: {said}.",
            code="mixed_kinds",
            remedy="Name files of one kind, or rename their columns with data.columns.",
        )


def _togetherness(examples: Sequence[Example], keys: Sequence[str]) -> list[str]:
    """What keeps rows on one side: their question, as several answers to one are common.

    A question of more than 1 % of the rows (an instruction that all share) says nothing; there it is the whole row.
    """
    questions = [normalise(question_of(example)) for example in examples]
    counts = Counter(questions)
    most = max(10, len(examples) // 100)
    return [question if counts[question] <= most else key for question, key in zip(questions, keys, strict=True)]


def _labels(
    train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example], learnable: Counter[str]
) -> tuple[str, ...]:
    """The class names, numbers in their order; `learnable` are the rows of each class before any were drawn.

    Raises:
        UserError: A label occurs once, or only outside the training rows.
    """
    if train and isinstance(train[0], MultiLabelExample | TagExample):
        return learnt_labels({label for example in train for label in labels_in(example)}, (*validation, *test))
    total = learnable + _label_counts((*validation, *test))
    return _checked(_label_counts(train), total, (*train, *validation, *test))


def _label_counts(examples: Sequence[Example]) -> Counter[str]:
    """How many rows each single class has."""
    return Counter(example.label for example in examples if isinstance(example, LabelExample))


def _rare_label(label: str, where: str) -> UserError:
    return UserError(
        f'the label "{label}" occurs once; it cannot be learnt and scored.',
        code="rare_label",
        where=where,
        remedy="Add rows with this label, or delete the row.",
    )


def _checked(learnt: Counter[str], total: Counter[str], examples: Sequence[Example]) -> tuple[str, ...]:
    """The learnt labels in order, where all of these rows can be learnt or scored."""
    for example in examples:
        if not isinstance(example, LabelExample):
            break
        if total[example.label] == 1:
            raise _rare_label(example.label, str(example.origin))
        if example.label not in learnt:
            raise UserError(
                f'the label "{example.label}" is not among the training rows.',
                code="unseen_label",
                where=str(example.origin),
                remedy="Add training rows with this label, mend its spelling, or delete the row.",
            )
    if len(learnt) == 1:
        raise UserError(
            f'every row has the label "{next(iter(learnt))}".', code="one_label", remedy="Add another class."
        )
    return in_order(tuple(learnt))


def _load_prepared(settings: DataSettings, folder: Path, seed: int, emit: Emit) -> DataSet:
    verify(folder)
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    plain = settings.model_copy(update={"format": build("formats", card["format"]), "columns": {}})
    sides: dict[str, tuple[Example, ...]] = {}
    for side, path in (("validation", settings.validation), ("test", settings.test)):
        file = folder / f"{side}.jsonl"
        own = read_examples(file, plain).examples if card["rows"][side] else ()
        sides[side] = read_examples(path, settings).examples if path else own
    if large := _on_disk(settings, emit, lambda: _large_prepared(plain, folder, sides, seed, emit)):
        return large
    sides["train"] = read_examples(folder / "train.jsonl", plain).examples if card["rows"]["train"] else ()
    found = Findings()
    note_leaks(sides["train"], (*sides["validation"], *sides["test"]), found)
    train = sides["train"]
    learnable, left_out = _label_counts(train), {}
    if settings.shots:
        train = tuple(draw_shots(train, settings.shots, seed, found))
        left_out["shots"] = len(sides["train"]) - len(train)
    if settings.limit and settings.limit < len(train):
        left_out["limit"] = len(train) - settings.limit
        train = tuple(_limited(train, settings.limit, seed))
    return DataSet(
        train=train,
        validation=sides["validation"],
        test=sides["test"],
        findings=found.all(),
        labels=_labels(train, sides["validation"], sides["test"], learnable),
        format_name=card["format"],
        num_read=sum(len(examples) for examples in sides.values()),
        num_left_out=left_out,
        files=source_files(folder),
        seed=seed,
    )


def _large_prepared(
    settings: DataSettings, folder: Path, held: Mapping[str, tuple[Example, ...]], seed: int, emit: Emit
) -> DataSet:
    """A prepared folder whose training rows stay in its file: nothing of it is divided again.

    Raises:
        NotLarge: The rows must be held in memory.
    """
    whole = settings.split.model_copy(update={"validation": 0.0, "test": 0.0, "group_by": ""})
    own = {"source": str(folder / "train.jsonl"), "validation": "", "test": "", "dedup": "none", "split": whole}
    parts = [[Loaded(held[side], (), "")] for side in ("validation", "test")]
    large = load_large(settings.model_copy(update=own), parts, seed, emit)
    wished = ["shots", "limit"] if settings.shots else ["limit"]
    return replace(
        _of_large(large, seed),
        num_read=large.num_read + sum(map(len, held.values())),
        num_left_out={reason: large.num_left_out[reason] for reason in wished if reason in large.num_left_out},
        files=source_files(folder),
    )
