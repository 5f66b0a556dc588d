"""Every other type of PEFT: each lives through training, saving, switching off and merging, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build, names
from tunesmith.methods.peft import OWN, REFUSED, Peft
from tunesmith.models.tiny import tiny

IDS = torch.tensor([[20, 21, 22, 23, 1], [30, 31, 32, 33, 1]])
SMALL: dict[str, dict[str, Any]] = {  # PEFT's defaults are for matrices wider than 32
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 50, "scaling": 1.0},
    "MISS": {"r": 4},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [20, 21]},
    "VBLORA": {"vector_length": 8, "num_vectors": 32},
    "WAVEFT": {"n_frequency": 50},
}
TYPES = sorted(one.value for one in PEFT_TYPE_TO_CONFIG_MAPPING if one.value not in {*OWN, *REFUSED})
CANNOT_MERGE = {"BEFT", "LILY"}  # BEFT adds biases, and this Llama's matrices have none


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS).logits.clone()
    return found


def method(kind: str, **settings: Any) -> Peft:
    built: Peft = build("methods", {"name": "peft", "type": kind, "settings": {**SMALL.get(kind, {}), **settings}})
    return built


def test_there_are_as_many_types_as_peft_has() -> None:
    assert len(TYPES) >= 25
    assert set(OWN.values()) <= {*names("methods")}


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_lives_through_everything(kind: str, tmp_path: Path) -> None:
    one = method(kind)
    one.check_task("causal")
    base = logits(tiny("llama")[0])
    torch.manual_seed(0)
    attached: Any = one.attach(tiny("llama")[0])
    trains = [parameter for parameter in attached.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trains, lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = attached.train()(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = logits(attached)
    with one.disabled(attached):
        torch.testing.assert_close(logits(attached), base, rtol=1e-5, atol=1e-6)
    one.save(attached, tmp_path)
    assert torch.equal(logits(one.load(tiny("llama")[0], tmp_path)), trained)
    if kind in CANNOT_MERGE:
        with pytest.raises(UserError, match=f"{kind} cannot be merged into this model") as caught:
            one.merge(attached)
        assert caught.value.code == "cannot_merge"
        return
    merged = one.merge(attached)
    assert type(merged) is type(tiny("llama")[0])
    assert (logits(merged) - trained).abs().max() < 1e-5


@pytest.mark.parametrize("kind", TYPES)
def test_what_trains_is_fp32_on_a_bf16_base(kind: str) -> None:
    attached: Any = method(kind).attach(tiny("llama")[0].bfloat16())
    assert {p.dtype for p in attached.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        attached.train()(input_ids=IDS, labels=IDS).loss.backward()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("kind", ["LOHA", "LN_TUNING", "VERA"])
def test_targets_are_found_in_every_family_or_refused_before_weights(kind: str, architecture: str) -> None:
    model, _ = tiny(architecture)
    if (kind, architecture) == ("LOHA", "gpt2"):
        for refuse in (lambda: method(kind).check_model(model.config, "causal"), lambda: method(kind).attach(model)):
            with pytest.raises(UserError, match=r"Conv1D'> not supported") as caught:
                refuse()
            assert caught.value.code == "method_refused"
        return
    method(kind).check_model(model.config, "causal")
    attached: Any = method(kind).attach(model)
    blocks = {name for name, p in attached.named_parameters() if p.requires_grad and ".0." in name}
    assert blocks
    if architecture == "bert":
        assert any("classifier.modules_to_save" in name for name, _ in attached.named_parameters())


def fault(kind: str, **settings: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        method(kind, **settings).check_task("causal")
    return caught.value


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_type_that_needs_more_than_a_loss_is_refused_with_the_reason(kind: str) -> None:
    found = fault(kind)
    assert found.code == "method_refused"
    assert found.message == f"peft's {kind} cannot train here: {REFUSED[kind][0]}."
    assert found.remedy


@pytest.mark.parametrize("kind", sorted(OWN))
def test_a_type_that_is_a_method_here_names_it(kind: str) -> None:
    assert fault(kind).remedy == f"Use `method: {OWN[kind]}`."


def test_a_wrong_type_or_setting_names_the_nearest() -> None:
    assert fault("LOHAA").line() == 'there is no peft type "LOHAA"; did you mean "LOHA"? [unknown_peft_type]'
    assert fault("LOHA", alhpa=3).line() == (
        '"alhpa" is not a setting of PEFT\'s LOHA; did you mean "alpha"? [unknown_setting]'
    )
    assert fault("LOHA", task_type="CAUSAL_LM").code == "unknown_setting"
    assert "Leave use_asa out" in fault("ADAMSS", use_asa=True).remedy


def test_the_type_is_read_in_any_case() -> None:
    assert method("loha").summary() == "PEFT LOHA"
    method("loha", r=4).check_task("causal")


def test_pefts_own_refusal_is_one_line() -> None:
    with pytest.raises(UserError, match="peft's MISS does not fit this model: `r`") as caught:
        Peft(type="MISS", settings={"r": 64}).attach(tiny("llama")[0])
    assert caught.value.code == "bad_value"


def test_a_head_that_would_stay_random_is_refused() -> None:
    one = method("TRAINABLE_TOKENS")
    with pytest.raises(UserError, match="cannot train a classifier's new head"):
        one.check_task("classify")
    with pytest.raises(UserError, match="cannot train a classifier's new head"):
        one.attach(tiny("bert")[0])
