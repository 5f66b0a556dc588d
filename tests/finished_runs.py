"""Finished run folders as steps.train leaves them, with answers of our choosing: for tests of the registry.

Models, tokenizers, data cards, metrics and reports are real; only which held-out rows were answered rightly is
chosen, so that a gate's numbers can be worked by hand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.home import Home
from tunesmith.core.intervals import score
from tunesmith.core.publish import publishing
from tunesmith.core.records import Example, Outcome
from tunesmith.core.run import RunFolder, environment
from tunesmith.data.load import load_data
from tunesmith.recipe import Recipe, make_recipe
from tunesmith.steps.evaluate import Evaluation

NUM_TEST_ROWS = 40
QUESTIONS = [f"What does error E{number:02d} mean?" for number in range(NUM_TEST_ROWS)]


def write_data(folder: Path) -> tuple[Path, Path]:
    """Training rows and held-out rows: questions with answers; every second held-out row is about the machine "B"."""
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    rows = [{"question": f"What is part {n}?", "answer": f"Part {n}."} for n in range(30)]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    held_out = [
        {"question": question, "answer": f"Fault {n}.", "machine": "AB"[n % 2]} for n, question in enumerate(QUESTIONS)
    ]
    test.write_text("".join(json.dumps(row) + "\n" for row in held_out), encoding="utf-8")
    return train, test


def recipe_for(folder: Path, **sections: Any) -> Recipe:
    """A recipe on that data, as steps.train records it."""
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    if not train.is_file():
        write_data(folder)
    values: dict[str, Any] = {
        "name": "manual",
        "model": str(base_model(folder)),
        "data": {"source": str(train), "test": str(test), "split": {"validation": 0.1}},
        "method": "full",
        "objective": "sft",
        "evaluate": ["exact_match"],
        "train": {"lr": 1e-3, "steps": 2, "tokens_per_step": 256, "micro_tokens": 256},
        "generate": {"max_new_tokens": 4},
    }
    return make_recipe({**values, **sections})


def base_model(folder: Path) -> Path:
    """A tiny random Llama with its tokenizer."""
    from tunesmith.models.tiny import write_tiny

    target = folder / "base"
    return target if target.is_dir() else write_tiny(target, "llama", "causal", seed=1)


def make_run(  # noqa: PLR0913 - each argument is one thing that a gate looks at
    home: Home,
    data: Path,
    hits: Sequence[bool],
    *,
    seed: int = 1,
    seconds: float | None = 0.1,
    peak_bytes: int = 10**9,
    recipe: Recipe | None = None,
    num_layers: int = 3,
) -> RunFolder:
    """A finished run whose held-out answers are right where `hits` says so; `seed` makes its weights."""
    recipe = recipe or recipe_for(data, seed=seed)
    loaded = load_data(recipe.data, seed=recipe.seed)
    run = RunFolder.create(home.runs, recipe.name)
    run.write("recipe.yaml", recipe.to_yaml())
    run.write("data.json", loaded.card())
    run.write("environment.json", environment(machine={"name": "test"}, seed=recipe.seed))
    held_out = loaded.test or loaded.validation
    _publish_model(run, recipe, held_out, seed=seed, num_hidden_layers=num_layers)
    assert len(hits) == len(held_out), (len(hits), len(held_out))
    outcomes = tuple(
        Outcome(
            origin=str(row.origin),
            prompt=row.prompt[-1].content,  # type: ignore[attr-defined]
            answer=row.answer if hit else "wrong",  # type: ignore[attr-defined]
            reference=row.answer,  # type: ignore[attr-defined]
            fields=row.fields,
            nll_nats=1.0 if hit else 3.0,
            num_scored_tokens=1,
        )
        for row, hit in zip(held_out, hits, strict=True)
    )
    scores = tuple(score(metric, outcomes, recipe.seed) for metric in recipe.evaluate if not isinstance(metric, str))
    after = Evaluation(scores, outcomes, 1.0, seconds, peak_bytes)
    run.write("report.json", {"format": 1, "run": run.name, "before": after.to_dict(), "after": after.to_dict()})
    run.set_state("finished")
    return run


def _publish_model(run: RunFolder, recipe: Recipe, held_out: Sequence[Example], **sizes: int) -> None:
    from tunesmith.models.load import load_trained
    from tunesmith.models.parity import record
    from tunesmith.models.source import base_record
    from tunesmith.models.tiny import write_tiny

    card = {
        "format": 1,
        "task": "causal",
        "base": base_record(recipe.model.name),
        "method": recipe.method.spec(),
        "objective": "sft",
        "labels": [],
        "max_length": 64,
        "generate": recipe.generate.model_dump(mode="json"),
        "precision": "fp32",
    }
    with publishing(run.model) as draft:
        write_tiny(draft, "llama", "causal", **sizes)
        (draft / "tunesmith.json").write_text(json.dumps(card), encoding="utf-8")
        probes = record(load_trained(draft), held_out[:3])
        (draft / "probes.json").write_text(json.dumps(probes), encoding="utf-8")


def reseal(folder: Path) -> None:
    """Give a version folder that a test changed a manifest that fits it again (an attacker could, too)."""
    copy = folder.parent / "resealed"
    with publishing(copy) as draft:
        for path in folder.iterdir():
            if path.name != "manifest.json":
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, draft / path.name)
    shutil.rmtree(folder)
    copy.rename(folder)


def answered(num_right: int, total: int = NUM_TEST_ROWS) -> list[bool]:
    """The first so many rows right, the others wrong."""
    return [place < num_right for place in range(total)]
