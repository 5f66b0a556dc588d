"""The attention that transformers' models call while they train: only real tokens, cut at examples' borders.

It stands in for `sdpa` on a model and gives to PyTorch's kernel whatever it is not for. Packed rows get `position_ids`
that restart, and are read within `borders` (visible.py). Whether a very model reads packed rows rightly is tested on
the model itself before training (`why_not_packed`), because it cannot be read off a configuration.

On a processor the examples go through block_attention.py. On a GPU they go through the best kernel that is there and
can do all layers of the model (gpu_kernels.py), each under a name of its own, found by the same trial.
Legend: B batch (1 where packed), H query heads, K key/value heads, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tunesmith.kernels.block_attention import block_attention
from tunesmith.kernels.example_groups import Attend
from tunesmith.kernels.gpu_attention import gpu_attention
from tunesmith.kernels.gpu_kernels import KERNELS, Wanted, machine, possible
from tunesmith.kernels.plain_attention import plain_attention
from tunesmith.kernels.visible import Visible, borders, is_packing, visible_mask

NAME = "tunesmith"
ON_GPU = {kernel: f"{NAME}_{kernel.replace('flash_attn', 'fa2')}" for kernel in KERNELS}
"""The attention's name with each kernel of a GPU; transformers takes names with "flash" for its own."""
BEHIND_VIRTUAL_TOKENS = "virtual tokens stand before every row"
_wanted: ContextVar[list[Wanted] | None] = ContextVar("what layers ask for, while it is gathered", default=None)
_REFUSALS = (TypeError, KeyError, ValueError, IndexError, NotImplementedError, AttributeError, RuntimeError)
"""What a model raises that does not know such masks."""


