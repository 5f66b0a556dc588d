"""What every objective promises, whichever it is, on every architecture that can do its task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import log_loss, mean_squared_error
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from made_training import LABELS, examples, labels_of, make_learner, make_loop, make_rows
from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build, names
from tunesmith.core.records import Example
from tunesmith.methods.full import Full
from tunesmith.models.configuration import check_task
from tunesmith.models.load import Loaded, load_trained
from tunesmith.models.predict import LocalPredictor
from tunesmith.models.tiny import ARCHITECTURES, DECODERS, ENCODER_DECODERS, ENCODERS, tiny, write_tiny
from tunesmith.objectives.base import IGNORED, Features, Objective
from tunesmith.training.learner import Learner

FITTING = {
    "causal": DECODERS,
    "seq2seq": ENCODER_DECODERS,
    "classify": ARCHITECTURES,
    "tag": (*ENCODERS, *DECODERS, "t5"),
    "mask": ENCODERS,
}
CASES = [
    (name, architecture) for name in names("objectives") for architecture in FITTING[build("objectives", name).task]
]
HEADS = ("classification", "multi_label", "regression", "token_classification")


@cache
def learner_of(name: str, architecture: str) -> Learner:
    learner = make_learner(Full(), architecture, build("objectives", name), packing="off")
    learner.model.eval()
    return learner


@cache
def rows_of(name: str, architecture: str) -> tuple[Features, ...]:
    objective: Objective = build("objectives", name)
    return make_rows(objective, tiny(architecture, objective.task)[1]).features


def total(learner: Learner, features: Sequence[Features]) -> float:
    with torch.no_grad():
        return learner.loss(learner.batch(features))[0].item()


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_sums_of_parts_are_the_sum_of_the_whole(name: str, architecture: str) -> None:
    learner, features = learner_of(name, architecture), rows_of(name, architecture)
    parts = [total(learner, features[:1]), total(learner, features[1:3]), total(learner, features[3:])]
    assert sum(parts) == pytest.approx(total(learner, features), rel=1e-4, abs=1e-4)
    assert learner.batch(features).weight == sum(feature.weight for feature in features)


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_what_stands_in_padding_does_not_matter(name: str, architecture: str) -> None:
    learner, features = learner_of(name, architecture), rows_of(name, architecture)
    batch = learner.batch(features)
    hidden = batch.tensors["attention_mask"] == 0
    assert hidden.any()
    tensors = dict(batch.tensors)
    if learner.objective.task == "classify" and architecture not in ENCODERS:
        # where such a row ends is read off its padding, as transformers does; more of it must not matter
        for key, filler in (("input_ids", learner.layout.pad_token_id), ("attention_mask", 0)):
            tensors[key] = torch.nn.functional.pad(tensors[key], (0, 5), value=filler)
    else:
        tensors["input_ids"] = torch.where(hidden, torch.tensor(17), tensors["input_ids"])
    changed = replace(batch, tensors=tensors)
    with torch.no_grad():
        other, same = learner.loss(changed)[0], learner.loss(batch)[0]
    torch.testing.assert_close(other, same, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_the_loss_is_transformers_own_times_its_weight(name: str, architecture: str) -> None:
    learner, features = learner_of(name, architecture), rows_of(name, architecture)
    batch = learner.batch(features)
    inputs = {key: tensor for key, tensor in batch.tensors.items() if not key.startswith("decoder")}
    with torch.no_grad():
        mean = learner.model(**inputs).loss.item()
    assert total(learner, features) / batch.weight == pytest.approx(mean, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("name", "architecture"), [(n, a) for n in names("objectives") for a in ARCHITECTURES])
def test_what_a_family_cannot_do_is_refused_by_its_configuration(name: str, architecture: str) -> None:
    objective: Objective = build("objectives", name)
    config = tiny(architecture)[0].config
    if architecture in FITTING[objective.task]:
        check_task(config, objective.task, "tiny")
        return
    with pytest.raises(UserError, match=r"the task needs an? |transformers has no ") as caught:
        check_task(config, objective.task, "tiny")
    assert caught.value.code == "wrong_task" and "objective" in caught.value.remedy


@pytest.mark.parametrize(("name", "architecture"), [(n, a) for n in HEADS for a in ("bert", "llama")])
def test_the_loss_is_scikit_learns(name: str, architecture: str) -> None:
    learner, features = learner_of(name, architecture), rows_of(name, architecture)
    batch = learner.batch(features)
    inputs = {key: tensor for key, tensor in batch.tensors.items() if key != "labels"}
    with torch.no_grad():
        logits = learner.model(**inputs).logits.double()
    labels = batch.tensors["labels"]
    if name == "regression":
        expected = mean_squared_error(labels, logits[:, 0]) * len(features)
    elif name == "multi_label":
        columns = zip(labels.T.numpy(), logits.sigmoid().T.numpy(), strict=True)
        expected = sum(log_loss(y, p, labels=[0, 1], normalize=False) for y, p in columns) / len(LABELS)
    else:
        kept = labels != IGNORED
        expected = log_loss(labels[kept], logits.softmax(-1)[kept], labels=range(len(LABELS)), normalize=False)
    assert total(learner, features) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [*HEADS, "mlm"])
def test_what_is_saved_opens_with_transformers_alone_and_means_the_same(name: str, tmp_path: Path) -> None:
    learner, features = learner_of(name, "bert"), rows_of(name, "bert")
    Full().save(learner.model, tmp_path)
    auto: Any = {"tag": AutoModelForTokenClassification, "mask": AutoModelForMaskedLM}
    opened = auto.get(learner.objective.task, AutoModelForSequenceClassification).from_pretrained(tmp_path).eval()
    batch = learner.batch(features)
    with torch.no_grad():
        mean = opened(**batch.tensors).loss.item()
    assert mean * batch.weight == pytest.approx(total(learner, features), rel=1e-5)
    said = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    if learner.objective.task == "classify":
        assert said["problem_type"] == learner.objective.problem
    if labels_of(learner.objective):
        assert tuple(said["id2label"].values()) == labels_of(learner.objective)


@pytest.mark.parametrize(("name", "architecture"), [(n, a) for n, a in CASES if n in HEADS])
def test_answers_are_the_same_alone_and_in_a_padded_batch(name: str, architecture: str) -> None:
    objective: Objective = build("objectives", name)
    learner = learner_of(name, architecture)
    tokenizer = tiny(architecture, objective.task)[1]
    loaded = Loaded(learner.model, tokenizer, objective.task, labels_of(objective), "tiny")
    predictor, rows = LocalPredictor(loaded), examples(objective)
    together = predictor.classify(rows, lambda done, of: None)
    for row, outcome in zip(rows, together, strict=True):
        (alone,) = predictor.classify([row], lambda done, of: None)
        assert alone.origin == outcome.origin == str(row.origin)
        if name == "regression":
            assert float(alone.answer) == pytest.approx(float(outcome.answer), abs=1e-5)
        else:
            assert alone.answer == outcome.answer
            assert alone.probabilities == pytest.approx(outcome.probabilities, abs=1e-5)


@pytest.mark.parametrize("name", names("objectives"))
def test_a_row_looks_the_same_in_every_epoch_where_the_objective_says_so(name: str) -> None:
    objective: Objective = build("objectives", name)
    architecture = FITTING[objective.task][0]
    learner, features = learner_of(name, architecture), rows_of(name, architecture)
    draws = [[objective.renew(f, learner.layout, (1, step, i)) for i, f in enumerate(features)] for step in (0, 1, 0)]
    assert draws[0] == draws[2]
    assert (draws[0] == draws[1]) == objective.is_fixed
    assert all(f.weight == g.weight for f, g in zip(draws[0], draws[1], strict=True))


@pytest.mark.parametrize("name", names("objectives"))
def test_a_training_that_was_stopped_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    objective: Objective = build("objectives", name)
    architecture = FITTING[objective.task][0]
    whole = make_loop(tmp_path / "whole", Full(), architecture, name)
    whole.fit(lambda step: None)

    class Stop(Exception):  # noqa: N818 - a kill, not a failure
        pass

    def stop(step: int) -> None:
        if step >= 4:
            raise Stop

    first = make_loop(tmp_path / "cut", Full(), architecture, name)
    with pytest.raises(Stop):
        first.fit(stop)
    second = make_loop(tmp_path / "cut", Full(), architecture, name)
    assert second.restore() == 2
    second.fit(lambda step: None)
    ours, theirs = second.learner.trainable(), whole.learner.trainable()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(("name", "task"), [(n, t) for n, t in product(HEADS, ("causal", "mask"))])
def test_a_model_without_the_head_does_not_pretend(name: str, task: str, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "bert" if task == "mask" else "llama", task)  # type: ignore[arg-type]
    predictor = LocalPredictor(load_trained(folder, precision="fp32"))
    rows: list[Example] = examples(build("objectives", name))
    with pytest.raises(UserError, match="the model has no head for classes"):
        predictor.classify(rows, lambda done, of: None)


def test_a_head_answers_only_rows_of_its_kind(tmp_path: Path) -> None:
    model, tokenizer = tiny("bert", "classify", labels=LABELS)
    predictor = LocalPredictor(Loaded(model, tokenizer, "classify", LABELS, "tiny"))
    with pytest.raises(UserError, match="the model gives one class, and the row has a set of classes"):
        predictor.classify(examples(build("objectives", "multi_label")), lambda done, of: None)
