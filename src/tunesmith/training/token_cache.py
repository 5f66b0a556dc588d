"""Rows tokenised once: kept in the user's cache folder under what they were made from, mapped when they are used.

The name of an entry is a SHA-256 over everything that decides its bytes: the examples with their origins, the tokenizer
with its chat template, the objective and its settings, the longest row, the labels, and the source of the code that
encodes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core.cache import Cache
from tunesmith.core.events import Emit, Finding, Progress, silent
from tunesmith.core.records import Example
from tunesmith.data.render import template_of
from tunesmith.data.stored import StoredExamples
from tunesmith.models.rates import num_cores
from tunesmith.training.encode import Encoding, Rows, encode_rows, findings_of, nothing_trained
from tunesmith.training.encode_workers import can_travel, encoded
from tunesmith.training.token_store import META, Chunk, Loss, Origins, StoredFeatures, StoreWriter, mapped

STEP = "train"
WORKERS = "TUNESMITH_TOKENISERS"
MIN_ROWS = 1000
"""Fewer rows are tokenised in memory each time: it takes a second at most."""
CHUNK = 256
WORTH_SECONDS = 10.0
"""Work left, as measured on the first chunks, for which processes are started; each takes about 3 s to begin."""
TRIAL_SECONDS = 2.0


def tokenized(
    examples: Sequence[Example], encoding: Encoding, *, cache: Cache | None = None, emit: Emit = silent
) -> tuple[Rows, tuple[Finding, ...]]:
    """As `encode_rows`, from the cache where the same rows were tokenised before; few rows are kept in memory.

    Raises:
        UserError: No row has a token that is learnt, or the disk is full.
    """
    if len(examples) < MIN_ROWS:
        objective, tokenizer = encoding.objective, encoding.tokenizer
        return encode_rows(examples, objective, tokenizer, max_length=encoding.max_length, labels=encoding.labels)
    cache = cache or Cache.of_rows()

    def build(draft: Path) -> None:
        writer = StoreWriter(draft)
        for chunk in _chunks(examples, encoding, emit):
            writer.add(chunk)
        if not writer.num_rows:
            raise nothing_trained(len(examples), str(examples[0].origin), encoding.max_length)
        writer.close()

    with cache.entry(lambda: f"tokens-{rows_key(examples, encoding)}", build, emit, step=STEP) as folder:
        return open_rows(folder, encoding.max_length)  # mapped files stay until they are closed


def open_rows(folder: Path, max_length: int) -> tuple[Rows, tuple[Finding, ...]]:
    """The rows of a store, mapped, and what was lost when they were made."""
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    features = StoredFeatures(folder, meta)
    file_of = mapped(folder / "files", "i4") if len(meta["files"]) > 1 else None
    source_of = mapped(folder / "names", "i4") if len(meta["names"]) > 1 else None
    rows = Rows(
        features,
        mapped(folder / "lengths", "i4"),
        features.numbers.get("weight", np.zeros(len(features))),
        Origins(meta["files"], file_of, mapped(folder / "lines", "i8")),
        tuple(meta["names"]),
        source_of,
    )
    return rows, findings_of(Loss(**meta["cut"]), Loss(**meta["empty"]), max_length)


def rows_key(examples: Sequence[Example], encoding: Encoding) -> str:
    """SHA-256 over all that decides the rows, in hexadecimal."""
    digest = hashlib.sha256()
    parts = (
        tokenizer_sha256(encoding.tokenizer),
        type(encoding.objective).__module__,
        repr(encoding.objective),
        encoding.max_length,
        encoding.labels,
        code_sha256(encoding),
        [f"{name} {metadata.version(name)}" for name in ("transformers", "tokenizers", "jinja2")],
    )
    digest.update(repr(parts).encode())
    if isinstance(examples, StoredExamples):
        digest.update(examples.identity.encode())
        return digest.hexdigest()
    for example in examples:
        digest.update(repr(example).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """One sum over a tokenizer's saved files; how it cut or padded last does not count.

    A template that writes the date gives other tokens every day, and so another sum.
    """
    digest = hashlib.sha256(type(tokenizer).__qualname__.encode())
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                text = path.read_bytes()
                if path.name == "tokenizer.json":
                    text = json.dumps({**json.loads(text), "truncation": None, "padding": None}).encode()
                digest.update(f"\n{path.name} {len(text)}\n".encode() + text)
    if "strftime_now" in template_of(tokenizer):
        digest.update(time.strftime("%Y-%m-%d").encode())
    return digest.hexdigest()


def code_sha256(encoding: Encoding) -> str:
    """One sum over the source of everything that makes tokens from examples: ours, and the objective's own file."""
    digest = hashlib.sha256()
    packages = ("tunesmith.data", "tunesmith.objectives")
    folders = [Path(str(importlib.import_module(name).__file__)).parent for name in packages]
    own = Path(str(importlib.import_module(type(encoding.objective).__module__).__file__))
    files = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    for path in [*files, Path(__file__).with_name("token_store.py"), own]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _chunks(examples: Sequence[Example], encoding: Encoding, emit: Emit) -> Iterator[Chunk]:
    """All examples encoded, in order: the first here, the rest in processes where that is worth their start."""
    total = len(examples)
    begun = told = time.perf_counter()
    parts = _parts(examples)
    workers = _num_workers()
    is_open = workers > 1
    done = 0
    for part in parts:
        chunk = encoding.chunk(part)
        yield chunk
        done += chunk.num_examples
        now = time.perf_counter()
        if now - told > 1.0:
            told = now
            emit(Progress(STEP, done, total, "tokenising", "row"))
        if is_open and now - begun > TRIAL_SECONDS:
            is_open = False
            if (total - done) * (now - begun) / done > WORTH_SECONDS and can_travel(encoding):
                break
    for chunk in encoded(parts, encoding, workers) if done < total else ():
        yield chunk
        done += chunk.num_examples
        if time.perf_counter() - told > 1.0:
            told = time.perf_counter()
            emit(Progress(STEP, done, total, "tokenising", "row"))
    if told > begun:
        emit(Progress(STEP, total, total, "tokenising", "row"))


def _parts(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    part: list[Example] = []
    for example in examples:
        part.append(example)
        if len(part) == CHUNK:
            yield part
            part = []
    if part:
        yield part


def _num_workers() -> int:
    """One for each core that this process may use, unless `$TUNESMITH_TOKENISERS` says how many."""
    wished = os.environ.get(WORKERS, "")
    if wished.isdigit() and int(wished):
        return int(wished)
    return num_cores()
