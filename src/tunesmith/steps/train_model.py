"""The model of a training: what it answers on the way, and how it is published."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tunesmith.core.events import Sample
from tunesmith.core.publish import publishing
from tunesmith.core.records import ChatExample, PairExample
from tunesmith.core.run import RunFolder
from tunesmith.data.template import PLAIN_TEMPLATE
from tunesmith.models.load import Loaded, load_trained
from tunesmith.models.memory import let_go
from tunesmith.models.parity import record
from tunesmith.models.predict import LocalPredictor
from tunesmith.models.source import CARD, base_record, read_card
from tunesmith.steps.evaluate import own_prompt, spread
from tunesmith.steps.train_work import STEP, Work

NUM_PROBES = 12
SAMPLES = "samples.md"


class Sampler:
    """Shows after each validation what the model answers to one held-out question now."""

    def __init__(self, run: RunFolder, work: Work, *, after: int = 0) -> None:
        """`after` is the step that a resumed run goes on after: later answers in samples.md are given again."""
        self.run, self.work = run, work
        _keep_samples(run, after)
        answerable = [example for example in work.held_out if isinstance(example, ChatExample | PairExample)]
        self.example = answerable[0] if answerable else None

    def __call__(self, step: int) -> None:
        if self.example is None:
            return
        work = self.work
        work.learner.model.eval()
        predictor = LocalPredictor(replace(work.loaded, model=work.learner.model))
        with work.learner.autocast():  # new weights are fp32 beside a base in bf16
            (outcome,) = predictor.answer([self.example], own_prompt, work.recipe.generate, _no_progress)
        work.learner.method.set_training(work.learner.model)
        prompt = question_of(self.example)
        work.emit(Sample(STEP, prompt, outcome.answer, outcome.reference, at=step))
        self.run.append(SAMPLES, f"## Step {step}\n\n**{prompt}**\n\n{outcome.answer}\n\n")


def _keep_samples(run: RunFolder, last_step: int) -> None:
    """Drop the samples that were shown after `last_step`."""
    file = run.path / SAMPLES
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    later = [found.start() for found in re.finditer(r"^## Step (\d+)$", text, re.M) if int(found[1]) > last_step]
    if later:
        run.write(SAMPLES, text[: later[0]])


def question_of(example: ChatExample | PairExample) -> str:
    """What is asked: a pair's source, or the last user turn."""
    if isinstance(example, PairExample):
        return example.source
    return next((message.content for message in reversed(example.prompt) if message.role == "user"), "")


def publish_model(run: RunFolder, work: Work, *, finish: Callable[[Path], None] = lambda draft: None) -> None:
    """Publish `model/`: weights, tokenizer, card, and probe answers of what the files give.

    `finish` may put the saved weights into another shape before they are loaded again.
    """
    recipe, loaded, name = work.recipe, work.loaded, work.recipe.model.name
    assert recipe.objective != "auto", recipe.objective
    card = {
        "format": 1,
        "task": loaded.task,
        "base": read_card(loaded.adapter)["base"] if loaded.adapter else base_record(name, recipe.model.revision),
        "parent": base_record(name) if loaded.adapter else None,
        "method": recipe.method.spec(),
        "objective": recipe.objective.name,
        "problem": recipe.objective.problem if loaded.task == "classify" else None,
        "labels": list(loaded.labels),
        "max_length": work.max_length,
        "generate": recipe.generate.model_dump(mode="json"),
        "precision": work.learner.precision,
        "quantize": recipe.model.quantize,
    }
    work.learner.model.eval()
    with publishing(run.model, is_replaced=True) as draft:
        recipe.method.save(work.learner.model, draft)
        finish(draft)
        _save_tokenizer(loaded, draft)
        (draft / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")
        published = load_trained(draft)  # what is recorded is what the files answer, not what memory answers
        probes = record(published, spread(work.held_out, NUM_PROBES))
        (draft / "probes.json").write_text(json.dumps(probes, indent=1, ensure_ascii=False), encoding="utf-8")
    model = weakref.ref(published.model)
    del published
    let_go(model)  # it is loaded once more, from its place


def _save_tokenizer(loaded: Loaded, folder: Path) -> None:
    """The tokenizer with the chat template that was trained with, so that any other program uses it too."""
    if loaded.task == "causal" and not getattr(loaded.tokenizer, "chat_template", None):
        loaded.tokenizer.chat_template = PLAIN_TEMPLATE
    loaded.tokenizer.save_pretrained(folder)


def _no_progress(done: int, total: int) -> None:
    """Say nothing."""
