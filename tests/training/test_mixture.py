"""Several sources in one training: what is divided by what, each source's loss, and one backbone under two heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from made_training import loop_in
from tunesmith.core.events import Event, Metric, silent
from tunesmith.core.records import LabelExample, Origin, PairExample, TextExample
from tunesmith.core.run import RunFolder
from tunesmith.methods.full import Full
from tunesmith.models.load import Loaded
from tunesmith.models.tiny import tiny
from tunesmith.objectives.classification import Classification
from tunesmith.objectives.clm import CLM
from tunesmith.objectives.seq2seq import Seq2Seq
from tunesmith.training.encode import Rows, encode_rows
from tunesmith.training.learner import Learner
from tunesmith.training.loop import Loop
from tunesmith.training.mixture import Mixture

SETTINGS = {"steps": 4, "tokens_per_step": 160, "micro_tokens": 40, "lr": 1e-2, "validations": 2, "patience": 0}


def _texts(source: str, count: int) -> list[TextExample]:
    return [
        TextExample(origin=Origin(f"{source}.txt", n), text=f"{source} {n} " + "so " * (n % 5 + 1), source_name=source)
        for n in range(count)
    ]


def test_pairs_of_one_file_are_one_source() -> None:
    pairs = [PairExample(origin=Origin("p", n), source=f"say {n}", target=f"{n} said") for n in range(6)]
    rows, _ = encode_rows(pairs, Seq2Seq(), tiny("t5", "seq2seq")[1], max_length=64, labels=())
    assert rows.names == ("",) and rows.rows_of("").tolist() == list(range(6))


def _learner(seed: int, task: str, objective, num_labels: int = 3) -> tuple[Learner, object]:
    torch.manual_seed(seed)
    model, tokenizer = tiny("llama", task)
    loaded = Loaded(model, tokenizer, task, (), "tiny")
    learner = Learner.make(
        loaded, Full().attach(model), method=Full(), objective=objective, precision="fp32", packing="off"
    )
    return learner, tokenizer


def _loop(folder: Path, learner: Learner, rows: Rows, mixture: Mixture, emit=silent, **settings) -> Loop:
    return loop_in(folder, learner, rows, rows, {**SETTINGS, **settings}, emit, mixture)


def _mixed(tmp_path: Path, **settings) -> tuple[Loop, list[Event]]:
    learner, tokenizer = _learner(0, "causal", CLM())
    examples = [*_texts("a", 20), *_texts("b", 6)]
    rows = encode_rows(examples, CLM(), tokenizer, max_length=64, labels=())[0]
    events: list[Event] = []
    return _loop(tmp_path, learner, rows, Mixture(copies={"a": 1.0, "b": 2.0}), events.append, **settings), events


def test_sources_with_one_head_give_the_gradient_of_one_file(tmp_path) -> None:
    loop, _ = _mixed(tmp_path, max_grad_norm=0)
    numbers = loop.order.rows(0)
    learner = loop.learner
    features = [loop.rows.features[row] for row in numbers]
    batch = learner.batch(features)
    loss, _ = learner.loss(batch)
    (loss / batch.weight).backward()
    wanted = {name: parameter.grad.clone() for name, parameter in loop.tensors.items()}
    learner.model.zero_grad(set_to_none=True)
    loss_sum, weight = loop._accumulate(numbers)
    assert (loss_sum, weight) == (pytest.approx(loss.item(), rel=1e-5), batch.weight)
    loop._scale_and_clip(weight)
    for name, parameter in loop.tensors.items():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)


def test_each_source_has_its_loss_in_the_log(tmp_path) -> None:
    loop, events = _mixed(tmp_path)
    loop.fit(lambda step: None)
    records = RunFolder(tmp_path).read_metrics()
    trained = [record for record in records if "train_loss" in record]
    assert all({"train_loss.a", "train_loss.b"} <= set(record) for record in trained)
    validated = [record for record in records if "validation_loss" in record]
    assert all({"validation_loss.a", "validation_loss.b"} <= set(record) for record in validated)
    low, high = sorted((validated[-1]["validation_loss.a"], validated[-1]["validation_loss.b"]))
    assert low <= validated[-1]["validation_loss"] <= high
    marks = [event for event in events if isinstance(event, Metric)]
    assert all({"train_loss.a", "validation_loss.b"} <= set(event.values) for event in marks)


def _share(first: torch.nn.Module, other: torch.nn.Module) -> None:
    from tunesmith.models.shared_backbone import share_backbone

    share_backbone(first, other)


def _joint(folder: Path, **settings) -> Loop:
    classify, tokenizer = _learner(1, "classify", Classification())
    write, _ = _learner(2, "causal", CLM())
    _share(classify.model, write.model)
    num_labels = classify.model.config.num_labels
    labels = tuple(f"k{n}" for n in range(num_labels))
    classes = [
        LabelExample(origin=Origin("c.csv", n), text=f"row {n} of many", label=labels[n % num_labels])
        for n in range(12)
    ]
    parts = {
        "kinds": encode_rows(classes, Classification(), tokenizer, max_length=64, labels=labels)[0],
        "texts": encode_rows(_texts("t", 12), CLM(), tokenizer, max_length=64, labels=())[0],
    }
    mixture = Mixture(learners={"kinds": classify, "texts": write}, loss_weights={"kinds": 2.0, "texts": 0.5})
    return _loop(folder, classify, Rows.joined(parts), mixture, **settings)


def test_tasks_with_their_own_heads_add_their_weighted_means(tmp_path) -> None:
    loop = _joint(tmp_path, max_grad_norm=0)
    numbers = loop.order.rows(0)
    total = torch.zeros(())
    for name, learner in loop.mixture.learners.items():
        batch = learner.batch([loop.rows.features[row] for row in numbers if loop.rows.source(row) == name])
        loss, _ = learner.loss(batch)
        total = total + loop.mixture.loss_weights[name] * loss / batch.weight
    total.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in loop.tensors.items()}
    loop.optimizer.zero_grad(set_to_none=True)
    loss, divisor = loop._accumulate(numbers)
    loop._scale_and_clip(divisor)
    assert (loss, divisor) == (pytest.approx(total.item(), rel=1e-5), 1.0)
    for name, parameter in loop.tensors.items():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)


def test_one_backbone_stands_once_among_what_trains(tmp_path) -> None:
    loop = _joint(tmp_path)
    classify, write = (learner.model for learner in loop.mixture.learners.values())
    assert classify.model.layers[0].mlp.up_proj.weight is write.model.layers[0].mlp.up_proj.weight
    assert classify.get_input_embeddings().weight is write.get_input_embeddings().weight
    assert len({id(parameter) for parameter in loop.tensors.values()}) == len(loop.tensors)
    assert "score.weight" in loop.tensors
    loop.fit(lambda step: None)
    assert torch.equal(classify.model.norm.weight, write.model.norm.weight)


def test_a_joint_training_goes_on_bit_for_bit(tmp_path) -> None:
    whole = _joint(tmp_path / "whole")
    whole.fit(lambda step: None)

    class StopError(Exception):
        """Stands for a kill before the second checkpoint."""

    def stop(step: int) -> None:
        if step > 2:
            raise StopError

    broken = _joint(tmp_path / "broken")
    with pytest.raises(StopError):
        broken.fit(stop)
    again = _joint(tmp_path / "broken")
    assert again.restore() == 2
    again.fit(lambda step: None)
    for name, parameter in whole.tensors.items():
        assert torch.equal(parameter, again.tensors[name]), name
