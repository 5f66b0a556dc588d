"""Merge a finished adapter and its base into one plain transformers folder, and measure how far its outputs moved.

The probes of the run are replayed on what was written; the folder then gets probes of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Finished, Progress, Saved, Started, Warning
from tunesmith.core.publish import publishing
from tunesmith.core.quantities import duration
from tunesmith.models.continuing import check_mergeable, is_adapter, merged_model
from tunesmith.models.load import Loaded, load_trained
from tunesmith.models.machine import Precision
from tunesmith.models.parity import logits_of, questions_of, record_again, replay
from tunesmith.models.source import CARD, base_record, resolve

STEP = "merge"
ALLOWED = 1e-4
"""How far an fp32 logit may move, as a share of the largest; the order of summation alone moves about 1e-6."""

LEFT_OUT = ("base", "parent", "precision", "method", "quantize")
"""What the card of an adapter says that is not so of the merged model."""


@dataclass(frozen=True)
class Merged:
    """A merged model. `difference` is the largest of any logit over all questions, `scale` the largest logit."""

    path: str
    precision: str
    difference: float
    scale: float
    num_questions: int
    num_bytes: int
    probes: str
    """How the run's own probes came out: `equal`, what differs first, or `none` where it has none."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def sentence(self) -> str:
        """What was measured, in one line."""
        return (
            f"{self.precision}: the largest difference of a logit is {self.difference:.1e} (the largest logit is "
            f"{self.scale:.1f}), over {self.num_questions} questions"
        )


def merge(
    target: str | Path,
    folder: str | Path,
    *,
    precision: str = "fp32",
    emit: Emit,
) -> Merged:
    """Write the merged model of a run, a version's folder or any PEFT adapter into `folder`, which must not exist.

    The merge itself is computed in fp32; with bf16 only what is written is rounded, and the difference that is
    reported is the one to the unmerged model in fp32. A quantised base is dequantised first, and the difference then
    says what that costs.

    Raises:
        UserError: It is no adapter, cannot be merged (said before weights are read), or `folder` exists.
    """
    started = time.perf_counter()
    if precision not in ("fp32", "bf16"):
        raise UserError(f'`precision` is fp32 or bf16, not "{precision}".', code="bad_value", where="precision")
    name, source, out = str(target), resolve(str(target)), Path(folder)
    if not isinstance(source, Path):
        raise UserError(
            "there is no folder of this name, and only what lies on this machine is merged.",
            code="no_file",
            where=name,
            remedy="Name a run, or a folder that peft saved.",
        )
    if not is_adapter(source):
        raise UserError(
            "there is no adapter to merge: the model is plain already.",
            code="nothing_to_merge",
            where=name,
            remedy="Use the folder as it is.",
        )
    check_mergeable(source, name)
    if out.exists():
        raise UserError("the folder exists.", code="exists", where=str(out), remedy="Name one that does not exist yet.")
    emit(Started(STEP, values={"run": name}))
    emit(Progress(STEP, 0, 3, label="answering unmerged"))
    unmerged = load_trained(source, precision="fp32")
    probes = _read(source / "probes.json")
    questions = questions_of(unmerged, probes)
    before = [logits_of(unmerged, ids) for ids in questions]
    emit(Progress(STEP, 1, 3, label="merging"))
    model: Any = merged_model(unmerged.model)
    with publishing(out) as draft:
        _write(draft, model.to(torch.bfloat16) if precision == "bf16" else model, unmerged, name, precision)
        del model
        emit(Progress(STEP, 2, 3, label="answering merged"))
        merged = load_trained(draft)
        difference, scale = _difference(before, [logits_of(merged, ids) for ids in questions])
        is_exact = precision == "fp32" and unmerged.card.get("quantize", "none") == "none"
        if is_exact and not difference <= ALLOWED * max(1.0, scale):
            raise UserError(
                f"merging moved a logit by {difference:.2g}, where rounding explains {ALLOWED * max(1.0, scale):.1g}.",
                code="merge_differs",
                where=name,
                remedy="Serve the adapter on its base instead, and report this with the method's settings.",
            )
        recorded_in: Precision = unmerged.card.get("precision") or "fp32"
        report = replay(merged, probes, recorded_in=recorded_in) if probes else None
        if report is not None and report.stage == "prompt":
            raise UserError(report.message, code="merge_differs", where=name)
        if probes:
            made = json.dumps(record_again(merged, probes), indent=1, ensure_ascii=False)
            (draft / "probes.json").write_text(made, encoding="utf-8")
        num_bytes = sum(file.stat().st_size for file in draft.rglob("*") if file.is_file())
    told = "none" if report is None else "equal" if report.is_equal else report.message
    result = Merged(str(out), precision, difference, scale, len(questions), num_bytes, told)
    if report is not None and not report.is_equal:
        emit(Warning(STEP, "probes_differ", f"an answer of the run is not repeated word for word: {report.message}"))
    emit(Saved(STEP, str(out), "model", num_bytes))
    seconds = time.perf_counter() - started
    text = f"{out} in {duration(seconds)} · {result.sentence}"
    measured: dict[str, Any] = {"difference": f"{difference:.1e}", "largest_logit": round(scale, 2)}
    measured["questions"] = len(questions)
    then = (f"tunesmith evaluate {out}",) if unmerged.task != "mask" else ()
    emit(Finished(STEP, text, seconds, values=measured, next=then))
    return result


def _write(draft: Path, model: Any, unmerged: Loaded, name: str, precision: str) -> None:
    """Weights, tokenizer and card."""
    model.save_pretrained(draft)
    unmerged.tokenizer.save_pretrained(draft)
    kept = {
        key: value
        for key, value in unmerged.card.items()
        if key not in ("base", "parent", "precision", "method", "quantize")
    }
    card = {
        "format": 1,
        "task": unmerged.task,
        "labels": list(unmerged.labels),
        **kept,
        "base": base_record(name),
        "merged": {"method": unmerged.card.get("method"), "base": unmerged.card.get("base")},
        "precision": precision,
    }
    (draft / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")


def _difference(before: list[torch.Tensor], after: list[torch.Tensor]) -> tuple[float, float]:
    differences = [float((one - other).abs().max()) for one, other in zip(before, after, strict=True)]
    return max(differences), max(float(one.abs().max()) for one in before)


def _read(file: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found
