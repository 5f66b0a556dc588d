"""Whatever answers: a model in this process, or one behind an OpenAI-compatible URL.

Everything that can be scored is a predictor, so prompting, retrieval and every fine-tuned model are compared by one
loop. A predictor sees an example's question only; the reference is copied into the outcome beside the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import httpx
import torch

from tunesmith.core.errors import UserError
from tunesmith.core.records import ChatExample, Example, LabelExample, Message, Outcome, PairExample, TextExample
from tunesmith.data.features import chat_features, pair_features, text_features
from tunesmith.data.masking import masked_features
from tunesmith.data.pack import bucket
from tunesmith.data.template import encode_prompt
from tunesmith.models.configuration import LABELLED
from tunesmith.models.heads import classify
from tunesmith.models.load import Loaded
from tunesmith.models.logprobs import Likelihood, TokenLosses
from tunesmith.models.memory import Shrinking, padded_tokens
from tunesmith.models.sample import Sampling, check_prompt, generate
from tunesmith.objectives.base import (
    IGNORED,
    Batch,
    Features,
    Layout,
    causal_batch,
    encoder_batch,
    padded,
    seq2seq_batch,
)
from tunesmith.prompting.base import Ask
from tunesmith.recipe import GenerateSettings

TOKENS_AT_ONCE = 4096
"""Tokens of one batch of a likelihood or classification pass, padding included."""
RETRIES = 3
RETRIED = {429, 500, 502, 503, 504}
OnProgress = Callable[[int, int], None]


class Predictor(Protocol):
    """Answers examples, in order; each method gives one outcome per example."""

    def answer(
        self, examples: Sequence[Any], ask: Ask, settings: GenerateSettings, on_progress: OnProgress
    ) -> list[Outcome]:
        """Generated answers to conversations or sources."""

    def likelihood(self, examples: Sequence[Any], on_progress: OnProgress) -> list[Outcome]:
        """How likely the references are, in nats."""

    def classify(self, examples: Sequence[Any], on_progress: OnProgress) -> list[Outcome]:
        """The likeliest label with the probabilities of all; a set of labels, a number, or tags, as the head gives."""


class LocalPredictor:
    """A loaded model. `seconds` of an outcome is its share of its batch's time.

    Batches for which memory runs out are halved, and so are those after them.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.answers = Shrinking()
        """Batches of answers, by rows."""
        self.passes = Shrinking()
        """Batches of single passes, by tokens."""

    @property
    def times_out_of_memory(self) -> int:
        """How often batches were halved so far."""
        return self.answers.num_halved + self.passes.num_halved

    def answer(
        self, examples: Sequence[Any], ask: Ask, settings: GenerateSettings, on_progress: OnProgress
    ) -> list[Outcome]:
        if self.loaded.task not in ("causal", "seq2seq"):
            raise _without("writes no text", self.loaded)
        tokenizer = self.loaded.tokenizer
        asked = [self._prompt(example, ask) for example in examples]
        ids = [tokens for _, tokens in asked]
        for example, tokens in zip(examples, ids, strict=True):
            _check_room(self.loaded.model, tokens, str(example.origin))
        sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p)
        generations = generate(
            self.loaded.model, tokenizer, ids, sampling, batches=self.answers, on_progress=on_progress
        )
        return [
            Outcome(
                origin=str(example.origin),
                prompt=prompt,
                answer=generation.text,
                reference=reference_of(example),
                fields=example.fields,
                num_prompt_tokens=len(tokens),
                num_answer_tokens=len(generation.token_ids),
                seconds=generation.seconds,
                finish_reason=generation.finish_reason,
            )
            for example, (prompt, tokens), generation in zip(examples, asked, generations, strict=True)
        ]

    def likelihood(self, examples: Sequence[Any], on_progress: OnProgress) -> list[Outcome]:
        if self.loaded.task in LABELLED:
            raise _without("gives classes and no likelihood of a text", self.loaded)
        losses = Likelihood(self.loaded.model, is_causal=self.loaded.task == "causal")
        pieces = [(number, piece) for number, example in enumerate(examples) for piece in self._features(example)]
        nats = [0.0] * len(examples)
        counts = [0] * len(examples)
        done = 0
        lengths = [piece.num_tokens for _, piece in pieces]

        @torch.inference_mode()
        def score(group: list[int]) -> TokenLosses:
            return losses(self._batch([pieces[place][1] for place in group]))

        groups = bucket(lengths, TOKENS_AT_ONCE)
        for group, found in self.passes.each(groups, score, cost=padded_tokens(lengths)):
            numbers = [pieces[place][0] for place in group]
            for value, row in zip(found.nats_N.tolist(), found.rows_N.tolist(), strict=True):
                nats[numbers[row]] += value
                counts[numbers[row]] += 1
            done += len(group)
            on_progress(min(done, len(examples)), len(examples))
        return [
            Outcome(
                origin=str(example.origin),
                reference=reference_of(example),
                fields=example.fields,
                nll_nats=nats[number],
                num_scored_tokens=counts[number],
            )
            for number, example in enumerate(examples)
        ]

    def classify(self, examples: Sequence[Any], on_progress: OnProgress) -> list[Outcome]:
        longest = self.loaded.card.get("max_length") or self.loaded.context
        return classify(self.loaded, examples, on_progress, max_length=longest, batches=self.passes)

    def _prompt(self, example: Any, ask: Ask) -> tuple[str, list[int]]:
        """A question as text and as tokens."""
        tokenizer = self.loaded.tokenizer
        is_seq2seq = self.loaded.task == "seq2seq"
        if is_seq2seq or isinstance(example, PairExample):
            is_pair = isinstance(example, PairExample)
            text = example.source if is_pair else "\n".join(message.content for message in ask(example))
            return text, list(tokenizer(text, add_special_tokens=is_seq2seq, verbose=False)["input_ids"])
        messages: Sequence[Message] = ask(example)
        return encode_prompt(tokenizer, messages, tools=example.tools)

    def _features(self, example: Example) -> tuple[Features, ...]:
        """What is scored of an example: all of a text, a chat's answers, a pair's target."""
        tokenizer, context = self.loaded.tokenizer, self.loaded.context
        if self.loaded.task == "seq2seq":
            return (pair_features(example, tokenizer, max_length=context),)
        if isinstance(example, ChatExample):
            return (chat_features(example, tokenizer, max_length=context),)
        if self.loaded.task == "mask":
            if not isinstance(example, TextExample):
                raise _without("guesses hidden words of plain text", self.loaded)
            longest = self.loaded.card.get("max_length") or context
            return masked_features(example.text, tokenizer, max_length=longest)
        assert isinstance(example, TextExample), type(example)
        return text_features(example.text, tokenizer, max_length=context)

    def _batch(self, features: Sequence[Features]) -> Batch:
        model, pad = self.loaded.model, self.loaded.tokenizer.pad_token_id
        if self.loaded.task == "seq2seq":
            layout = Layout(False, pad, model.config.decoder_start_token_id)
            batch = seq2seq_batch(features, layout)
        elif self.loaded.task == "mask":
            labels_BT = padded([feature.labels for feature in features], IGNORED)
            batch = encoder_batch(features, Layout(False, pad), labels_BT)
        else:
            batch = causal_batch(features, Layout(False, pad))
        return replace(batch, tensors={name: tensor.to(model.device) for name, tensor in batch.tensors.items()})


