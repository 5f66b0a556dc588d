"""Padded rows: what transformers' own attention gives real tokens, and nothing computed for the others."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionMaskInterface

from tunesmith.core.plugins import build
from tunesmith.kernels.packed_attention import NAME, attend_padded, attending
from tunesmith.kernels.visible import Visible, visible_mask
from tunesmith.models.tiny import task_of, tiny


@pytest.mark.parametrize(
    "architecture", ["bert", "roberta", "distilbert", "modernbert", "bart", "llama", "gpt2", "mistral"]
)
def test_a_padded_batch_has_the_loss_and_gradients_of_the_models_own_attention(architecture):
    model, _ = tiny(architecture)
    ids = torch.randint(10, 60, (3, 30), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(30)[None] < torch.tensor([30, 12, 21])[:, None]).long()
    labels = torch.tensor([0, 1, 2]) if task_of(architecture) == "classify" else ids.masked_fill(mask == 0, -100)
    results = []
    for name in (model.config._attn_implementation, NAME):
        model.zero_grad()
        with attending(model, name):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
        gradients = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
        results.append((loss.detach(), gradients))
    torch.testing.assert_close(*[loss for loss, _ in results])
    for key, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][key], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("architecture", "is_taken"), [("bert", True), ("bart", True), ("llama", True), ("t5", False)])
def test_a_model_keeps_the_attention_only_where_nothing_else_changes(architecture, is_taken):
    model, _ = tiny(architecture)
    before = model.config._attn_implementation
    assert attend_padded(model, 300) == is_taken
    assert model.config._attn_implementation == (NAME if is_taken else before)


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_rows_behind_virtual_tokens_are_compared_by_their_own(method):
    """Prompt and P-tuning lengthen the row, which hid real tokens from the trial; a prefix lies in a cache."""
    model = build("methods", method).attach(tiny("llama")[0])
    ids = torch.randint(10, 60, (3, 30), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(30)[None] < torch.tensor([30, 12, 21])[:, None]).long()
    results = []
    for is_given in (False, True):
        assert not is_given or attend_padded(model, 300)
        model.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        results.append((loss.detach(), [one.grad.clone() for one in model.parameters() if one.grad is not None]))
    assert results[0][1]
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-4)


def _mixed(architecture):
    """A bf16 encoder with LoRA and a new fp32 head, as a training of classes on a bf16 machine has it."""
    torch.manual_seed(0)
    model = tiny(architecture)[0].bfloat16()
    for name, part in model.named_children():
        if "classifier" in name:
            part.float()
    return build("methods", "lora").attach(model)


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_a_bf16_encoder_with_an_fp32_head_takes_it(architecture):
    model = _mixed(architecture)
    with torch.autocast("cpu", torch.bfloat16):
        assert attend_padded(model, 300)
    assert model.config._attn_implementation == NAME


def test_a_bf16_model_whose_outputs_change_is_left_alone():
    """A mask that lets padding through changes them by less than bf16 rounds; in fp32 it shows."""

    def through_padding(*args, attention_mask=None, **settings):
        return visible_mask(*args, attention_mask=torch.ones_like(attention_mask), **settings)

    model = _mixed("bert")
    AttentionMaskInterface.register(NAME, through_padding)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert not attend_padded(model, 300)
    finally:
        AttentionMaskInterface.register(NAME, visible_mask)
    assert model.config._attn_implementation != NAME


def test_dropout_of_a_bert_is_the_same_for_the_same_seed():
    model, _ = tiny("bert")
    model.train()
    ids = torch.arange(24).view(2, 12)
    losses = []
    with attending(model):
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            losses.append(model(input_ids=ids, labels=torch.tensor([0, 1])).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_generation_with_a_cache_writes_what_it_writes_without_this_attention():
    model, _ = tiny("llama")
    ids = torch.arange(10, 18).view(2, 4)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(ids, attention_mask=mask, **settings)
    with attending(model):
        torch.testing.assert_close(model.generate(ids, attention_mask=mask, **settings), plain)


def _mask(mask_BT, **settings):
    rows, length = mask_BT.shape
    sizes = {"batch_size": rows, "q_length": length, "kv_length": length}
    return visible_mask(**sizes, mask_function=lambda row, head, query, key: key <= query, attention_mask=mask_BT)


def test_padding_on_either_side_is_left_out_and_holes_are_pytorchs():
    right, left, hole = ([1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 1, 1])
    seen = _mask(torch.tensor([right, left]).bool())
    assert isinstance(seen, Visible)
    assert seen.spans_N5.tolist()[:-1] == [[0, 0, 2, 0, 2], [1, 1, 4, 1, 4]]
    assert isinstance(_mask(torch.tensor([right, hole]).bool()), torch.Tensor)
