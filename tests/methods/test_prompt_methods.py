"""Virtual tokens: what they begin as, and that every way to use them agrees with PEFT and with reading alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build
from tunesmith.models.load import Loaded
from tunesmith.models.logprobs import Likelihood
from tunesmith.models.prompt_start import common_tokens, text_tokens
from tunesmith.models.sample import Sampling, check_prompt, end_tokens, generate, stream
from tunesmith.models.tiny import DECODERS, ENCODERS, tiny, write_tiny
from tunesmith.models.virtual_tokens import num_virtual_tokens
from tunesmith.objectives.base import IGNORED, Batch, Features, Layout, causal_batch, padded, seq2seq_batch

METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning")
LENGTHS = (3, 9, 9, 20, 1)
GREEDY = Sampling(max_new_tokens=12)
TEXT = "press the button and wait until the green light is on"


def rows(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(8, 300, (length,), generator=generator).tolist() for length in lengths]


def adapted(method: str, architecture: str, task: Any = None, **settings: Any) -> tuple[Any, Any]:
    """A tiny model with larger weights, so that its output depends on what it reads, and virtual tokens before it."""
    same_depth = {"num_layers": 3} if architecture == "t5" else {}  # transformers' generate needs it
    torch.manual_seed(3)
    model, tokenizer = tiny(architecture, task, seed=3, **same_depth)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    built: Any = build("methods", {"name": method, "num_tokens": 5, **settings})
    model = built.attach(model).eval()
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model, tokenizer


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma", "mixtral", "t5", "bart"])
@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_peft_alone_in_a_batch_and_as_a_stream(method: str, architecture: str) -> None:
    model, tokenizer = adapted(method, architecture)
    together = generate(model, tokenizer, rows(), GREEDY)
    is_seq2seq = architecture in ("t5", "bart")
    for prompt, one in zip(rows(), together, strict=True):
        expected = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=sorted(end_tokens(model, tokenizer)),
            pad_token_id=0,
        )[0].tolist()
        assert list(one.token_ids) == expected[1 if is_seq2seq else len(prompt) :]
        pieces = list(stream(model, tokenizer, prompt, GREEDY))
        assert sum((piece.token_ids for piece in pieces), ()) == one.token_ids


@pytest.mark.parametrize("architecture", [*DECODERS, "t5", "bart"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_losses_of_padded_rows_are_pefts_own_of_each_row(method: str, architecture: str) -> None:
    model, _ = adapted(method, architecture)
    is_causal = architecture in DECODERS
    given = [row for row in rows() if len(row) > 1]
    if is_causal:
        batch: Batch = causal_batch([Features(tuple(row), tuple(row), 1.0) for row in given], Layout(False, 0))
    else:
        features = [Features(tuple(row), tuple(row), 1.0, target_ids=tuple(row)) for row in given]
        batch = seq2seq_batch(features, Layout(False, 0, model.config.decoder_start_token_id))
    losses = Likelihood(model, is_causal=is_causal)(batch)
    for number, row in enumerate(given):
        ids, labels = torch.tensor([row]), torch.tensor([row])
        if is_causal:
            labels[0, 0] = IGNORED  # PEFT would score it from the last virtual token; nothing does without an adapter
        scored = len(row) - is_causal
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss * scored
        assert losses.nats_N[losses.rows_N == number].sum().item() == pytest.approx(alone.item(), rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma", "qwen3", "phi"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@torch.no_grad()
def test_a_text_as_virtual_tokens_begins_as_that_text_before_the_prompt(
    method: str, architecture: str, tmp_path: Path
) -> None:
    folder = write_tiny(tmp_path, architecture)
    model, tokenizer = tiny(architecture)
    model.name_or_path = str(folder)
    ids = text_tokens(model, TEXT, 8)
    assert ids == tokenizer(TEXT)["input_ids"][:8]
    prompt = torch.tensor([[20, 21, 22, 23]])
    wanted = model(torch.tensor([[*ids, 20, 21, 22, 23]])).logits[:, -4:]
    built: Any = build("methods", {"name": method, "num_tokens": 8, "init": "text", "text": TEXT})
    found = built.attach(model)(prompt, attention_mask=torch.ones_like(prompt)).logits[:, -4:]
    assert torch.allclose(found, wanted, atol=1e-5)


@torch.no_grad()
def test_an_encoder_decoders_prompt_stands_before_its_source(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "t5")
    model, _ = tiny("t5")
    model.name_or_path = str(folder)
    ids, prompt, target = text_tokens(model, TEXT, 6), torch.tensor([[20, 21, 22]]), torch.tensor([[0, 30, 31]])
    wanted = model(torch.tensor([[*ids, 20, 21, 22]]), decoder_input_ids=target).logits
    built: Any = build("methods", {"name": "prompt_tuning", "num_tokens": 6, "init": "text", "text": TEXT})
    attached = built.attach(model)
    assert torch.allclose(attached(prompt, decoder_input_ids=target).logits, wanted, atol=1e-5)
    assert attached.prompt_encoder["default"].embedding.weight.shape == (6, 32)


@pytest.mark.parametrize("architecture", [*ENCODERS, "llama", "gpt2", "gpt_neox", "phi", "gemma"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_padded_batch_is_classified_as_each_text_alone(method: str, architecture: str) -> None:
    if method == "prefix_tuning" and architecture in ("distilbert", "modernbert"):
        pytest.skip("it keeps no cache")
    model, _ = adapted(method, architecture, "classify")
    given = rows()
    mask = padded([(1,) * len(row) for row in given], 0)
    together = model(input_ids=padded(given, 0), attention_mask=mask).logits
    for row, logits in zip(given, together, strict=True):
        ids = torch.tensor([row])
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        assert torch.allclose(logits, alone, atol=1e-4), architecture
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_padding_that_is_moved_is_not_warned_of(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = adapted("prompt_tuning", architecture, "classify")
    logger = logging.getLogger(type(model.get_base_model()).forward.__module__)
    told: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: told.append(record.getMessage()))
    logger.addHandler(handler)
    try:
        logger.warning_once.cache_clear()  # type: ignore[attr-defined]
        ids = padded(rows(), 0)
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        logger.warning("something else")
    finally:
        logger.removeHandler(handler)
    assert told == ["something else"]


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "llama", "gpt2"])
@torch.no_grad()
def test_words_of_a_padded_batch_are_tagged_as_in_each_text_alone(architecture: str) -> None:
    model, _ = adapted("prompt_tuning", architecture, "tag")
    given = rows()
    mask = padded([(1,) * len(row) for row in given], 0)
    together = model(input_ids=padded(given, 0), attention_mask=mask).logits
    longest = max(len(row) for row in given)
    for row, logits in zip(given, together[:, -longest:], strict=True):
        ids = torch.tensor([row])
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(row) :]
        assert torch.allclose(logits[: len(row)], alone, atol=1e-4), architecture


def test_common_tokens_are_words() -> None:
    from tunesmith.models.load import load_tokenizer
    from tunesmith.recipe import ModelSettings

    model, _ = tiny("llama")
    model.name_or_path = "tunesmith/base"
    tokenizer = load_tokenizer(ModelSettings(name="tunesmith/base"))
    words = [tokenizer.decode([token]).strip() for token in common_tokens(model, 50)]
    assert len(set(common_tokens(model, 50))) == 50
    assert all(word.isalpha() and len(word) > 1 for word in words)


def test_random_vectors_are_as_large_as_the_embeddings() -> None:
    model, _ = tiny("llama")
    table = model.get_input_embeddings().weight.detach().clone()
    start = build("methods", {"name": "prompt_tuning", "init": "random", "num_tokens": 200}).attach(model)
    found = start.prompt_encoder["default"].embedding.weight
    assert found.std().item() == pytest.approx(table.std().item(), rel=0.1)


def test_ptunings_network_is_the_papers() -> None:
    model, _ = adapted("p_tuning", "llama")
    encoder = model.prompt_encoder["default"]
    assert (encoder.lstm_head.hidden_size, encoder.lstm_head.num_layers) == (16, 2)
    assert encoder.lstm_head.bidirectional
    inputs = encoder.embedding.weight[None]
    wanted = encoder.mlp_head(encoder.lstm_head(inputs)[0])[0]
    assert torch.allclose(model.get_prompt_embedding_to_save("default"), wanted)


@pytest.mark.parametrize(
    ("method", "settings"), [("p_tuning", {}), ("prefix_tuning", {"init": "random", "reparametrize": True})]
)
def test_training_goes_on_only_where_the_network_was_kept(
    method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model, _ = adapted(method, "llama", **settings)
    built: Any = build("methods", {"name": method, "num_tokens": 5, **settings})
    built.save(model, tmp_path)
    again = built.load(tiny("llama")[0], tmp_path)
    for name, parameter in model.prompt_encoder.named_parameters():
        assert torch.equal(parameter, again.prompt_encoder.get_parameter(name))
    (tmp_path / "prompt_encoder.safetensors").unlink()
    with pytest.raises(UserError, match="not the network that made them"):
        built.load(tiny("llama")[0], tmp_path)


@pytest.mark.parametrize("architecture", ["distilbert", "modernbert"])
def test_prefix_tuning_refuses_a_model_without_a_cache_by_its_configuration(architecture: str) -> None:
    config = tiny(architecture)[0].config
    with pytest.raises(UserError, match=f"a {architecture} model has none") as caught:
        build("methods", "prefix_tuning").check_model(config, "causal")
    assert caught.value.code == "method_refused"


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_decoders_classifier_is_refused_by_its_configuration(method: str) -> None:
    for architecture in ("t5", "bart"):
        config = tiny(architecture)[0].config  # that of a model that writes: only the task tells
        with pytest.raises(UserError, match="transformers wants token ids there") as caught:
            build("methods", method).check_model(config, "classify")
        assert caught.value.code == "method_refused"
        build("methods", method).check_model(config, "seq2seq")


def test_prefix_tuning_refuses_t5s_tagger_by_its_configuration() -> None:
    config = tiny("t5")[0].config
    with pytest.raises(UserError, match="a t5 model that tags words has none"):
        build("methods", "prefix_tuning").check_model(config, "tag")
    build("methods", "prompt_tuning").check_model(config, "tag")


def test_settings_that_do_not_fit_are_refused() -> None:
    for settings in ({"init": "text"}, {"text": "abc"}):
        for method in ("prompt_tuning", "prefix_tuning"):
            with pytest.raises((UserError, ValidationError), match="belong together"):
                build("methods", {"name": method, **settings})
    with pytest.raises((UserError, ValidationError), match="set `init: random`"):
        build("methods", {"name": "prefix_tuning", "reparametrize": True})
    with pytest.raises((UserError, ValidationError), match="without it it has no effect"):
        build("methods", {"name": "prefix_tuning", "hidden_size": 64})
    with pytest.raises(UserError, match="the model reads 256 tokens in all"):
        build("methods", {"name": "prompt_tuning", "num_tokens": 256}).check_model(tiny("llama")[0].config, "causal")


def test_virtual_tokens_take_their_share_of_the_context() -> None:
    model, tokenizer = adapted("prompt_tuning", "llama")
    assert Loaded(model, tokenizer, "causal", (), "tiny").context == 251
    assert check_prompt(model, [20] * 200) == 51
    with pytest.raises(UserError, match="context of 251"):
        check_prompt(model, [20] * 251)
    (answer,) = generate(model, tokenizer, [[20] * 240], Sampling(max_new_tokens=100))
    assert len(answer.token_ids) <= 11


@pytest.mark.parametrize("method", METHODS)
def test_disabled_answers_as_the_base(method: str) -> None:
    model, tokenizer = adapted(method, "llama")
    built = build("methods", method)
    alone = generate(model.get_base_model(), tokenizer, rows(), GREEDY)
    before = generate(model, tokenizer, rows(), GREEDY)
    with built.disabled(model):
        assert num_virtual_tokens(model) == 0
        assert [one.token_ids for one in generate(model, tokenizer, rows(), GREEDY)] == [o.token_ids for o in alone]
    assert [one.token_ids for one in generate(model, tokenizer, rows(), GREEDY)] == [o.token_ids for o in before]
    assert [o.token_ids for o in before] != [o.token_ids for o in alone]


def test_merging_is_refused_with_the_reason() -> None:
    for method in METHODS:
        with pytest.raises(UserError, match="virtual tokens are inputs of the model"):
            build("methods", method).merge(adapted(method, "llama")[0])


def test_a_new_head_takes_smaller_steps_than_the_virtual_tokens() -> None:
    for method in METHODS:
        built: Any = build("methods", method)
        names = [
            name for name, parameter in built.attach(tiny("bert")[0]).named_parameters() if parameter.requires_grad
        ]
        heads = [name for name in names if "prompt_encoder" not in name]
        assert heads
        for name in heads:
            assert built.learning_rate * built.learning_rate_factor(name) == pytest.approx(1e-3)
        assert {built.learning_rate_factor(name) for name in names if "prompt_encoder" in name} == {1.0}