class RemotePredictor:
    """A model behind an OpenAI-compatible URL (up to `/v1`), asked for one chat completion at a time."""

    def __init__(self, base_url: str, model: str, api_key: str = "", *, timeout_seconds: float = 120.0) -> None:
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model = model
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.timeout_seconds = timeout_seconds

    def answer(
        self, examples: Sequence[Any], ask: Ask, settings: GenerateSettings, on_progress: OnProgress
    ) -> list[Outcome]:
        outcomes = []
        with httpx.Client(timeout=self.timeout_seconds, headers=self.headers) as client:
            for example in examples:
                outcomes.append(self._one(client, example, ask, settings))
                on_progress(len(outcomes), len(examples))
        return outcomes

    def likelihood(self, examples: Sequence[Any], on_progress: OnProgress) -> list[Outcome]:
        raise UserError(
            "a model behind a URL does not say how likely an answer is.",
            code="metric_unfit",
            where=self.url,
            remedy="Choose metrics of answers, such as exact_match or rouge.",
        )

    def classify(self, examples: Sequence[Any], on_progress: OnProgress) -> list[Outcome]:
        raise UserError(
            "a model behind a URL answers in words; it has no head for classes.",
            code="metric_unfit",
            where=self.url,
            remedy="Put the labels into the question, and score exact_match.",
        )

    def _one(self, client: httpx.Client, example: Any, ask: Ask, settings: GenerateSettings) -> Outcome:
        if isinstance(example, PairExample):
            messages: Sequence[Message] = (Message("user", example.source),)
        else:
            messages = ask(example)
        body = {
            "model": self.model,
            "messages": [message.to_dict() for message in messages],
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        started = time.perf_counter()
        reply = self._post(client, body)
        seconds = time.perf_counter() - started
        try:
            choice = reply["choices"][0]
            answer = choice["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            raise self._fault(f"it answered something that is no chat completion: {str(reply)[:200]}") from None
        usage = reply.get("usage") or {}
        return Outcome(
            origin=str(example.origin),
            prompt="\n".join(message.content for message in messages),
            answer=answer,
            reference=reference_of(example),
            fields=example.fields,
            num_prompt_tokens=int(usage.get("prompt_tokens") or 0),
            num_answer_tokens=int(usage.get("completion_tokens") or 0),
            seconds=seconds,
            finish_reason=choice.get("finish_reason") or "",
        )

    def _post(self, client: httpx.Client, body: Mapping[str, Any]) -> dict[str, Any]:
        for attempt in range(RETRIES + 1):
            try:
                response = client.post(self.url, json=body)
            except httpx.HTTPError as fault:
                if attempt == RETRIES:
                    raise self._fault(f"it cannot be reached ({fault})") from None
                time.sleep(2**attempt / 2)
                continue
            if response.status_code in RETRIED and attempt < RETRIES:
                time.sleep(_wait(response, attempt))
                continue
            if response.is_error:
                raise self._fault(f"it answered {response.status_code}: {response.text[:200]}")
            try:
                reply: dict[str, Any] = response.json()
            except ValueError:
                raise self._fault("its answer is not JSON") from None
            return reply
        raise AssertionError("the last attempt returns or raises")

    def _fault(self, what: str) -> UserError:
        return UserError(
            f"the server gave no answer: {what}.",
            code="no_answer",
            where=self.url,
            remedy="Check the address (up to /v1), the model's name and the key.",
        )


def reference_of(example: Example) -> str:
    """The answer that the row has."""
    if isinstance(example, ChatExample):
        return example.answer
    if isinstance(example, PairExample):
        return example.target
    return example.label if isinstance(example, LabelExample) else ""


def _without(what: str, loaded: Loaded) -> UserError:
    return UserError(
        f"this model {what}.",
        code="wrong_task",
        where=loaded.name,
        remedy="Score it with metrics and rows that fit, or choose another model.",
    )


def _check_room(model: Any, prompt_ids: Sequence[int], where: str) -> None:
    try:
        check_prompt(model, prompt_ids)
    except UserError as fault:
        raise UserError(fault.message, code=fault.code, where=where, remedy=fault.remedy) from None


def _wait(response: httpx.Response, attempt: int) -> float:
    """Seconds until the next attempt: what the server asks for, at most 30."""
    try:
        return min(30.0, float(str(response.headers["retry-after"])))
    except (KeyError, ValueError):
        return 0.5 * 2.0**attempt
