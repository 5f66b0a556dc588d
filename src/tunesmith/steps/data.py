"""Look at rows before anything is trained: check them, show what is learnt of them, prepare a data set."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Finished, Saved, Started, silent
from tunesmith.core.plugins import build
from tunesmith.core.publish import MANIFEST, publishing, verify, write_text
from tunesmith.core.records import Example, Origin
from tunesmith.data.check import check_rows
from tunesmith.data.findings import Findings
from tunesmith.data.learnt import learn
from tunesmith.data.load import CARD, Loaded, load_data, read_examples, source_files
from tunesmith.data.mix import repeated
from tunesmith.data.repeats import note_leaks
from tunesmith.data.rows import RawRow, read_rows
from tunesmith.data.write import FORMATS, json_lines, jsonl, row_of
from tunesmith.recipe import DataSettings, ModelSettings
from tunesmith.steps.data_card import card_in_words, recorded_settings
from tunesmith.steps.data_report import CheckReport, Prepared, ShownRow, ShowReport
from tunesmith.steps.data_tokens import STEP, measure, summarize_lengths

BUILT_IN = "tunesmith/base"
MAX_PLACES = 1000


def check(
    settings: DataSettings,
    *,
    model: str = BUILT_IN,
    repair: str = "",
    emit: Emit = silent,
    tokenizer: Any = None,
) -> CheckReport:
    """Everything that is wrong with the rows of `settings.source`; held-out rows are looked for among them.

    With `repair` the rows that can be trained on, without repetitions, are written to that new .jsonl file.

    Raises:
        UserError: The file cannot be read at all, no format fits, or `repair` cannot be written.
    """
    began = time.perf_counter()
    path = _one_source(settings)
    if repair:
        _refuse_repair(repair)
    emit(Started(STEP, f"check {path}"))
    lenient = settings.model_copy(update={"on_fault": "skip"})
    loaded = read_examples(path, lenient)
    found = loaded.details
    check_rows(loaded.examples, found)
    for held_out in (settings.validation, settings.test):
        if held_out:
            note_leaks(loaded.examples, read_examples(held_out, lenient).examples, found)
    tokenizer, context = _opened(model, tokenizer)
    max_length = settings.max_length if isinstance(settings.max_length, int) else context
    measured = measure(loaded.examples, tokenizer, max_length, context, found, emit)
    bad = {str(origin) for finding in found.all() if finding.level == "error" for origin in found.places(finding.code)}
    usable = [example for example in loaded.examples if str(example.origin) not in bad]
    num_repaired = _repair(path, repair, settings, found) if repair else 0
    first = next((m for m in measured if m[0] is (usable[0] if usable else None)), None)
    report = CheckReport(
        path=path,
        num_rows=loaded.num_read,
        num_bytes=sum(file.num_bytes for file in source_files(path)),
        format_name=loaded.format_name,
        description=build("formats", loaded.format_name).describe().partition(":")[0] if loaded.format_name else "",
        model=model,
        max_length=max_length,
        findings=found.all(),
        places={f.code: tuple(map(str, found.places(f.code)[:MAX_PLACES])) for f in found.all()},
        num_usable=len(usable),
        lengths=summarize_lengths([one.num_tokens for _, one in measured]),
        num_tokens=sum(one.num_tokens for _, one in measured),
        num_trained=sum(one.num_trained for _, one in measured),
        num_with_end=sum(one.has_end for _, one in measured),
        preview=first[1].pieces if first else (),
        preview_origin=str(first[0].origin) if first else "",
        repaired=repair,
        num_repaired=num_repaired,
        seconds=time.perf_counter() - began,
        next=_next(path, repair, found),
    )
    emit(Finished(STEP, seconds=report.seconds, values={"rows": report.num_rows, "usable": report.num_usable}))
    return report


def show(
    settings: DataSettings,
    *,
    line: int = 0,
    count: int = 3,
    model: str = BUILT_IN,
    tokenizer: Any = None,
) -> ShowReport:
    """How rows were read and what is learnt of them: the row at `line`, or the first `count`.

    Raises:
        UserError: No row starts at that line, or the file cannot be read.
    """
    path = _one_source(settings)
    loaded = read_examples(path, settings.model_copy(update={"on_fault": "skip"}))
    faults = _faults(loaded)
    examples = {e.origin: e for e in loaded.examples}
    origins = sorted({*examples, *faults}, key=lambda origin: (origin.file, origin.line))
    if line:
        chosen = [origin for origin in origins if origin.line == line]
        if not chosen:
            near = min((origin.line for origin in origins), key=lambda number: (abs(number - line), number), default=0)
            raise UserError(
                f"no row starts at line {line}.", code="no_row", where=path, remedy=f"The nearest starts at {near}."
            )
    else:
        chosen = origins[:count]
    tokenizer, context = _opened(model, tokenizer)
    max_length = settings.max_length if isinstance(settings.max_length, int) else context
    raw = {item.origin: item.values for item in read_rows(path, on_fault="skip") if isinstance(item, RawRow)}
    rows = []
    for origin in chosen:
        example = examples.get(origin)
        fault = faults.get(origin, "")
        learnt = None
        if example is not None:
            try:
                learnt = learn(example, tokenizer, max_length=max_length)
            except UserError as error:
                fault = error.line()
        kind = FORMATS[type(example)] if example is not None else ""
        unused = tuple(example.fields) if example is not None else ()
        rows.append(ShownRow(str(origin), kind, raw.get(origin, {}), unused, learnt, fault))
    description = build("formats", loaded.format_name).describe() if loaded.format_name else ""
    return ShowReport(path, loaded.format_name, description, model, max_length, tuple(rows))


def prepare(settings: DataSettings, out: Path, *, seed: int, emit: Emit = silent) -> Prepared:
    """Publish the data set of `settings` as a folder: a file of rows per side, and its card.

    The same settings, files and seed give the same bytes, so that doing it again changes nothing.

    Raises:
        UserError: As `load_data`; or `out` exists and holds anything else.
    """
    began = time.perf_counter()
    emit(Started(STEP, f"prepare {out}"))
    data = load_data(settings, seed=seed, emit=emit)
    data = replace(data, train=repeated(data), copies={})
    for finding in data.findings:
        emit(finding)
    kind = FORMATS[type(data.train[0])]
    card = {**data.card(), "format": kind, "read_as": data.format_name, "settings": recorded_settings(settings)}
    sides = {"train": data.train, "validation": data.validation, "test": data.test}
    files: dict[str, Callable[[], Iterable[str]]] = {
        f"{side}.jsonl": partial(_lines, examples) for side, examples in sides.items() if examples
    }
    files[CARD] = partial(iter, [json.dumps(card, indent=2, ensure_ascii=False) + "\n"])
    files["README.md"] = partial(iter, [card_in_words(card)])
    if out.exists():
        _require_same(out, files)
    else:
        with publishing(out) as draft:
            for name, parts in files.items():
                with (draft / name).open("w", encoding="utf-8", newline="\n") as file:
                    file.writelines(parts())
    emit(Saved(STEP, str(out), "data set"))
    text = f"{len(data.train):,} train, {len(data.validation):,} validation, {len(data.test):,} test rows"
    emit(Finished(STEP, text, time.perf_counter() - began))
    return Prepared(out, card)


# Reading


def _one_source(settings: DataSettings) -> str:
    if isinstance(settings.source, str):
        return settings.source
    if len(settings.source) == 1:
        return settings.source[0].path
    raise UserError(
        "this looks at one source at a time.", code="several_sources", remedy="Name one of the recipe's files instead."
    )


def _opened(model: str, tokenizer: Any) -> tuple[Any, int]:
    """A model's tokenizer and its context in tokens, without its weights."""
    if tokenizer is None:
        from tunesmith.models.load import load_tokenizer

        tokenizer = load_tokenizer(ModelSettings(name=model))
    length = int(min(getattr(tokenizer, "model_max_length", 0) or 0, 10**9))
    if 0 < length < 10**6:
        return tokenizer, length
    from transformers import AutoConfig

    from tunesmith.models.configuration import context_length
    from tunesmith.models.source import resolve

    return tokenizer, context_length(AutoConfig.from_pretrained(resolve(model)))


