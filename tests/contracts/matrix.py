"""Every method × objective × architecture, tried: `make matrix` writes what came out, the tests hold it.

A cell is "" where four rows are learnt within 60 steps, else the reason of the refusal. The results are kept in
matrix.json; docs/reference/matrix.md is drawn from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch

from made_training import make_learner, make_rows
from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build, find, names
from tunesmith.methods.base import Method
from tunesmith.models.configuration import check_task
from tunesmith.models.tiny import ARCHITECTURES, DECODERS, ENCODER_DECODERS, ENCODERS, tiny, tiny_tokenizer
from tunesmith.objectives.base import Objective
from tunesmith.training.encode import Rows
from tunesmith.training.learner import Learner

Cell = tuple[str, str, str]
"""Method, objective, architecture."""
RESULTS = Path(__file__).parent / "matrix.json"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "matrix.md"
MAX_STEPS = 60
RATE = 2e-2
LEARNT = 0.99
"""Training ends early below this share of the first loss."""
LEAST = 1e-4
"""What the loss must fall by at least, in nats: on random weights some methods can do little."""
KINDS_OF_A_METHOD = {"variant", "style"}
"""Settings whose values are methods of their own, each with its paper."""
FAMILIES = {"encoder": ENCODERS, "decoder": DECODERS, "encoder-decoder": ENCODER_DECODERS}


def methods() -> dict[str, dict[str, Any]]:
    """Every method with its default settings, and once for each further kind it has (`lora, dora`)."""
    found: dict[str, dict[str, Any]] = {}
    for name in names("methods"):
        fields = find("methods", name).model_fields
        found[name] = {"name": name}
        for setting in KINDS_OF_A_METHOD & fields.keys():
            for kind in get_args(fields[setting].annotation):
                if kind != fields[setting].default:
                    found[f"{name}, {kind}"] = {"name": name, setting: kind}
    return found


def columns() -> list[tuple[str, str]]:
    """Objectives with the architectures that can do them at all."""
    return [
        (objective, architecture)
        for objective, architecture in product(names("objectives"), ARCHITECTURES)
        if _can_do(architecture, build("objectives", objective))
    ]


def outcome(cell: Cell) -> str:
    """Try one cell: "" if it learns, else the refusal's reason.

    Raises:
        AssertionError: It neither learns nor refuses.
    """
    method: Method = build("methods", methods()[cell[0]])
    objective: Objective = build("objectives", cell[1])
    try:
        learner = make_learner(method, cell[2], objective)
    except UserError as fault:
        assert fault.code == "method_refused", fault
        return fault.message
    reads_target = cell[2] in ENCODER_DECODERS
    first, last = _train(learner, make_rows(objective, tiny_tokenizer("seq2seq" if reads_target else objective.task)))
    assert last < first - LEAST, (cell, first, last)
    return ""


def read_results() -> dict[Cell, str]:
    """The kept results."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {
        (method, objective, architecture): reason
        for method, by_objective in found.items()
        for objective, by_architecture in by_objective.items()
        for architecture, reason in by_architecture.items()
    }


def page(results: dict[Cell, str]) -> str:
    """The results as tables, one per objective."""
    reasons = list(dict.fromkeys(reason for reason in results.values() if reason))
    trained = sum(not reason for reason in results.values())
    lines = [
        "<!-- Written by `make matrix` from the contract tests' results; do not edit. -->",
        "",
        "# What works with what",
        "",
        "Each cell was tried on a tiny random model of the architecture: ● four rows are learnt within 60 steps "
        "(their loss without dropout falls; on random weights that may be little); a number is a refusal before "
        "training, with its reason below. "
        f"{trained:,} of {len(results):,} combinations train. What an architecture cannot do at all "
        "(masked words with Llama) has no column.",
        "",
        "## At a glance",
        "",
        "● on every architecture of the family that was tried, ◐ on some, – on none; E encoder, D decoder, "
        "ED encoder-decoder.",
        "",
        *_glance(results),
    ]
    for objective in names("objectives"):
        architectures = [name for name in ARCHITECTURES if any(key[1:] == (objective, name) for key in results)]
        families = {kind: [a for a in architectures if a in members] for kind, members in FAMILIES.items()}
        lines += ["", f"## {objective}", ""]
        lines.append(
            "Architectures: " + "; ".join(f"{kind}s {', '.join(m)}" for kind, m in families.items() if m) + "."
        )
        lines += ["", "| method | " + " | ".join(architectures) + " |", "| --- |" + " :-: |" * len(architectures)]
        for method in methods():
            cells = [results[method, objective, name] for name in architectures]
            marks = [str(reasons.index(reason) + 1) if reason else "●" for reason in cells]
            lines.append(f"| {method} | " + " | ".join(marks) + " |")
    lines += ["", "## Reasons", ""]
    lines += [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def _glance(results: dict[Cell, str]) -> list[str]:
    """Method × objective × family."""
    heads = [
        (objective, short, members)
        for objective in names("objectives")
        for short, members in zip(("E", "D", "ED"), FAMILIES.values(), strict=True)
        if any(key[1] == objective and key[2] in members for key in results)
    ]
    lines = ["| method | " + " | ".join(f"{objective} {short}" for objective, short, _ in heads) + " |"]
    lines.append("| --- |" + " :-: |" * len(heads))
    for method in methods():
        marks = []
        for objective, _, members in heads:
            cells = [not results[key] for key in results if key[:2] == (method, objective) and key[2] in members]
            marks.append("●" if all(cells) else "◐" if any(cells) else "–")
        lines.append(f"| {method} | " + " | ".join(marks) + " |")
    return lines


def write(cells: Iterable[Cell]) -> None:
    """Try the cells, keep their results, and draw the page."""
    results: dict[str, dict[str, dict[str, str]]] = {}
    for cell in cells:
        method, objective, architecture = cell
        results.setdefault(method, {}).setdefault(objective, {})[architecture] = outcome(cell)
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(read_results()), encoding="utf-8")


def all_cells() -> list[Cell]:
    """Every combination that is tried."""
    return [(method, *column) for method, column in product(methods(), columns())]


def _can_do(architecture: str, objective: Objective) -> bool:
    try:
        check_task(_config(architecture), objective.task, architecture)
    except UserError:
        return False
    return True


@cache
def _config(architecture: str) -> Any:
    return tiny(architecture)[0].config


def _train(learner: Learner, rows: Rows) -> tuple[float, float]:
    """The loss of all rows, without dropout: before training, and the least until they are learnt (or step 60)."""
    method, model = learner.method, learner.model
    optimizer = torch.optim.AdamW(learner.trainable().values(), lr=max(RATE, method.learning_rate))
    first = last = _loss(learner, rows)
    for step in range(1, MAX_STEPS + 1):
        method.set_training(model)
        optimizer.zero_grad()
        batch = learner.batch(rows.features)
        loss = learner.loss(batch)[0] / batch.weight
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step == 2 or step % 6 == 0:
            last = min(last, _loss(learner, rows))
            if last < LEARNT * first:
                break
    return first, last


@torch.no_grad()
def _loss(learner: Learner, rows: Rows) -> float:
    learner.model.eval()
    batch = learner.batch(rows.features)
    return learner.loss(batch)[0].item() / batch.weight


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(all_cells())
