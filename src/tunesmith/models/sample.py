"""Answers, token by token, with a key-value cache: many at once (`generate`) or one as it grows (`stream`).

Each sequence draws from a generator of its own, from fp32 logits, so a seed gives the same answer alone and in a
batch. Processors that a checkpoint's generation_config asks for (repetition penalties, beams) are not applied.
Legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module
from transformers import DynamicCache, EncoderDecoderCache

from tunesmith.core.errors import UserError
from tunesmith.models.anatomy import is_encoder_decoder
from tunesmith.models.configuration import context_length
from tunesmith.models.detokenize import TextStream
from tunesmith.models.ends import end_tokens
from tunesmith.models.memory import Shrinking
from tunesmith.models.virtual_tokens import embedded, is_prefix, num_virtual_tokens, prompt_config, with_virtual

BATCH_SIZE = 32
SHRINK_AT = 0.25
"""Finished sequences leave the batch when they are this share of it: copying the cache costs about a step."""
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 always takes the likeliest token."""
    top_p: float = 1.0
    seed: int = 1
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    """Taken off the logit of every token that was written already (OpenAI's definition)."""
    frequency_penalty: float = 0.0
    """Taken off once for each time it was written."""
    top_logprobs: int | None = None
    """How many alternatives are given with each token's log-probability; None gives no log-probabilities."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability before temperature and penalties, in nats, and the likeliest tokens there."""

    token_id: int
    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Generation:
    """One whole answer. `token_ids` has the end token too, where one was written; `text` has not."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    seconds: float
    """The sequence's share of its batch's time."""
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one step of `stream` adds; the text is empty while it is held back."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | Literal[""] = ""
    logprobs: tuple[TokenLogprob, ...] = ()


def generate(
    model: Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int = BATCH_SIZE,
    batches: Shrinking | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Answers to all prompts, in their order. Dropout is off meanwhile.

    Where memory runs out a batch is halved and begun again, and those after it have no more rows; `batches` remembers.

    Raises:
        UserError: A prompt is empty or leaves no room in the context, or the model's output is not a number.
    """
    room = [check_prompt(model, prompt) for prompt in prompts]
    ends = end_tokens(model, tokenizer)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    done: dict[int, Generation] = {}

    def answer(chosen: list[int]) -> dict[int, Generation]:
        rows = [_Row(tokenizer, sampling, min(sampling.max_new_tokens, room[index]), ends) for index in chosen]
        started = time.perf_counter()
        _run(model, [prompts[index] for index in chosen], rows, sampling)
        seconds = (time.perf_counter() - started) / len(chosen)
        return {index: row.generation(seconds) for index, row in zip(chosen, rows, strict=True)}

    groups = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    with _evaluating(model):
        for _, found in (batches or Shrinking()).each(groups, answer):
            done |= found
            if on_progress:
                on_progress(len(done), len(prompts))
    return [done[index] for index in range(len(prompts))]


def stream(model: Module, tokenizer: Any, prompt: Sequence[int], sampling: Sampling) -> Generator[Piece, None, None]:
    """One answer, a piece for each token; the last piece has the finish reason. Texts joined equal the whole.

    Every step computes one token and holds nothing but its own cache, so it may be closed or interleaved with others.

    Raises:
        UserError: As `generate`, at the first step.
    """
    room = check_prompt(model, prompt)
    row = _Row(tokenizer, sampling, min(sampling.max_new_tokens, room), end_tokens(model, tokenizer), streams=True)
    decoding = _Decoding(model, [prompt])
    logits = decoding.begin()
    while True:
        (token,) = choose(logits, [row], sampling)
        text = row.push(token, logits[0])
        yield Piece(text, (token,), row.finish_reason, tuple(row.logprobs[-1:]))
        if row.finish_reason:
            return
        logits = decoding.step([token])


def check_prompt(model: Any, prompt: Sequence[int]) -> int:
    """How many tokens may follow the prompt.

    Raises:
        UserError: It is empty, or leaves no room in the context.
    """
    context = context_length(model.config) - num_virtual_tokens(model)
    if not prompt:
        raise UserError("the prompt has no tokens.", code="empty_prompt", remedy="Send some text.")
    if is_encoder_decoder(model):
        if len(prompt) > context:
            raise _overflow(len(prompt), context)
        return context - 1
    if len(prompt) >= context:
        raise _overflow(len(prompt), context)
    return context - len(prompt)


