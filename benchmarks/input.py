"""Rows from file to step: how fast, in how much memory, and whether the step waits for them.

Five questions, one table each: are tokens/s of training flat as rows grow; what does a start cost, the first time and
from the cache, in seconds and bytes a row; what do several tokenising processes bring; how long do steps wait; is the
memory of reading ten million rows that of reading one million.

    python benchmarks/input.py                        about 18 minutes on 2 cores
    python benchmarks/input.py --start 1000000        the start with a million rows (12 minutes); 10000000 works alike
    python benchmarks/input.py --growth 1000 4000     a quick look at growth
    python benchmarks/input.py --growth --start       ten million rows alone, about 6 minutes and 1.5 GB in $TMPDIR
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import RESULTS, keep, machine, run_child

ASSETS = Path(__file__).parent.parent / "src" / "tunesmith" / "assets"
MAX_LENGTH = 512
STEP_TOKENS, MICRO_TOKENS = 4096, 2048
ROUND_STEPS, ROUNDS = 6, 5
WIDTH = 64
"""So small a model that what rows cost would show."""
HELD_OUT = 1000
"""Rows of the validation side where memory is compared: they are held, so they are as many for any number of rows."""
READ_AGAIN = 20_000
MOST_ROWS_OF_ONE_PROCESS = 200_000
"""A larger set is not tokenised a second time in one process."""


def write_rows(path: Path, count: int) -> None:
    """So many chats made of sentences of the built-in texts; each is another."""
    files = [ASSETS / "general.txt", *sorted((ASSETS / "manual").rglob("*.md"))]
    text = " ".join(file.read_text(encoding="utf-8") for file in files)
    sentences = [one.strip() for one in re.split(r"(?<=[.!?])\s+", text) if 20 < len(one.strip()) < 300]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked = " ".join(draw.choices(sentences, k=draw.randint(1, 3)))
            told = " ".join(draw.choices(sentences, k=draw.choice((1, 1, 2, 2, 3, 8))))
            messages = [
                {"role": "user", "content": f"Note {number}: {asked}"},
                {"role": "assistant", "content": told},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def write_short_rows(path: Path, count: int) -> None:
    """So many questions with answers, some 130 bytes each, no two the same; cells where the path is a .csv."""
    draw = random.Random(0)
    words = sorted(set(re.findall(r"[a-z]{3,9}", (ASSETS / "general.txt").read_text(encoding="utf-8"))))
    asked = [" ".join(draw.choices(words, k=7)) for _ in range(997)]
    told = [" ".join(draw.choices(words, k=8)) for _ in range(1009)]
    is_csv = path.suffix == ".csv"
    row = '"Note {}: {}","{}"\n' if is_csv else '{{"question": "Note {}: {}", "answer": "{}"}}\n'
    with path.open("w", encoding="utf-8", buffering=2**20) as file:
        file.write("question,answer\n" if is_csv else "")
        for i in range(count):
            file.write(row.format(i, asked[i % 997], told[i % 1009]))


# The start, in a process of its own


def start(path: Path) -> dict[str, Any]:
    """Seconds and memory from the file to tokenised rows, with whatever the cache holds."""
    from tunesmith.core.plugins import build
    from tunesmith.data.load import load_data
    from tunesmith.models.load import load_tokenizer
    from tunesmith.recipe import DataSettings, ModelSettings
    from tunesmith.training.encode import Encoding
    from tunesmith.training.order import Order
    from tunesmith.training.token_cache import tokenized

    tokenizer = load_tokenizer(ModelSettings(name="tunesmith/base"))
    encoding = Encoding(build("objectives", "sft"), tokenizer, MAX_LENGTH)
    before = _peak_bytes()
    began = time.perf_counter()
    data = load_data(DataSettings(source=str(path), split={"validation": 0.001}), seed=1)  # type: ignore[arg-type]
    read = time.perf_counter() - began
    after_reading = _peak_bytes()
    began = time.perf_counter()
    rows, _ = tokenized(data.train, encoding)
    tokenise = time.perf_counter() - began
    began = time.perf_counter()
    order = Order.plan(rows.lengths, _settings(), 1, is_packed=True, weights=rows.weights)
    order.rows(0)
    return {
        "rows": len(rows),
        "tokens": rows.num_tokens,
        "is_in_file": not isinstance(data.train, tuple),
        "read_seconds": read,
        "tokenise_seconds": tokenise,
        "order_seconds": time.perf_counter() - began,
        "peak_bytes": _peak_bytes(),
        "bytes_before": before,
        "peak_bytes_of_reading": after_reading,
    }


def reading(path: Path, count: int) -> dict[str, Any]:
    """Seconds and memory of reading so many rows as large files are, and how fast they come back in their order."""
    from tunesmith.data import large
    from tunesmith.data.load import load_data
    from tunesmith.recipe import DataSettings

    settings = DataSettings(source=str(path), split={"validation": HELD_OUT / count})  # type: ignore[arg-type]
    large.LARGE_BYTES = 1
    before = _peak_bytes()
    began = time.perf_counter()
    data = load_data(settings, seed=1)
    seconds, peak = time.perf_counter() - began, _peak_bytes()
    began = time.perf_counter()
    again = sum(1 for _ in data.train[:READ_AGAIN])
    return {
        "rows": data.num_read,
        "read_seconds": seconds,
        "rows_again_per_second": again / (time.perf_counter() - began),
        "peak_bytes": peak,
        "bytes_before": before,
    }


def _peak_bytes() -> int:
    """The most memory this process has held; getrusage would count its parent's before it began."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _settings(**more: Any) -> Any:
    from tunesmith.recipe import TrainSettings

    return TrainSettings(tokens_per_step=STEP_TOKENS, micro_tokens=MICRO_TOKENS, lr=1e-4, epochs=100, **more)


