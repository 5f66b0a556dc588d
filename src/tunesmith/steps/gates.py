"""Gates: what a version must show before an alias moves to it, each with its numbers and its threshold.

A gate that could not run has failed, and none is skipped in silence: one with nothing to compare says so.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Progress, silent
from tunesmith.core.intervals import Difference
from tunesmith.core.publish import verify
from tunesmith.core.quantities import duration, gib
from tunesmith.core.store import Version
from tunesmith.steps.quality import MARGIN, Comparison, Gate
from tunesmith.steps.register import address_of

__all__ = ["MARGIN", "Gate", "Judgement", "judge"]

BUDGET = 2.0
"""Latency and memory may be so many times the champion's, plus what a busy machine does to short clocks:"""
SLACK_SECONDS = 0.05
NUM_TIMED, NUM_TURNS = 4, 3
"""Probes of each, and how often they are timed side by side, where the recorded latency is over its budget."""
SLACK_BYTES = 256 * 2**20
LINEAGE = ("base", "data_sha256", "recipe", "fingerprint", "code_version", "packages", "seed", "machine", "scores")
"""What a version must say about where it comes from."""
LEAK = "leak"
"""The data card's code for a held-out row that is among the training rows."""


@dataclass(frozen=True)
class Judgement:
    """All gates of a candidate, and how its deciding score differs from the champion's (None: no champion)."""

    gates: tuple[Gate, ...]
    quality: Difference | None

    @property
    def failed(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if not gate.passed)


def judge(
    candidate: Version,
    champion: Version | None,
    *,
    margin: float = MARGIN,
    must_improve: bool = False,
    emit: Emit = silent,
) -> Judgement:
    """Every gate of a version, in order; `champion` None where there is nothing to compare with.

    `must_improve` asks for a better score too, by estimate.
    """
    compared = Comparison(candidate, champion, margin, emit)
    checks: tuple[tuple[str, Callable[[], Gate]], ...] = (
        ("files verified", partial(_files, candidate)),
        ("answers as trained", partial(_probes, candidate)),
        ("quality", compared.quality),
        *((("improvement", compared.improvement),) if must_improve else ()),
        ("slices", compared.slices),
        ("leak check", partial(_leaks, candidate)),
        ("lineage", partial(_lineage, candidate)),
        ("latency", partial(_latency, candidate, champion)),
        ("memory", partial(_memory, candidate, champion)),
    )
    gates = []
    for done, (name, check) in enumerate(checks):
        emit(Progress("promote", done, len(checks), label=name, unit="gates"))
        try:
            gates.append(check())
        except UserError as fault:
            gates.append(Gate(name, False, f"could not run: {fault.line()}"))
    return Judgement(tuple(gates), compared.found)


def _files(version: Version) -> Gate:
    manifest = verify(version.folder)
    if address_of(version.folder) != version.content_hash:
        raise UserError("its files are not those that were registered.", code="damaged", where=version.reference)
    size = sum(file["bytes"] for file in manifest["files"].values())
    text = f"{len(manifest['files'])} files, {gib(size)}, every SHA-256 sum as registered"
    return Gate("files verified", True, text, "all", {"files": len(manifest["files"]), "bytes": size})


def _probes(version: Version) -> Gate:
    from tunesmith.models.load import load_trained
    from tunesmith.models.parity import replay

    probes = _read_probes(version)
    report = replay(load_trained(version.model), {"probes": probes})
    count = f"{len(probes)} of {len(probes)}"
    text = f"loads alone; {count} probe answers as trained" if report.is_equal else report.message
    return Gate("answers as trained", report.is_equal, text, "prompt, logits and text equal", {"stage": report.stage})


def _read_probes(version: Version) -> list[dict[str, Any]]:
    try:
        probes = list(json.loads((version.model / "probes.json").read_text(encoding="utf-8"))["probes"])
    except (OSError, ValueError, KeyError, TypeError):
        probes = []
    if not probes:
        raise UserError("there are no probe answers (model/probes.json).", code="no_probes", where=version.reference)
    return probes


def _leaks(version: Version) -> Gate:
    try:
        findings = json.loads((version.folder / "data.json").read_text(encoding="utf-8"))["findings"]
        leaks = sum(int(found["rows"]) for found in findings if found["code"] == LEAK)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError("data.json holds no findings.", code="no_findings", where=version.reference) from None
    return Gate("leak check", leaks == 0, f"{leaks} held-out rows among the training rows", "0", {"rows": leaks})


def _lineage(version: Version) -> Gate:
    missing = [key for key in LINEAGE if version.lineage.get(key) in (None, "", {}, [])]
    text = f"missing: {', '.join(missing)}" if missing else f"{len(LINEAGE)} of {len(LINEAGE)} known"
    return Gate("lineage", not missing, text, "complete", {"missing": missing})


def _latency(candidate: Version, champion: Version | None) -> Gate:
    gate = _budget(candidate, champion, ("latency", "seconds_per_answer", SLACK_SECONDS), duration)
    if gate.passed or champion is None:
        return gate
    ours, theirs = _timed_side_by_side(candidate, champion)
    most = BUDGET * theirs + SLACK_SECONDS
    text = f"{gate.text} when trained; side by side now {duration(ours)} against {duration(theirs)}"
    return Gate("latency", ours <= most, text, f"at most {duration(most)}", {**gate.values, "now": [ours, theirs]})


def _timed_side_by_side(candidate: Version, champion: Version) -> tuple[float, float]:
    """Seconds of a probe's answer, taking turns, the best of each: a busy machine only ever adds to a clock."""
    from tunesmith.models.load import load_trained
    from tunesmith.models.parity import replay

    pairs = [(load_trained(one.model), _read_probes(one)[:NUM_TIMED]) for one in (candidate, champion)]
    best = [[math.inf] * len(probes) for _, probes in pairs]
    for _ in range(NUM_TURNS):
        for (loaded, probes), seconds in zip(pairs, best, strict=True):
            for place, probe in enumerate(probes):
                started = time.perf_counter()
                replay(loaded, {"probes": [probe]})
                seconds[place] = min(seconds[place], time.perf_counter() - started)
    ours, theirs = map(mean, best)
    return ours, theirs


def _memory(candidate: Version, champion: Version | None) -> Gate:
    return _budget(candidate, champion, ("memory", "peak_bytes", SLACK_BYTES), gib)


def _budget(
    candidate: Version, champion: Version | None, what: tuple[str, str, float], words: Callable[[float], str]
) -> Gate:
    name, key, slack = what
    ours = candidate.lineage.get(key)
    theirs = champion.lineage.get(key) if champion else None
    values = {"value": ours, "champion": theirs}
    if champion is None:
        shown = "not measured" if ours is None else words(ours)
        return Gate(name, True, f"{shown}, and no champion yet", "nothing to compare with", values)
    if ours is None and theirs is None:
        return Gate(name, True, "neither is timed: nothing is generated", "nothing to compare", values)
    if ours is None or theirs is None:
        raise UserError(f"only one of the two has its {name} recorded.", code="not_measured")
    most = BUDGET * theirs + slack
    return Gate(
        name, ours <= most, f"{words(ours)} against {words(theirs)}", f"at most {words(most)}", {**values, "most": most}
    )
