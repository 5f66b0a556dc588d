"""What holds for every method in the folder, on an encoder, a decoder and an encoder-decoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from made_training import make_learner, make_loop, make_rows
from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build, names, summary
from tunesmith.methods.base import Method
from tunesmith.models.anatomy import num_parameters
from tunesmith.models.fresh import random_model
from tunesmith.models.tiny import tiny, tiny_config, tiny_tokenizer

FAMILIES = [("bert", "classify"), ("llama", "causal"), ("t5", "seq2seq")]
IDS = torch.tensor([[20, 21, 22, 23, 1], [30, 31, 32, 33, 1], [40, 41, 42, 43, 1], [50, 51, 52, 53, 1]])


@pytest.fixture(params=names("methods"))
def method(request: pytest.FixtureRequest) -> Method:
    built: Method = build("methods", request.param)
    return built


@pytest.fixture(params=FAMILIES, ids=[name for name, _ in FAMILIES])
def family(request: pytest.FixtureRequest) -> tuple[str, Any]:
    architecture, task = request.param
    return architecture, task


@pytest.fixture
def attached(method: Method, family: tuple[str, Any]) -> Iterator[Any]:
    """A tiny model with the method attached; a pair the method refuses is tested elsewhere."""
    torch.manual_seed(1)
    model, _ = tiny(*family)
    try:
        yield method.attach(model)
    except UserError as fault:
        assert fault.code == "method_refused"
        pytest.skip(f"{method.name} refuses {family[1]}")


def inputs(task: str) -> dict[str, Any]:
    given: dict[str, Any] = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    given["labels"] = torch.tensor([0, 1, 2, 1]) if task == "classify" else IDS
    return given


@torch.no_grad()
def logits(model: Any, task: str) -> torch.Tensor:
    found: torch.Tensor = model(**inputs(task)).logits.clone()
    return found[:, -IDS.shape[1] :] if task == "causal" else found  # virtual tokens' own positions come first


def disturb(model: Any) -> None:
    """Change what trains, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def test_it_is_documented(method: Method) -> None:
    assert len(summary("methods", method.name)) > 10
    assert method.summary()
    for name, field in type(method).model_fields.items():
        assert field.description, f"{method.name}.{name} has no string below it"


def test_a_refusal_says_why_and_comes_before_the_weights(method: Method, family: tuple[str, Any]) -> None:
    try:
        method.check_task(family[1])
        method.check_model(tiny(*family)[0].config, family[1])
    except UserError as fault:
        assert fault.code == "method_refused"
        assert method.name in fault.message
        assert fault.remedy
        with pytest.raises(UserError) as again:
            method.attach(tiny(*family)[0])
        assert again.value.code == "method_refused"
    else:
        method.attach(tiny(*family)[0])


def test_something_trains_and_only_full_trains_all(attached: Any, method: Method) -> None:
    trainable, total = num_parameters(attached)
    assert trainable > 0
    assert (trainable < total) == (method.name != "full")


def test_the_first_output_is_the_bases_where_the_paper_promises_it(
    attached: Any, method: Method, family: tuple[str, Any]
) -> None:
    base, _ = tiny(*family)
    is_same = torch.allclose(logits(attached, family[1]), logits(base, family[1]), atol=1e-5)
    assert is_same == method.starts_as_base


def test_only_what_trains_gets_gradients(attached: Any, method: Method, family: tuple[str, Any]) -> None:
    disturb(attached)  # LoRA's B is zero at first, and then A has no gradient
    method.set_training(attached)
    attached(**inputs(family[1])).loss.backward()
    for name, parameter in attached.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_what_is_saved_is_loaded_bit_for_bit(
    attached: Any, method: Method, family: tuple[str, Any], tmp_path: Path
) -> None:
    disturb(attached)
    method.save(attached, tmp_path / "saved")
    loaded: Any = method.load(tiny(*family)[0], tmp_path / "saved").eval()
    trained, found = dict(attached.named_parameters()), dict(loaded.named_parameters())
    assert trained.keys() == found.keys()
    for name, parameter in trained.items():
        assert torch.equal(parameter, found[name]), name
        assert parameter.requires_grad == found[name].requires_grad, name
    assert torch.equal(logits(attached, family[1]), logits(loaded, family[1]))