def span_attention(  # noqa: PLR0913 - the signature that transformers calls
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Visible | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    kernel: str = "plain",
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of each query to what `attention_mask` says is visible: [B, T, H, D].

    `s_aux` are attention sinks [H] (gpt-oss), `softcap` is Gemma 2's cap on scores, `kernel` is the GPU's.

    Raises:
        NotImplementedError: A packed row of a layer that asks for no mask, or has learnt biases on its scores.
    """
    scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    if not isinstance(attention_mask, Visible):
        if is_packing():
            raise NotImplementedError("attention without borders between examples")
        if softcap is not None or s_aux is not None:
            mask = _causal(query_BHTD, key_BKTD) if attention_mask is None else attention_mask
            attend = Attend(scale, softcap=softcap or 0.0, dropout=dropout)
            return plain_attention(query_BHTD, key_BKTD, value_BKTD, mask, attend, s_aux), None
        return sdpa_attention_forward(
            module, query_BHTD, key_BKTD, value_BKTD, attention_mask, scaling=scaling, dropout=dropout, **others
        )
    if others.get("position_bias") is not None:
        raise NotImplementedError("biases on scores")
    visible = attention_mask
    attend = Attend(scale, visible.left, visible.right, softcap or 0.0, dropout)
    if query_BHTD.device.type != "cpu":
        if (wants := _wanted.get()) is not None:
            widths = (query_BHTD.shape[-1], value_BKTD.shape[-1])
            wants.append(Wanted(value_BKTD.dtype, *widths, bool(softcap), s_aux is not None, dropout > 0))
        return gpu_attention(kernel, query_BHTD, key_BKTD, value_BKTD, visible, attend, sinks_H=s_aux), None
    output = block_attention(
        query_BHTD, key_BKTD, value_BKTD, visible.spans_N5, attend, sinks_H=s_aux, num_kept=visible.num_kept
    )
    return output, None


def _causal(query_BHTD: Tensor, key_BKTD: Tensor) -> Tensor:
    """What the last tokens see where transformers gives no mask: everything up to their own place."""
    num_queries, num_keys = query_BHTD.shape[2], key_BKTD.shape[2]
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query_BHTD.device)
    return seen.tril(num_keys - num_queries)


def reference_packed_attention(
    query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, lengths: Sequence[int], scaling: float | None = None
) -> Tensor:
    """The same by one block-diagonal causal mask over the whole row, in plain products: [B, T, H, D]."""
    groups = query_BHTD.shape[1] // key_BKTD.shape[1]
    key = key_BKTD.repeat_interleave(groups, dim=1)
    value = value_BKTD.repeat_interleave(groups, dim=1)
    scale = scaling if scaling is not None else query_BHTD.shape[-1] ** -0.5
    example_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask_TT = (example_T[:, None] == example_T[None, :]).tril()
    scores = (query_BHTD @ key.transpose(-1, -2) * scale).masked_fill(~mask_TT, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


@contextmanager
def attending(model: nn.Module, name: str = NAME) -> Iterator[None]:
    """Within it the model has the attention of this name."""
    before = [(config, config._attn_implementation) for config in _configs(model)]
    give(model, name)
    try:
        yield
    finally:
        for config, old in before:
            config._attn_implementation = old


def give(model: nn.Module, name: str) -> None:
    """Give a model the attention of this name for good."""
    for config in _configs(model):
        config._attn_implementation = name


def _configs(model: nn.Module) -> list[Any]:
    """The model's configurations: T5's encoder and decoder have copies of their own."""
    found = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]


def packed_inputs(lengths: Sequence[int], device: torch.device | str = "cpu") -> dict[str, Any]:
    """The arguments of a packed forward pass beside `input_ids`: positions [1, T] that restart."""
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
    return {"position_ids": positions, "use_cache": False}


def kernel_of(model: nn.Module) -> str:
    """The GPU's kernel that a model's packed rows go through; "" on a CPU, or where its own attention stayed."""
    config: Any = model.config
    return next((kernel for kernel, name in ON_GPU.items() if name == config._attn_implementation), "")


def has_virtual_tokens(model: nn.Module) -> bool:
    """Whether an adapter puts virtual tokens before every row; in a pack only the first example would have them."""
    adapter: Any = getattr(model, "active_peft_config", None)
    return adapter is not None and adapter.is_prompt_learning


def why_not_packed(model: nn.Module, vocabulary_size: int, kernel: str = "auto") -> str:
    """Why this very model cannot read packed examples; empty where it gives them the logits that it gives them alone.

    Tried with two short examples, whose logits must be those of the examples alone, and must have no gradient at the
    other's embeddings: what leaks is not small but exactly nothing. The model then keeps the attention that passed:
    this module's, or its own with transformers' masks between examples, which computes the whole row's square. On a GPU
    `kernel` names the only kernel to be tried; `auto` tries those that can do all layers, best first.
    """
    if has_virtual_tokens(model):
        return BEHIND_VIRTUAL_TOKENS
    config: Any = model.config
    if any(getattr(one, key, None) for one in (config, config.get_text_config()) for key in SPARSE):
        return "its attention picks keys in long rows, which no trial on short ones can see"
    reasons = []
    for name in (*_names(model, vocabulary_size, kernel), config._attn_implementation):
        with attending(model, name):
            reasons.append(_why_not(model, vocabulary_size))
        if not reasons[-1]:
            give(model, name)
            return ""
    return reasons[0]


def _names(model: nn.Module, vocabulary_size: int, kernel: str) -> tuple[str, ...]:
    """This module's attentions that are worth trying on the model, best first."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        return (NAME,)
    if device.type != "cuda":
        return (ON_GPU["sdpa"], ON_GPU["plain"])
    wants: list[Wanted] = []
    token = _wanted.set(wants)
    was_training = model.training
    model.train()  # so that layers ask for their dropout
    try:
        probe = torch.zeros(1, sum(PROBES), dtype=torch.long, device=device)
        with torch.no_grad(), torch.random.fork_rng([device]), attending(model), borders(PROBES):
            model(input_ids=probe, **packed_inputs(PROBES, device))
    except _REFUSALS:
        return (NAME,)  # whose trial says why
    finally:
        model.train(was_training)
        _wanted.reset(token)
    found, _ = possible(wants, machine(device))
    return tuple(ON_GPU[one] for one in found if kernel in {"auto", one})


def attend_padded(model: nn.Module, vocabulary_size: int) -> bool:
    """Give a model that reads padded rows this module's attention, on a processor, if nothing else changes.

    Tried with two rows of unequal length, within the training's autocast: real tokens must have the outputs and
    gradients that they had before. In bf16 any two kernels round differently, which other layers amplify (docs/log.md):
    there it is the outputs with everything in fp32 that must be the same.
    """
    if next(model.parameters()).device.type != "cpu":
        return False
    before = _padded_trial(model, vocabulary_size)
    with attending(model):
        after = _padded_trial(model, vocabulary_size)
    is_same = bool(before)
    tolerance = SAME
    if torch.is_autocast_enabled("cpu") or any(weight.dtype == torch.bfloat16 for weight in model.parameters()):
        exact = _padded_trial(model, vocabulary_size, is_exact=True)
        with attending(model):
            is_same = bool(exact) and _are_near(exact, _padded_trial(model, vocabulary_size, is_exact=True), SAME)
        tolerance = NEAR_IN_BF16
    is_same = is_same and _are_near(before, after, tolerance)
    if is_same:
        give(model, NAME)
    return is_same


def _are_near(before: Sequence[Tensor], after: Sequence[Tensor], tolerance: float) -> bool:
    """Whether numbers agree within a share of themselves and of the greatest."""
    return len(before) == len(after) and all(
        torch.allclose(old, new, rtol=tolerance, atol=tolerance * float(old.abs().max()))
        for old, new in zip(before, after, strict=True)
    )


class _Exact(TorchFunctionMode):
    """Within it every operation takes bf16 for fp32, weights too, one at a time."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), settings: Any = None) -> Any:
        args, settings = tree_map(_in_fp32, (args, settings or {}))
        return function(*args, **settings)


def _in_fp32(value: Any) -> Any:
    is_bf16 = isinstance(value, Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_bf16 else value


def _padded_trial(model: Any, vocabulary_size: int, *, is_exact: bool = False) -> list[Tensor]:
    """Outputs for real tokens and gradients at their embeddings; nothing where the model fails.

    With `is_exact` the outputs alone, in fp32: gradients would need all weights in fp32 at once.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, sum(PROBES))
    ids = torch.randint(vocabulary_size, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.long)
    mask[1, PROBES[0] :] = 0
    ids[1, PROBES[0] :] = getattr(model.config, "pad_token_id", None) or 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids[:, : PROBES[0]]
    was_training = model.training
    model.eval()
    try:
        if is_exact:
            with torch.no_grad(), torch.autocast("cpu", enabled=False), _Exact():
                logits = model(**inputs).logits
            return [_of_real_tokens(logits, mask)]
        with torch.enable_grad(), _leaf_embeddings(model) as leaves:
            logits = _of_real_tokens(model(**inputs).logits.float(), mask)
            return [logits.detach(), *(grad.float() for grad in torch.autograd.grad(logits.square().sum(), leaves))]
    except _REFUSALS:
        return []
    finally:
        model.train(was_training)