@torch.inference_mode()
def choose(logits: Tensor, rows: Sequence[_Row], sampling: Sampling) -> list[int]:
    """The next token of each row, from fp32 logits [B, V].

    Raises:
        UserError: A logit is not a number.
    """
    if sampling.presence_penalty or sampling.frequency_penalty:
        logits = logits.clone()
        for index, row in enumerate(rows):
            if row.counts:
                written = torch.tensor(list(row.counts), device=logits.device)
                times = torch.tensor([row.counts[token] for token in row.counts], device=logits.device)
                logits[index, written] -= sampling.presence_penalty + sampling.frequency_penalty * times
    best, likeliest = logits.max(-1)
    if not torch.isfinite(best).all():
        raise UserError(
            "the model's output is not a number.",
            code="nan_logits",
            remedy="Its weights are damaged, or its training diverged; use an earlier version.",
        )
    if sampling.temperature == 0:
        return [int(token) for token in likeliest.tolist()]
    return _draw(logits / sampling.temperature, rows, sampling.top_p)


def _draw(logits: Tensor, rows: Sequence[_Row], top_p: float) -> list[int]:
    """Inverse of the cumulative distribution at one uniform number per row, likeliest tokens first."""
    probabilities, tokens = torch.sort(torch.softmax(logits, -1), dim=-1, descending=True, stable=True)
    below = probabilities.cumsum(-1) - probabilities
    probabilities = torch.where(below < top_p, probabilities, 0.0)
    cumulative = probabilities.cumsum(-1)
    uniform = torch.tensor([row.uniform() for row in rows], dtype=torch.float32, device=logits.device)
    places = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1  # rounding must not reach a token outside top_p
    return [int(token) for token in tokens.gather(-1, torch.minimum(places, last))[:, 0].tolist()]


@dataclass
class _Row:
    """One answer as it grows."""

    tokenizer: Any
    sampling: Sampling
    limit: int
    ends: frozenset[int]
    streams: bool = False
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    finish_reason: FinishReason | Literal[""] = ""
    text: str = ""

    def __post_init__(self) -> None:
        self._decoder = TextStream(self.tokenizer, self.sampling.stop)
        self._generator = torch.Generator().manual_seed(self.sampling.seed)

    def uniform(self) -> float:
        return float(torch.rand((), generator=self._generator))

    def push(self, token: int, logits: Tensor) -> str:
        """Take in a token; returns the text that became certain."""
        self.token_ids.append(token)
        self.counts[token] = self.counts.get(token, 0) + 1
        if self.sampling.top_logprobs is not None:
            self.logprobs.append(_logprob(self.tokenizer, logits, token, self.sampling.top_logprobs))
        if token in self.ends:
            self.finish_reason = "stop"
            return self._finish()
        text = self._decoder.push(token) if self.streams or self.sampling.stop else ""
        self.text += text
        if self._decoder.is_stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.limit:
            self.finish_reason = "length"
            return text + self._finish()
        return text

    def generation(self, seconds: float) -> Generation:
        """The whole answer."""
        assert self.finish_reason, self.token_ids
        return Generation(tuple(self.token_ids), self.text, self.finish_reason, seconds, tuple(self.logprobs))

    def _finish(self) -> str:
        if self.streams or self.sampling.stop:
            text = self._decoder.finish()
            if self._decoder.is_stopped:
                self.finish_reason = "stop"
        else:
            ids = self.token_ids[:-1] if self.finish_reason == "stop" else self.token_ids
            text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.text += text
        return text


def _run(model: Module, prompts: Sequence[Sequence[int]], rows: Sequence[_Row], sampling: Sampling) -> None:
    """Write all rows to their ends; those that finish leave the batch in groups."""
    decoding = _Decoding(model, prompts)
    active = list(rows)
    logits = decoding.begin()
    while True:
        tokens = choose(logits, active, sampling)
        for index, (row, token) in enumerate(zip(active, tokens, strict=True)):
            if not row.finish_reason:
                row.push(token, logits[index])
        open_rows = [index for index, row in enumerate(active) if not row.finish_reason]
        if not open_rows:
            return
        if len(active) - len(open_rows) >= SHRINK_AT * len(active):
            decoding.keep(open_rows)
            active = [active[index] for index in open_rows]
            tokens = [tokens[index] for index in open_rows]
        logits = decoding.step(tokens)