def test_a_frozen_bf16_base_keeps_its_digits(method: Method, tmp_path: Path) -> None:
    if method.trains_base_weights:
        pytest.skip(f"{method.name} trains fp32 weights")
    try:
        method.check_task("classify")
        family: tuple[str, Any] = ("bert", "classify")
    except UserError:
        family = ("llama", "causal")
    attached: Any = method.attach(tiny(*family)[0].bfloat16())
    assert {parameter.dtype for parameter in attached.parameters() if parameter.requires_grad} == {torch.float32}
    method.save(attached, tmp_path / "saved")
    loaded: Any = method.load(tiny(*family)[0].bfloat16(), tmp_path / "saved")
    for (name, before), after in zip(attached.named_parameters(), loaded.parameters(), strict=True):
        assert before.dtype == after.dtype, name
        assert torch.equal(before, after), name


def test_a_folder_of_another_base_is_refused(
    attached: Any, method: Method, family: tuple[str, Any], tmp_path: Path
) -> None:
    method.save(attached, tmp_path / "saved")
    architecture, task = family
    width, inner = ("d_model", "d_ff") if architecture == "t5" else ("hidden_size", "intermediate_size")
    narrower = {width: 48, inner: 48} | ({"d_kv": 12} if architecture == "t5" else {})  # a prefix fits any d_model
    other, _ = tiny(architecture, task, **narrower)
    with pytest.raises(UserError) as caught:
        method.load(other, tmp_path / "saved")
    assert caught.value.code in ("bad_model", "bad_adapter")
    assert caught.value.remedy


def test_disabled_is_the_base_and_then_the_trained_one_again(
    attached: Any, method: Method, family: tuple[str, Any]
) -> None:
    base = logits(tiny(*family)[0], family[1])
    disturb(attached)
    trained = logits(attached, family[1])
    assert not torch.equal(trained, base)
    before = {name for name, parameter in attached.named_parameters() if parameter.requires_grad}
    if not method.is_adapter:
        with pytest.raises(UserError, match="cannot be switched off"):
            method.disabled(attached)
        return
    with method.disabled(attached):
        assert torch.equal(logits(attached, family[1]), base)
    assert torch.equal(logits(attached, family[1]), trained)
    assert {name for name, parameter in attached.named_parameters() if parameter.requires_grad} == before


def test_merged_is_plain_and_answers_the_same(attached: Any, method: Method, family: tuple[str, Any]) -> None:
    disturb(attached)
    before = logits(attached, family[1])
    if not method.can_merge:
        with pytest.raises(UserError) as caught:
            method.merge(attached)
        assert caught.value.code == "cannot_merge"
        return
    merged = method.merge(attached)
    assert type(merged) is type(tiny(*family)[0])
    assert (logits(merged, family[1]) - before).abs().max() < 1e-5