def _faults(loaded: Loaded) -> dict[Origin, str]:
    return {
        origin: f"{finding.message}: {finding.remedy} [{finding.code}]"
        for finding in loaded.findings
        if finding.level == "error"
        for origin in loaded.details.places(finding.code)
    }


# What to do next


def _next(path: str, repair: str, found: Findings) -> tuple[str, ...]:
    findings = found.all()
    if not findings:
        return ()
    name = Path(path)
    clean = name.with_name(f"{name.name.partition('.')[0]}.clean.jsonl")
    mend = [f"tunesmith data check {path} --repair {clean}"] if _dropped(found) and not repair else []
    shown = next((f for f in findings if f.code not in ("invalid_json", "not_utf8")), findings[0])
    return (*mend, f"tunesmith data show {shown.where}")


# Repair


def _refuse_repair(repair: str) -> None:
    if not repair.endswith(".jsonl"):
        raise UserError("repaired rows are written as .jsonl.", code="bad_name", where=repair, remedy="Name it so.")
    if Path(repair).exists():
        raise UserError("this file exists already.", code="exists", where=repair, remedy="Name a new one.")


def _dropped(found: Findings) -> set[Origin]:
    codes = [finding.code for finding in found.all() if finding.level == "error"] + ["duplicate", "leak"]
    return {origin for code in codes for origin in found.places(code)}


def _repair(path: str, repair: str, settings: DataSettings, found: Findings) -> int:
    """Write the rows without errors, repetitions and leaks, as the file has them; how many there are."""
    dropped = _dropped(found)
    if settings.dedup == "near":
        dropped |= set(found.places("near_duplicate"))
    kept = [
        item.values
        for item in read_rows(path, on_fault="skip")
        if isinstance(item, RawRow) and item.origin not in dropped
    ]
    write_text(Path(repair), jsonl(kept))
    return len(kept)


# Publishing


def _lines(examples: Sequence[Example]) -> Iterator[str]:
    return json_lines(map(row_of, examples))


def _sum(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()


def _require_same(out: Path, files: Mapping[str, Callable[[], Iterable[str]]]) -> None:
    if not (out / CARD).is_file() or not (out / MANIFEST).is_file():
        raise UserError(
            "this exists and is not a prepared data set.", code="exists", where=str(out), remedy="Name a new folder."
        )
    sums = {name: listed["sha256"] for name, listed in verify(out)["files"].items()}
    if sums != {name: _sum(parts()) for name, parts in files.items()}:
        raise UserError(
            "this holds a data set made from other rows or settings.",
            code="exists",
            where=str(out),
            remedy="Name a new folder, or delete this one.",
        )