def started(path: Path, cache: Path, workers: int = 0, count: int = 0) -> dict[str, Any]:
    """`start` in a new process; with a count `reading`."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TUNESMITH_ROW_CACHE_GIB": "100"}
    if workers:
        environment["TUNESMITH_TOKENISERS"] = str(workers)
    wish = ["--start-of", str(path), *(["--rows", str(count)] if count else [])]
    printed = run_child([sys.executable, __file__, *wish], environment=environment)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


# Training on growing sets


def grow(counts: list[int], folder: Path) -> list[dict[str, Any]]:
    """Tokens/s of the same small model on sets of so many rows, in turns, the best round of each."""
    import torch

    from tunesmith.core.events import silent
    from tunesmith.core.plugins import build
    from tunesmith.core.run import RunFolder
    from tunesmith.data.load import load_data
    from tunesmith.models.load import Loaded, load_tokenizer
    from tunesmith.models.tiny import tiny
    from tunesmith.recipe import DataSettings, ModelSettings
    from tunesmith.training.encode import Encoding
    from tunesmith.training.learner import Learner
    from tunesmith.training.loop import Loop
    from tunesmith.training.token_cache import tokenized

    tokenizer = load_tokenizer(ModelSettings(name="tunesmith/base"))
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "vocab_size": len(tokenizer)}
    objective, method = build("objectives", "sft"), build("methods", "full")
    loops = {}
    for count in counts:
        path = folder / f"{count}.jsonl"
        write_rows(path, count)
        data = load_data(DataSettings(source=str(path), split={"validation": 0.01}), seed=1)  # type: ignore[arg-type]
        encoding = Encoding(objective, tokenizer, MAX_LENGTH)
        rows, held_out = (tokenized(side, encoding)[0] for side in (data.train, data.validation))
        torch.manual_seed(0)
        model = tiny("llama", "causal", **sizes)[0]
        loaded = Loaded(model, tokenizer, "causal", (), "small")
        learner = Learner.make(
            loaded, method.attach(model), method=method, objective=objective, precision="fp32", packing="auto"
        )
        run = RunFolder.make(folder / f"run-{count}")
        settings = _settings(keep="last", steps=ROUNDS * ROUND_STEPS + 2)
        loops[count] = Loop(learner, rows, held_out, settings=settings, run=run, seed=1, fingerprint="", emit=silent)
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    for is_threaded in (True, False):
        readers = {count: loop._batches().ahead(is_threaded=is_threaded) for count, loop in loops.items()}
        for number in range(-1, ROUNDS):
            for count, loop in loops.items():
                one = _round(loop, readers[count], number)
                if number >= 0:
                    found[count].append({"is_threaded": is_threaded, **one})
                readers[count].close()
        for loop in loops.values():
            loop.state.step = 0
    return [_best(count, len(loops[count].rows), found[count]) for count in counts]


def _round(loop: Any, reader: Any, number: int) -> dict[str, float]:
    loop.batches = reader
    tokens, waited = 0, reader.wait_seconds
    began, processor = time.perf_counter(), time.process_time()
    for _ in range(ROUND_STEPS if number >= 0 else 2):
        rows = loop.order.rows(loop.state.step)
        loop.update(rows, 1e-4)
        loop.state.step += 1
        tokens += int(loop.rows.lengths[list(rows)].sum())
    seconds = time.perf_counter() - began
    return {
        "tokens_per_second": tokens / seconds,
        "tokens_per_processor_second": tokens / (time.process_time() - processor),
        "wait_share": (reader.wait_seconds - waited) / seconds,
    }


def _best(count: int, num_rows: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    best: dict[str, Any] = {"rows": count, "trained_rows": num_rows}
    for is_threaded, name in ((True, "ahead"), (False, "in_place")):
        mine = [one for one in rounds if one["is_threaded"] == is_threaded]
        best[name] = {key: max(one[key] for one in mine) for key in mine[0] if key.startswith("tokens")}
        best[name]["wait_share"] = sorted(one["wait_share"] for one in mine)[len(mine) // 2]
    return best


# All of it


def main() -> None:
    """Measure, print and keep."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--growth", type=int, nargs="*", default=[1000, 4000, 16000, 64000])
    options.add_argument("--start", type=int, nargs="*", default=[100_000, 400_000])
    options.add_argument("--many", type=int, nargs="*", default=[1_000_000, 10_000_000])
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options.add_argument("--start-of", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--rows", type=int, default=0, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.start_of:
        print(json.dumps(reading(chosen.start_of, chosen.rows) if chosen.rows else start(chosen.start_of)))
        return
    with tempfile.TemporaryDirectory(prefix="tunesmith-input-") as text:
        folder = Path(text)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        result: dict[str, Any] = {"growth": [], "start": [], "many": []}
        if chosen.growth:
            result["growth"] = grow(chosen.growth, folder)
        for count in chosen.start:
            path = folder / f"start-{count}.jsonl"
            write_rows(path, count)
            one: dict[str, Any] = {"rows": count, "file_bytes": path.stat().st_size}
            one["first"] = started(path, folder / "all")
            one["again"] = started(path, folder / "all")
            if count <= MOST_ROWS_OF_ONE_PROCESS:
                one["one_process"] = started(path, folder / "one", workers=1)
            result["start"].append(one)
            path.unlink()
        for count, kind in [
            *((count, "jsonl") for count in chosen.many),
            *((count, "csv") for count in chosen.many[:1]),
        ]:
            result["many"].append(many(folder, count, kind))
        import torch

        result["machine"] = machine(torch.get_num_threads())
        page = "\n".join(table(result))
        keep(chosen.out, "input", comparisons=comparisons(result), raw=result, page=page)


def many(folder: Path, count: int, kind: str) -> dict[str, Any]:
    """Short rows of a kind of file, read for the first time and from the cache, both of which are deleted."""
    path, cache = folder / f"many-{count}.{kind}", folder / "many"
    write_short_rows(path, count)
    one: dict[str, Any] = {"rows": count, "kind": kind, "file_bytes": path.stat().st_size}
    for name in ("first", "again"):
        one[name] = started(path, cache, count=count)
    one["cache_bytes"] = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    path.unlink()
    shutil.rmtree(cache)
    return one


def comparisons(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of latest.json: the largest set against the smallest."""
    lines = []
    if len(result["growth"]) > 1:
        small, large = result["growth"][0], result["growth"][-1]
        speeds = [one["ahead"]["tokens_per_second"] for one in (large, small)]
        lines.append(_comparison("input/growth", speeds, small["rows"], f"tokens/s with {large['rows']:,} rows"))
    of_lines = [one for one in result["many"] if one["kind"] == "jsonl"]
    if len(of_lines) > 1:
        small, large = of_lines[0], of_lines[-1]
        peaks = [_grown(one["first"]) for one in (large, small)]
        said = f"bytes over imports at most while {large['rows']:,} rows are read"
        lines.append(_comparison("input/memory", peaks, small["rows"], said))
    return lines


def _comparison(name: str, values: list[float], rows: int, said: str) -> dict[str, Any]:
    ours, other = values
    return {
        "benchmark": name,
        "ours": round(ours),
        "peer": round(other),
        "peer_version": f"itself with {rows:,} rows",
        "ratio": round(ours / other, 3),
        "settings": said,
    }


def _grown(one: dict[str, Any]) -> int:
    return int(one["peak_bytes"] - one["bytes_before"])


def table(result: dict[str, Any]) -> list[str]:
    """The result in words and tables."""
    lines = ["# Rows from file to step", "", result["machine"], ""]
    if result["growth"]:
        first, model = result["growth"][0]["ahead"], f"2 blocks of width {WIDTH}"
        lines += [
            f"Training a Llama of {model} from packs of {MICRO_TOKENS} tokens: the best of {ROUNDS} rounds in turns. "
            "Waiting is the median round's share of its time.",
            "",
            "| rows | tokens/s | of the first | per processor second | of the first | waiting | batches in place |",
            "|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for one in result["growth"]:
            ahead, place = one["ahead"], one["in_place"]
            lines.append(
                f"| {one['rows']:,} | {ahead['tokens_per_second']:,.0f} "
                f"| {ahead['tokens_per_second'] / first['tokens_per_second']:.3f} "
                f"| {ahead['tokens_per_processor_second']:,.0f} "
                f"| {ahead['tokens_per_processor_second'] / first['tokens_per_processor_second']:.3f} "
                f"| {ahead['wait_share']:.2%} | {place['wait_share']:.2%} |"
            )
        lines.append("")
    for one in result["start"]:
        lines += _start_table(one)
    return [*lines, *_table_of_many(result["many"])] if result["many"] else lines


def _table_of_many(result: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"Short rows read into a data set, {HELD_OUT:,} of them held out, the others left on disk. Again: the first "
        f"{READ_AGAIN:,} training rows read once more, in their order.",
        "",
        "| rows | file | first reading | rows/s | peak memory over imports | kept | from the cache | peak | again |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in result:
        first, again = one["first"], one["again"]
        lines.append(
            f"| {one['rows']:,} | {one['file_bytes'] / 2**20:,.0f} MiB of {one['kind']} "
            f"| {first['read_seconds']:.0f} s "
            f"| {one['rows'] / first['read_seconds']:,.0f} | {_grown(first) / 2**20:,.0f} MiB "
            f"| {one['cache_bytes'] / 2**20:,.0f} MiB | {again['read_seconds']:.1f} s "
            f"| {_grown(again) / 2**20:,.0f} MiB | {again['rows_again_per_second']:,.0f} rows/s |"
        )
    return [*lines, ""]


def _start_table(one: dict[str, Any]) -> list[str]:
    lines = [
        f"{one['rows']:,} chats, {one['file_bytes'] / 2**20:,.0f} MiB, {one['first']['tokens']:,} tokens; "
        f"training rows {'stay in their file' if one['first']['is_in_file'] else 'are held'}.",
        "",
        "| start | reading | rows/s | tokenising | tokens/s | order | peak memory over imports | bytes a row |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, key in (("first", "first"), ("from the cache", "again"), ("first, one process", "one_process")):
        if key not in one:
            continue
        found = one[key]
        grown = _grown(found)
        lines.append(
            f"| {name} | {found['read_seconds']:.1f} s | {one['rows'] / found['read_seconds']:,.0f} "
            f"| {found['tokenise_seconds']:.1f} s | {found['tokens'] / found['tokenise_seconds']:,.0f} "
            f"| {found['order_seconds']:.2f} s | {grown / 2**20:,.0f} MiB | {grown / one['rows']:,.0f} |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    main()
