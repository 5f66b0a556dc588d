"""Loading is strict: the right kind, no holes, no pickles, no foreign code, the right base under an adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build
from tunesmith.models.heads import problem_of
from tunesmith.models.load import Loaded, load_base, load_trained
from tunesmith.models.source import base_record, fingerprint, resolve
from tunesmith.models.tiny import tiny, tiny_config, write_tiny
from tunesmith.recipe import ModelSettings


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "llama", "llama")


def load(name: Any, task: Any = "causal", *, config: Any = None, **settings: Any) -> Loaded:
    options = {"trains_base_weights": True, "precision": "fp32", "seed": 1, **settings}
    return load_base(ModelSettings(name=str(name), config=config or {}), task, **options)


def error(name: Any, task: Any = "causal", **settings: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load(name, task, **settings)
    assert caught.value.remedy
    return caught.value


def change_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_adapter(folder: Path, base: Path, **card: Any) -> Path:
    """An adapter as a run leaves it, with random weights that change the output."""
    method = build("methods", "lora")
    loaded = load(base, trains_base_weights=False)
    attached = method.attach(loaded.model)
    with torch.no_grad():
        for parameter in attached.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    method.save(attached, folder)
    loaded.tokenizer.save_pretrained(folder)
    written = {"format": 1, "task": "causal", "base": base_record(str(base)), "precision": "fp32", **card}
    (folder / "tunesmith.json").write_text(json.dumps(written))
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([[20, 30, 40]])).logits
    return found


# Names


def test_the_built_in_model_is_found_and_answers() -> None:
    loaded = load_trained("tunesmith/base", precision="fp32")
    assert loaded.task == "causal"
    assert loaded.context == 512
    assert loaded.name == "tunesmith/base"
    assert loaded.tokenizer.pad_token == "<|pad|>"


def test_a_run_folder_means_its_model(llama: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(llama, run / "model")
    (run / "recipe.yaml").write_text("model: x")
    assert resolve(str(run)) == run / "model"
    shutil.rmtree(run / "model")
    assert "has no model yet" in error(run).message


@pytest.mark.parametrize("name", ["./lama", "/nowhere/llama", "a/b/c", "two words", "tunesmith/bass"])
def test_a_wrong_name_is_no_hub_id(name: str) -> None:
    assert error(name).code == "unknown_model"


def test_a_wrong_folder_name_suggests_the_nearest(llama: Path) -> None:
    assert error(str(llama.parent / "lama")).remedy == 'did you mean "llama"?'


def test_a_hub_id_offline_says_what_to_do() -> None:
    fault = error("nobody/no-such-model")
    assert fault.code == "unknown_model"
    assert "Offline, name a folder" in fault.remedy


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert error(tmp_path).code == "no_model"


# Hostile and damaged files


def test_a_pickle_is_refused(llama: Path) -> None:
    (llama / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert error(llama).code == "pickle_refused"


def test_foreign_code_does_not_run(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (llama / "config.json").write_text(json.dumps(config))
    (llama / "code.py").write_text("raise SystemExit('ran')")
    fault = error(llama)
    assert fault.code == "remote_code"
    assert "trust_remote_code" in fault.remedy


def test_a_layer_that_would_be_random_is_an_error(llama: Path) -> None:
    change_weights(llama, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    fault = error(llama)
    assert fault.code == "incomplete_model"
    assert "model.layers.1.mlp.up_proj.weight, which would be random" in fault.message


def test_a_truncated_file_is_named(llama: Path) -> None:
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert error(llama).code == "bad_model"


def test_a_config_that_is_no_json_is_an_error(llama: Path) -> None:
    (llama / "config.json").write_text("{")
    assert error(llama).code == "bad_model"


def test_a_folder_without_a_tokenizer_says_so(llama: Path) -> None:
    for file in llama.glob("*token*"):
        file.unlink()
    assert error(llama).code == "no_tokenizer"


# The kind of model, before weights are read


@pytest.mark.parametrize(
    ("architecture", "task", "words"),
    [
        ("bert", "causal", "the task needs a decoder, and this model (bert) is an encoder."),
        ("t5", "causal", "the task needs a decoder, and this model (t5) is an encoder-decoder."),
        ("llama", "seq2seq", "the task needs an encoder-decoder, and this model (llama) is a decoder."),
    ],
)
def test_the_wrong_kind_is_refused_from_the_configuration(
    architecture: str, task: str, words: str, tmp_path: Path
) -> None:
    folder = write_tiny(tmp_path / "m", architecture)
    (folder / "model.safetensors").unlink()
    fault = error(folder, task)
    assert fault.code == "wrong_task"
    assert fault.message == words
    assert ("become chats" in fault.remedy) == (architecture == "llama")


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    (llama / "model.safetensors").unlink()
    assert error(llama).message == "the tokenizer has 320 tokens and the model only 300 embeddings."


# Classifiers


def test_a_fresh_head_has_the_labels_and_a_seed(tmp_path: Path) -> None:
    from transformers import BertModel

    model, tokenizer = tiny("bert")
    bare = BertModel(model.config)
    bare.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    first, same, other = (load(tmp_path / "bert", "classify", labels=("a", "b"), seed=seed) for seed in (1, 1, 2))
    assert first.labels == ("a", "b")
    assert first.model.config.label2id == {"a": 0, "b": 1}
    assert torch.equal(first.model.classifier.weight, same.model.classifier.weight)
    assert not torch.equal(first.model.classifier.weight, other.model.classifier.weight)
    assert torch.equal(first.model.bert.pooler.dense.weight, bare.pooler.dense.weight)


def test_a_head_for_other_labels_is_forgotten(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bert", "bert", labels=("a", "b", "c"))
    kept = load(folder, "classify", labels=("a", "b", "c")).model
    renamed = load(folder, "classify", labels=("x", "y", "z")).model
    saved = load_file(folder / "model.safetensors")
    assert torch.equal(kept.classifier.weight, saved["classifier.weight"])
    assert not torch.equal(renamed.classifier.weight, saved["classifier.weight"])
    assert torch.equal(
        renamed.bert.encoder.layer[0].output.dense.weight, saved["bert.encoder.layer.0.output.dense.weight"]
    )
    assert load(folder, "classify", labels=("p", "q")).model.classifier.weight.shape == (2, 32)


def test_one_label_is_no_classification(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bert", "bert")
    assert error(folder, "classify", labels=("a",)).message == "a classifier needs at least two labels, not 1."


def test_a_classifier_without_its_head_does_not_answer(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bert", "bert")
    change_weights(folder, lambda weights: weights.pop("classifier.weight"))
    with pytest.raises(UserError, match=r"lacks classifier\.weight"):
        load_trained(folder, precision="fp32")


def test_a_bare_encoder_does_not_answer(tmp_path: Path) -> None:
    from transformers import BertModel

    model, tokenizer = tiny("bert")
    BertModel(model.config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BertModel is an encoder without a trained head"):
        load_trained(tmp_path)


# Precision, seeds, configurations


def test_only_frozen_weights_are_bf16(llama: Path) -> None:
    assert load(llama, trains_base_weights=False, precision="bf16").model.dtype == torch.bfloat16
    assert load(llama, trains_base_weights=True, precision="bf16").model.dtype == torch.float32


def test_a_configuration_makes_seeded_random_weights(llama: Path) -> None:
    config = {**tiny_config("llama"), "num_hidden_layers": 1}
    first, same, other = (load(llama, config=config, seed=seed).model for seed in (1, 1, 2))
    assert first.config.vocab_size == 320
    assert first.config.num_hidden_layers == 1
    assert torch.equal(first.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_loading_leaves_the_random_state_alone(llama: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load(llama, config=tiny_config("llama"))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"hidden_size": 32}, "bad_config"),
        ({"model_type": "lama"}, "unknown_model_type"),
        ({"model_type": "llama", "hiden_size": 32}, "unknown_setting_of_model.config"),
        ({**tiny_config("llama"), "vocab_size": 10}, "vocabulary_mismatch"),
        ({**tiny_config("bert")}, "wrong_task"),
    ],
)
def test_a_wrong_configuration_is_refused(config: dict[str, Any], code: str, llama: Path) -> None:
    assert error(llama, config=config).code == code


def test_an_adapter_on_random_weights_is_refused(llama: Path) -> None:
    assert error(llama, config=tiny_config("llama"), trains_base_weights=False).code == "random_base"


def test_loading_prints_nothing(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(llama)
    load_trained(llama)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


# Trained adapters


def test_an_adapter_opens_with_its_base(llama: Path, tmp_path: Path) -> None:
    loaded = load_trained(write_adapter(tmp_path / "adapter", llama))
    assert loaded.task == "causal"
    assert loaded.precision == "fp32"
    assert loaded.card["base"]["sha256"] == fingerprint(llama)
    base = load(llama).model
    assert not torch.allclose(logits(loaded.model), logits(base), atol=1e-3)
    with loaded.model.disable_adapter():
        assert torch.equal(logits(loaded.model), logits(base))


def test_another_base_under_an_adapter_is_refused_by_name(llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", llama)
    change_weights(llama, lambda weights: weights["model.norm.weight"].mul_(2))
    with pytest.raises(UserError) as caught:
        load_trained(adapter)
    assert caught.value.code == "wrong_base"
    assert str(llama) in caught.value.message


def test_a_base_that_is_gone_is_named(llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", llama)
    shutil.rmtree(llama)
    with pytest.raises(UserError, match=f'its base model "{llama}" was not found'):
        load_trained(adapter)


def test_training_goes_on_from_an_adapter_merged(llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", llama)
    merged = load(adapter)
    assert type(merged.model).__name__ == "LlamaForCausalLM"
    assert torch.allclose(logits(merged.model), logits(load_trained(adapter).model), atol=1e-5)


def test_a_card_of_a_newer_format_is_refused(llama: Path) -> None:
    (llama / "tunesmith.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(UserError, match="written in format 2"):
        load_trained(llama)


def test_the_card_decides_the_precision(llama: Path) -> None:
    (llama / "tunesmith.json").write_text(json.dumps({"format": 1, "task": "causal", "precision": "bf16"}))
    assert load_trained(llama).model.dtype == torch.bfloat16
    assert load_trained(llama, precision="fp32").model.dtype == torch.float32


def test_weights_that_were_added_after_training_are_refused(llama: Path) -> None:
    (llama / "tunesmith.json").write_text(json.dumps({"format": 1, "task": "causal", "precision": "fp32"}))
    change_weights(llama, lambda weights: weights.update({"model.extra.weight": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"no place for: model\.extra\.weight"):
        load_trained(llama)


def test_a_head_that_meant_something_else_is_forgotten_and_a_number_stays_one(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "sets", "bert", labels=("a", "b", "c"), problem="multi_label_classification")
    settings: dict[str, Any] = {"trains_base_weights": True, "precision": "fp32", "seed": 1}
    saved = load_file(folder / "model.safetensors")["classifier.weight"]
    for problem, is_kept in (("multi_label_classification", True), ("single_label_classification", False)):
        loaded = load_base(
            ModelSettings(name=str(folder)), "classify", labels=("a", "b", "c"), problem=problem, **settings
        )
        assert torch.equal(loaded.model.classifier.weight, saved) == is_kept
        assert (loaded.has_new_head, loaded.model.config.problem_type) == (not is_kept, problem)
    folder = write_tiny(tmp_path / "number", "bert", problem="regression")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "LABEL_0"}, "problem_type": None}))
    saved = load_file(folder / "model.safetensors")["classifier.weight"]
    loaded = load_base(ModelSettings(name=str(folder)), "classify", problem="regression", **settings)
    assert torch.equal(loaded.model.classifier.weight, saved)
    assert loaded.labels == ("number",)
    assert problem_of(load_trained(folder, precision="fp32")) == "regression"


def test_a_method_refuses_a_model_for_a_task_before_its_weights_are_read(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "t5", "t5")
    (folder / "model.safetensors").write_bytes(b"unreadable")
    method = build("methods", "prompt_tuning")
    with pytest.raises(UserError, match="cannot train an encoder-decoder's classifier"):
        load_base(
            ModelSettings(name=str(folder)),
            "classify",
            labels=("a", "b"),
            trains_base_weights=False,
            precision="fp32",
            seed=1,
            check=method.check_model,
            method=method,
        )


def test_a_misspelt_name_without_a_network_is_told_at_once_with_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "runs" / "tickets-1", "llama")
    fault = error("tickts-1")
    assert fault.remedy.startswith("no folder here is called so, and the hub is switched off")
    assert fault.remedy.endswith('Did you mean "runs/tickets-1"?')
