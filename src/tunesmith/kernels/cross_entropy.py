"""Cross-entropy of hidden states against a vocabulary without holding [positions x vocabulary].

Positions go through the head in chunks. Where the head is frozen the gradient of the hidden states is made in the
forward pass (two products); where it trains, the chunks are computed again in the backward pass.
Legend: N labelled positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Size of one chunk of fp32 logits."""


def chunked_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, bias_V: Tensor | None = None
) -> Tensor:
    """The negative log-likelihood of each label in nats, fp32, [N].

    Products run in the dtype of `hidden_ND`; softmax and sums in fp32.
    """
    losses: Tensor = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, bias_V, labels_N)  # type: ignore[no-untyped-call]
    return losses


def reference_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, bias_V: Tensor | None = None
) -> Tensor:
    """The same with all logits at once, [N]."""
    logits = F.linear(hidden_ND, weight_VD.to(hidden_ND.dtype), None if bias_V is None else bias_V.to(hidden_ND.dtype))
    return F.cross_entropy(logits.float(), labels_N, reduction="none")


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor) -> Tensor:
        weight = weight_VD.to(hidden_ND.dtype)
        trains_head = weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad)
        wants_hidden = hidden_ND.requires_grad and not trains_head
        losses = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
        gradient = torch.empty_like(hidden_ND) if wants_hidden else None
        for part in _chunks(len(labels_N), weight.shape[0]):
            logits = _logits(hidden_ND[part], weight, bias_V)
            losses[part] = _losses_and_probabilities(logits, labels_N[part])
            if gradient is not None:
                gradient[part] = _errors(logits, labels_N[part]).to(weight.dtype) @ weight
        ctx.trains_head = trains_head
        if trains_head:
            ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N)
        else:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (upstream_N,) = grad_outputs
        if not ctx.trains_head:
            (gradient,) = ctx.saved_tensors
            return (None if gradient is None else gradient * upstream_N[:, None].to(gradient.dtype)), None, None, None
        hidden_ND, weight_VD, bias_V, labels_N = ctx.saved_tensors
        weight = weight_VD.to(hidden_ND.dtype)
        grad_hidden = torch.empty_like(hidden_ND)
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
        grad_bias = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for part in _chunks(len(labels_N), weight.shape[0]):
            logits = _logits(hidden_ND[part], weight, bias_V)
            _losses_and_probabilities(logits, labels_N[part])
            errors = _errors(logits, labels_N[part]).mul_(upstream_N[part, None])
            low = errors.to(weight.dtype)
            grad_hidden[part] = low @ weight
            grad_weight += low.T @ hidden_ND[part]
            if grad_bias is not None:
                grad_bias += errors.sum(0)
        return (
            grad_hidden if ctx.needs_input_grad[0] else None,
            grad_weight.to(weight_VD.dtype) if ctx.needs_input_grad[1] else None,
            grad_bias.to(bias_V.dtype) if grad_bias is not None and ctx.needs_input_grad[2] else None,
            None,
        )


def _chunks(num_positions: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    return [slice(start, min(start + size, num_positions)) for start in range(0, num_positions, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(hidden, weight, None if bias is None else bias.to(hidden.dtype)).float()


def _losses_and_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] of each row; `logits` become the probabilities, in place: one sweep of exp."""
    chosen = logits.gather(1, labels[:, None])
    largest = logits.amax(1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(1, keepdim=True)
    logits.div_(total)
    return (total.log_() + largest - chosen).squeeze(1)


def _errors(probabilities: Tensor, labels: Tensor) -> Tensor:
    """softmax(logits) - one_hot(labels), in place of the probabilities."""
    probabilities[torch.arange(len(labels), device=labels.device), labels] -= 1
    return probabilities