def _of_real_tokens(logits: Tensor, mask_BT: Tensor) -> Tensor:
    """Outputs where the mask is 1, behind virtual tokens; all of them where they are of rows or of other tokens."""
    if logits.ndim < 3 or logits.shape[1] < mask_BT.shape[1]:
        return logits
    return logits[:, -mask_BT.shape[1] :][mask_BT.bool()]


SAME = 1e-4
"""How near fp32 numbers are, as a share, that only differ by the order of sums."""
NEAR_IN_BF16 = 0.25
"""How near bf16 gradients are, as a share of the greatest: right kernels were up to 0.1 apart, a wrong one is at 1."""
PROBES = (21, 43)
"""Tokens of the two examples of the trial: more than the convolutions of hybrid models reach."""
SPARSE = ("index_topk", "index_topk_blocks", "keep_window_size")
"""Settings of attentions that pick keys by score where a row is longer (DeepSeek 3.2, MiniMax M3, Doge)."""


def _why_not(model: Any, vocabulary_size: int) -> str:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    probes = [torch.randint(vocabulary_size, (1, length), generator=generator).to(device) for length in PROBES]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = torch.cat([model(input_ids=probe, use_cache=False).logits for probe in probes], dim=1)
        with borders(PROBES), torch.enable_grad(), _leaf_embeddings(model) as leaves:
            packed = model(input_ids=torch.cat(probes, dim=1), **packed_inputs(PROBES, device)).logits
            leaks = _leaks(packed, leaves[0])
    except _REFUSALS:
        return "the model's attention takes no borders between examples"
    finally:
        model.train(was_training)
    if leaks:
        return "examples in one row would see each other"
    tolerance = 2e-2 if alone.dtype == torch.bfloat16 else 1e-4
    limit = tolerance * float(alone.abs().max())
    is_equal = torch.allclose(alone.float(), packed.float(), rtol=tolerance, atol=limit)
    return "" if is_equal else "the model counts positions on across examples"


@contextmanager
def _leaf_embeddings(model: Any) -> Iterator[list[Tensor]]:
    """Within it the tables of embeddings give leaves that take gradients; they are gathered in the list."""
    leaves: list[Tensor] = []

    def cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # CTRL scales it in place

    readers = [model]
    if getattr(model.config, "is_encoder_decoder", False):
        readers += [model.get_encoder(), model.get_decoder()]  # BART's have tables of their own with one weight
    handles = [table.register_forward_hook(cut) for table in {reader.get_input_embeddings() for reader in readers}]
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()


def _leaks(logits_BTV: Tensor, embeddings_BTD: Tensor) -> bool:
    """Whether an example's logits have a gradient at the other's embeddings."""
    for first, last in ((0, PROBES[0]), (PROBES[0], sum(PROBES))):
        (gradient,) = torch.autograd.grad(
            logits_BTV[:, first:last].float().square().sum(), embeddings_BTD, retain_graph=True
        )
        gradient[:, first:last] = 0
        if torch.count_nonzero(gradient):
            return True
    return False


AttentionInterface.register(NAME, span_attention)
AttentionMaskInterface.register(NAME, visible_mask)
for _kernel, _name in ON_GPU.items():
    AttentionInterface.register(_name, partial(span_attention, kernel=_kernel))
    AttentionMaskInterface.register(_name, partial(visible_mask, has_blocks=_kernel == "flex"))