def test_training_lowers_the_loss(method: Method, family: tuple[str, Any]) -> None:
    architecture, task = family
    try:
        method.check_task(task)
        method.check_model(tiny(*family)[0].config, family[1])
    except UserError:
        pytest.skip(f"{method.name} refuses {task}")
    torch.manual_seed(1)
    tokenizer = tiny_tokenizer(task)
    labels = ("no", "yes", "maybe") if task == "classify" else ()
    model: Any = method.attach(random_model(tiny_config(architecture), tokenizer, task, labels=labels, seed=1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    @torch.no_grad()
    def loss() -> float:
        return float(model.eval()(**inputs(task)).loss)

    before = loss()
    for _ in range(60):
        method.set_training(model)
        optimizer.zero_grad()
        model(**inputs(task)).loss.backward()
        optimizer.step()
    # What is frozen is random here, and one prompt serves four unlike rows: without dropout this much is no accident.
    assert loss() < before - 0.02, (before, loss())


def test_the_folder_opens_without_tunesmith(
    attached: Any, method: Method, family: tuple[str, Any], tmp_path: Path
) -> None:
    disturb(attached)
    method.save(attached, tmp_path / "saved")
    base, _ = tiny(*family)
    if method.is_adapter:
        from peft import PeftModel

        opened: Any = PeftModel.from_pretrained(base, str(tmp_path / "saved"))
    else:
        opened = type(base).from_pretrained(tmp_path / "saved")
    assert torch.allclose(logits(opened.eval(), family[1]), logits(attached, family[1]), atol=1e-5)
    assert not list((tmp_path / "saved").glob("*.bin"))


def test_two_adapters_on_one_base_switch_without_a_trace(
    attached: Any, method: Method, family: tuple[str, Any], tmp_path: Path
) -> None:
    if not method.is_adapter:
        pytest.skip(f"{method.name} changes the base, so there is one of it")
    disturb(attached)
    method.save(attached, tmp_path / "first")
    disturb(attached)
    method.save(attached, tmp_path / "second")
    alone = {}
    for name in ("first", "second"):
        loaded: Any = method.load(tiny(*family)[0], tmp_path / name)
        alone[name] = logits(loaded.eval(), family[1])
    both: Any = method.load(tiny(*family)[0], tmp_path / "first")
    both.load_adapter(str(tmp_path / "second"), adapter_name="second")
    both.eval()
    assert not torch.equal(alone["first"], alone["second"])
    for name, adapter in (("first", "default"), ("second", "second"), ("first", "default")):
        both.set_adapter(adapter)
        assert torch.equal(logits(both, family[1]), alone[name]), name


OBJECTIVES = {"classify": "classification", "causal": "clm", "seq2seq": "seq2seq"}


def test_a_stopped_training_goes_on_bit_for_bit(method: Method, family: tuple[str, Any], tmp_path: Path) -> None:
    architecture, task = family

    def loop(folder: str) -> Any:
        try:
            return make_loop(tmp_path / folder, method, architecture, OBJECTIVES[task])
        except UserError as fault:
            assert fault.code == "method_refused"
            pytest.skip(f"{method.name} refuses {task}")

    def die(step: int) -> None:
        if step == 4:
            raise _KilledError

    straight = loop("straight")
    straight.fit(lambda step: None)
    killed = loop("killed")
    with pytest.raises(_KilledError):
        killed.fit(die)
    resumed = loop("killed")
    assert resumed.restore() == 2  # it died after validating at step 4 and before saving it
    resumed.fit(lambda step: None)
    assert straight.tensors.keys() == resumed.tensors.keys()
    for name, parameter in straight.tensors.items():
        assert torch.equal(parameter, resumed.tensors[name]), name


class _KilledError(Exception):
    """It stands for kill -9."""


def test_packed_rows_have_the_losses_of_single_rows_or_are_refused(method: Method) -> None:
    objective: Any = build("objectives", "clm")
    try:
        learner = make_learner(method, "llama", objective)
    except UserError as fault:
        assert fault.code == "method_refused"
        pytest.skip(f"{method.name} refuses causal")
    assert learner.layout.is_packed == (not learner.padded_because)
    if learner.padded_because:
        with pytest.raises(UserError) as caught:
            make_learner(method, "llama", objective, packing="on")
        assert caught.value.code == "cannot_pack"
    disturb(learner.model)
    features = make_rows(objective, tiny("llama")[1]).features
    learner.model.eval()
    with torch.no_grad():
        together = learner.loss(learner.batch(features))[0]
        alone = sum(learner.loss(learner.batch([feature]))[0] for feature in features)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
