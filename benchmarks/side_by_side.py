"""Measure sides against each other: every measurement a process of its own, rounds alternating, the median kept.

A side is a script that takes its task as JSON, and prints `RESULT` and a JSON object of plain numbers.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
RESULTS = Path(os.environ.get("RESULTS", HERE / "results")).resolve()
"""Where results are kept: a machine of another kind has a folder of its own."""
LATEST = "latest.json"


@dataclass
class Side:
    """One program with one setting, and what was measured of it."""

    title: str
    script: str
    python: str
    task: dict[str, Any]
    group: str = ""
    """Sides of one group are compared with each other; the first of them is ours."""
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return statistics.median(one["num_tokens"] / one["seconds"] for one in self.rounds)

    @property
    def peak_bytes(self) -> int:
        return max(int(one["peak_bytes"]) for one in self.rounds)

    def median(self, key: str) -> float:
        """The median over the rounds of a number that every round has."""
        return statistics.median(one[key] for one in self.rounds)

    def kept(self) -> dict[str, Any]:
        """What is written down."""
        return {"title": self.title, "group": self.group, "rounds": self.rounds}


def run_rounds(sides: Sequence[Side], rounds: int, num_threads: int) -> None:
    """Measure every side once a round."""
    for number in range(rounds):
        for side in sides:
            say(f"round {number + 1} of {rounds}: {side.group} · {side.title} …")
            side.rounds.append(run_side(side, num_threads))
            say(f"    {side.rounds[-1]['num_tokens'] / side.rounds[-1]['seconds']:,.0f} tokens/s")


def run_side(side: Side, num_threads: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
    task = json.dumps({**side.task, "num_threads": num_threads})
    printed = run_child([side.python, str(HERE / side.script), task], environment=environment)
    lines = [line for line in printed.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{side.title} printed no RESULT")
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


def run_child(words: Sequence[str], *, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints. It ends, with all that it has started, where this process is stopped meanwhile.

    By default a process that SIGTERM ends leaves its children running, beside the next measurement. The child has a
    process group of its own, so that Ctrl-C comes here alone.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    child = subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, said = child.communicate()
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    if child.returncode:
        sys.exit(f"{' '.join(words)[:200]} failed:\n{said[-3000:]}")
    return printed


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def best_of(sides: Sequence[Side]) -> Side:
    """The fastest."""
    return max(sides, key=lambda side: side.tokens_per_second)


def speed_line(name: str, ours: Side, peer: Side) -> dict[str, Any]:
    """Our tokens/s over the peer's."""
    fast, slow = ours.tokens_per_second, peer.tokens_per_second
    return comparison(name, fast, slow, fast / slow, peer, "tokens/s of rows")


def memory_line(name: str, ours: Side, peer: Side) -> dict[str, Any]:
    """The peer's peak memory over ours, in GiB."""
    mine, other = ours.peak_bytes / 2**30, peer.peak_bytes / 2**30
    return comparison(name, mine, other, other / mine, peer, "peak GiB; the ratio is the peer's over ours")


def comparison(name: str, ours: float, peer_value: float, ratio: float, peer: Side, what: str) -> dict[str, Any]:
    """One line of latest.json."""
    return {
        "benchmark": name,
        "ours": _rounded(ours),
        "peer": _rounded(peer_value),
        "peer_version": peer.title,
        "ratio": round(ratio, 3),
        "settings": what,
    }


def keep(out: Path, name: str, *, comparisons: Sequence[dict[str, Any]], raw: Any, page: str) -> None:
    """Print the page, and keep it with the raw numbers and its lines of latest.json, in place of those it had."""
    out.mkdir(parents=True, exist_ok=True)
    print(page)
    file = out / LATEST
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    kept = [line for line in kept if not line["benchmark"].startswith(f"{name}/")]
    file.write_text(json.dumps([*kept, *comparisons], indent=2) + "\n", encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(page, encoding="utf-8")


def machine(num_threads: int) -> str:
    """The date, processor or device, threads and versions in one line."""
    import torch
    import transformers

    from tunesmith.models.machine import processor_name

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{datetime.now(UTC):%Y-%m-%d} · {name}, {num_threads} threads, {versions}"


def matrix_peak(precision: str, size: int = 2048, seconds: float = 1.0) -> float:
    """FLOP/s of the machine's matrix product in the precision that a run computed in, the best of many."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        size *= 4
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, begun = float("inf"), time.perf_counter()
    with torch.inference_mode():
        a @ b
        while time.perf_counter() - begun < seconds:
            _wait(device)
            start = time.perf_counter()
            a @ b
            _wait(device)
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _rounded(value: float) -> float:
    return round(value, 1) if value >= 100 else round(value, 3)
