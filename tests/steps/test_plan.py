"""What a plan says before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.data.load import load_data
from tunesmith.models.load import load_tokenizer
from tunesmith.models.tiny import write_tiny
from tunesmith.objectives.base import Objective
from tunesmith.recipe import Recipe, make_recipe
from tunesmith.steps import plan_estimate
from tunesmith.steps.plan import Plan, plan
from tunesmith.steps.train import resolve
from tunesmith.training.memory import Sizes, memory_of
from tunesmith.training.order import Order
from tunesmith.training.pace import OPTIMIZER_PASSES, Pace, probed
from tunesmith.training.trace import Trace, Work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("plan")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"what is {n}?"},
                {"role": "assistant", "content": "the machine " * (n % 7 + 1)},
            ]
        }
        for n in range(60)
    ]
    (made / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    write_tiny(made / "model", "llama")
    for weights in (made / "model").glob("*.safetensors"):
        weights.unlink()  # a configuration and a tokenizer are enough
    return made


@pytest.fixture(scope="module")
def own(folder: Path) -> Plan:
    """The plan of a folder without weights, with all that a plan tells."""
    return plan(recipe(folder))


def recipe(folder: Path, model: str = "", **sections: Any) -> Recipe:
    train = {"tokens_per_step": 512, "micro_tokens": 256, "epochs": 2, **sections.pop("train", {})}
    data = {"source": str(folder / "rows.jsonl")}
    name = model or str(folder / "model")
    return make_recipe({"model": name, "data": data, "train": train, "evaluate": "perplexity", **sections})


def planned(given: Recipe, **others: Any) -> Plan:
    return plan(given, **{"has_alternatives": False, **others})


def test_a_folder_without_weights_is_planned(own: Plan) -> None:
    found = own
    assert found.fits
    assert found.sentence.startswith("It fits: peak ")
    assert found.estimate.is_packed
    assert found.estimate.is_probed
    assert 0 < found.peak_bytes < found.target.memory_bytes
    told = found.to_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["steps"] == found.estimate.layout.num_steps > 1


def test_weights_gradients_and_optimizer_are_exact(folder: Path) -> None:
    from tunesmith.models.tiny import tiny

    for method in ("full", {"name": "lora", "rank": 4}):
        given = recipe(folder, method=method)
        found = planned(given, machine="h100")
        base, _ = tiny("llama", "causal")
        frozen = found.estimate.precision == "bf16" and method != "full"
        model = given.method.attach(base.to(torch.bfloat16 if frozen else torch.float32))
        trained = [one for one in model.parameters() if one.requires_grad]
        for one in trained:
            one.grad = torch.zeros_like(one)
        optimizer = torch.optim.AdamW(trained, fused=True)
        optimizer.step()
        state = [value for held in optimizer.state.values() for value in held.values()]
        sizes = found.estimate.sizes
        assert sizes.trainable == sum(one.numel() for one in trained)
        assert sizes.weight_bytes == sum(one.nbytes for one in model.parameters())
        assert sizes.trained_bytes == sum(one.grad.nbytes for one in trained if one.grad is not None)
        assert sizes.optimizer_bytes == sum(value.nbytes for value in state)


def test_a_plan_lays_out_the_very_steps_of_a_short_run(folder: Path) -> None:
    given = recipe(folder, train={"steps": 2})
    data = load_data(given.data, seed=given.seed)
    given = resolve(given, data)
    draft = plan_estimate.Draft.of(given, data)
    lengths = [row.num_tokens for row in draft.rows.features]
    tokenizer, objective = load_tokenizer(given.model), given.objective
    assert isinstance(objective, Objective)
    pieces = [objective.encode(one, tokenizer, max_length=10**4, labels=()) for one in data.train]
    assert lengths == [piece.num_tokens for [piece] in pieces]  # in the order that training has them in
    order = Order.plan(lengths, given.train, given.seed, is_packed=True)
    seen = [sum(lengths[row] for row in order.rows(step)) for step in range(2)]
    assert planned(given).estimate.layout.tokens == pytest.approx(sum(seen) / 2)


def test_what_is_not_counted_is_said(folder: Path) -> None:
    notes = [
        planned(recipe(folder, train={"steps": 2, "compile": wish}), machine="h100").notes for wish in ("on", "off")
    ]
    assert [any("train.compile=on may make them faster" in note for note in one) for one in notes] == [True, False]


def test_the_first_step_and_the_optimisers_are_counted_as_probed() -> None:
    plain = Pace(flops=1e9, bytes_per_second=1e9, operation_seconds=0.0)
    assert plain.optimizer_seconds(1000) == pytest.approx(OPTIMIZER_PASSES * 1e-6)
    assert replace(plain, step_seconds_per_byte=2e-3).optimizer_seconds(1000) == pytest.approx(2.0)


def test_the_probe_has_the_threads_that_the_run_will_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []

    def watched(*given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return probed(*given)

    monkeypatch.setattr(plan_estimate, "probed", watched)
    planned(recipe(folder, train={"steps": 2, "threads": before + 1}))
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_a_published_model_that_is_not_here_is_planned_on_another_machine(folder: Path) -> None:
    given = recipe(folder, "meta-llama/Llama-3.1-8B-Instruct", train={"steps": 10})
    found = planned(given, machine="h100x8")
    assert found.fits
    assert not found.estimate.is_probed
    assert found.estimate.sizes.total == pytest.approx(8.03e9, rel=0.02)
    assert found.estimate.memory.weights == pytest.approx(16.1e9, rel=0.02)
    assert any("one of the 8 devices" in note for note in found.notes)
    assert any("4.2 characters" in note for note in found.notes)


def test_what_does_not_fit_says_which_settings_would(folder: Path) -> None:
    given = recipe(folder, "openai-community/gpt2-xl", method="full", train={"steps": 10})
    found = plan(given, machine="l4")
    assert not found.fits
    assert found.sentence.startswith("It does not fit: peak ")
    assert found.alternatives
    assert all(one.fits and one.peak_bytes <= found.target.memory_bytes for one in found.alternatives)
    assert any("adamw_8bit" in word for one in found.alternatives for word in one.overrides)


def test_alternatives_of_what_fits_are_other_methods(own: Plan) -> None:
    found = own
    titles = [one.title for one in found.alternatives]
    assert "full" in titles
    full = found.alternatives[titles.index("full")]
    assert full.trainable == found.estimate.sizes.total - found.estimate.sizes.trainable


def test_a_copy_for_a_checkpoint_counts_beside_training_only_where_training_goes_on() -> None:
    sizes = Sizes(trainable=100, total=100, weight_bytes=400, trained_bytes=400, optimizer_bytes=800)
    told = [
        memory_of(
            sizes,
            Trace(Work(1000.0, *[0.0] * 7), ()),
            accumulates=True,
            snapshot_bytes=1200,
            has_early_snapshot=early,
            file_bytes=5000,
            slack=1.0,
            gaps=1.0,
        )
        for early in (True, False)
    ]
    assert [one.training_bytes for one in told] == [400 + 400 + 800 + 1000 + 1200, 400 + 400 + 800 + 1000]
    assert [one.peak_bytes for one in told] == [3800, 400 + 400 + 800 + 1200]
    assert told[1].resident_bytes == 400 + 5000  # pages of files count as resident and are not needed


def test_recomputed_blocks_and_smaller_micro_batches_take_less(folder: Path) -> None:
    settings = ({"recompute": "none"}, {"recompute": "all", "micro_tokens": 128})
    plans = [planned(recipe(folder, train=train), machine="h100") for train in settings]
    whole, small = (found.estimate.memory.activations for found in plans)
    assert small < 0.4 * whole


@pytest.mark.parametrize(
    ("model", "machine", "text"),
    [
        ("", "h1000", 'there is no machine "h1000"'),
        ("", "h100x0", "has no device"),
        ("./nowhere", "", "there is no model"),
    ],
)
def test_wrong_names_say_so(model: str, machine: str, text: str, folder: Path) -> None:
    with pytest.raises(UserError, match=text):
        plan(recipe(folder, model), machine=machine)