class _Decoding:
    """A batch inside the model: cache, masks and positions."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self._adapted = model
        self._virtual = prompt_config(model)
        self._model = model.get_base_model() if hasattr(model, "peft_config") else model
        self._accepts = set(inspect.signature(self._model.forward).parameters)
        self._prompts = prompts
        self._is_seq2seq = is_encoder_decoder(model)
        self._device = model.device
        self._cache: Any = None
        self._mask = torch.ones(0)
        self._next_position = torch.ones(0)
        self._encoded: Any = None

    @torch.inference_mode()
    def begin(self) -> Tensor:
        """Read the prompts; logits of the first new token, [B, V] in fp32."""
        width = max(len(prompt) for prompt in self._prompts)
        ids = torch.zeros(len(self._prompts), width, dtype=torch.long)
        self._mask = torch.zeros(len(self._prompts), width, dtype=torch.long)
        for index, prompt in enumerate(self._prompts):
            where = slice(0, len(prompt)) if self._is_seq2seq else slice(width - len(prompt), width)
            ids[index, where] = torch.as_tensor(prompt)
            self._mask[index, where] = 1
        ids, self._mask = ids.to(self._device), self._mask.to(self._device)
        if self._is_seq2seq:
            return self._begin_decoder(ids)
        inputs = {"input_ids": ids}
        self._cache = DynamicCache(config=self._model.config)
        if self._virtual is not None:
            self._mask = with_virtual(self._adapted, self._mask)
            if is_prefix(self._virtual):
                self._cache = self._adapted.get_prompt(len(ids))
            else:
                inputs = {"inputs_embeds": embedded(self._adapted, ids)}
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -next(iter(inputs.values())).shape[1] :]
        self._next_position = self._mask.sum(-1, keepdim=True)
        return self._forward(inputs, positions)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Logits after one more token per row, [B, V] in fp32."""
        ids = torch.tensor(tokens, device=self._device)[:, None]
        if self._is_seq2seq:
            return self._forward({"decoder_input_ids": ids}, None)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], -1)
        positions = self._next_position
        self._next_position = positions + 1
        return self._forward({"input_ids": ids}, positions)

    @torch.inference_mode()
    def keep(self, indices: Sequence[int]) -> None:
        """Go on with only these rows."""
        chosen = torch.tensor(indices, device=self._device)
        self._cache.batch_select_indices(chosen)
        self._mask = self._mask[chosen]
        if self._is_seq2seq:
            self._encoded.last_hidden_state = self._encoded.last_hidden_state[chosen]
        else:
            self._next_position = self._next_position[chosen]

    def _begin_decoder(self, ids: Tensor) -> Tensor:
        config, own = self._model.config, self._model.get_decoder().config  # their numbers of layers may differ
        inputs = {"input_ids": ids}
        self._cache = EncoderDecoderCache(DynamicCache(config=own), DynamicCache(config=own))
        if self._virtual is not None and is_prefix(self._virtual):
            self._cache = self._adapted.get_prompt(len(ids))
        elif self._virtual is not None:
            inputs = {"inputs_embeds": embedded(self._adapted, ids)}
            self._mask = with_virtual(self._adapted, self._mask)
        self._encoded = self._model.get_encoder()(**inputs, attention_mask=self._mask, return_dict=True)
        start = config.decoder_start_token_id
        assert start is not None, f"{config.model_type} does not say how its decoder starts"
        return self._forward({"decoder_input_ids": ids.new_full((len(ids), 1), start)}, None)

    def _forward(self, inputs: dict[str, Any], positions: Tensor | None) -> Tensor:
        if self._is_seq2seq:
            inputs |= {"encoder_outputs": self._encoded, "attention_mask": self._mask}
        else:
            inputs["attention_mask"] = self._mask
        if positions is not None and "position_ids" in self._accepts:
            inputs["position_ids"] = positions
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = 1
        output = self._model(**inputs, past_key_values=self._cache, use_cache=True)
        logits: Tensor = output.logits[:, -1].float()
        return logits


def _logprob(tokenizer: Any, logits: Tensor, token: int, count: int) -> TokenLogprob:
    logprobs = torch.log_softmax(logits, -1)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    top = tuple(
        TokenLogprob(other, tokenizer.decode([other]), value)
        for other, value in zip(ids.tolist(), values.tolist(), strict=True)
    )
    return TokenLogprob(token, tokenizer.decode([token]), float(logprobs[token]), top)


def _overflow(length: int, context: int) -> UserError:
    return UserError(
        f"the prompt has {length:,} tokens, which leaves no room in the model's context of {context:,}.",
        code="context_overflow",
        remedy="Shorten the prompt, or use a model with a longer context.",
    )


@contextmanager
def _evaluating(model: Module) -> Iterator[None]:
    """Dropout off; every module gets its own mode back, because methods train only parts."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
