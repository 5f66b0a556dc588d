"""Predictors: answers, likelihoods and classes of a local model, and of one behind a URL."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.core.records import ChatExample, LabelExample, Message, Origin, PairExample, TextExample
from tunesmith.data.template import encode_chat, render_chat
from tunesmith.models import predict
from tunesmith.models.load import Loaded
from tunesmith.models.predict import LocalPredictor, RemotePredictor
from tunesmith.models.tiny import tiny
from tunesmith.recipe import GenerateSettings

SETTINGS = GenerateSettings(max_new_tokens=6)
QUESTIONS = ["What is it?", "How do I clean the machine before the first use?", "Why?"]


def at(line: int) -> Origin:
    return Origin("rows.jsonl", line)


def chat(question: str, answer: str = "It is clean.", line: int = 1) -> ChatExample:
    return ChatExample(messages=(Message("user", question), Message("assistant", answer)), origin=at(line))


def own(example: Any) -> Any:
    return example.prompt


def silent(done: int, total: int) -> None:
    """Progress that nobody sees."""


def local(architecture: str, task: Any = None) -> LocalPredictor:
    model, tokenizer = tiny(architecture, task)
    labels = ("no", "yes", "maybe") if model.get_output_embeddings() is None else ()
    kind = task or ("classify" if labels else "seq2seq" if model.config.is_encoder_decoder else "causal")
    return LocalPredictor(Loaded(model, tokenizer, kind, labels, architecture))


def test_answers_come_in_order_with_prompt_and_counts() -> None:
    predictor = local("llama")
    rows = [chat(question, line=line) for line, question in enumerate(QUESTIONS, 1)]
    seen: list[tuple[int, int]] = []
    outcomes = predictor.answer(rows, own, SETTINGS, lambda *now: seen.append(now))
    assert [outcome.origin for outcome in outcomes] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    assert seen == [(3, 3)]
    for row, outcome in zip(rows, outcomes, strict=True):
        assert outcome.prompt == render_chat(predictor.loaded.tokenizer, row.prompt, add_generation_prompt=True)
        assert outcome.reference == "It is clean."
        assert outcome.num_prompt_tokens == len(predictor.loaded.tokenizer(outcome.prompt).input_ids)
        assert 0 < outcome.num_answer_tokens <= 6
        assert outcome.seconds > 0
        assert outcome.finish_reason in ("stop", "length")
        assert predictor.answer([row], own, SETTINGS, silent)[0].answer == outcome.answer


def test_the_model_never_sees_the_reference() -> None:
    predictor = local("llama")
    first, second = (predictor.answer([chat("Why?", text)], own, SETTINGS, silent)[0] for text in ("a", "b"))
    assert (first.prompt, first.answer) == (second.prompt, second.answer)


def test_a_prompt_beyond_the_context_names_its_row() -> None:
    with pytest.raises(UserError) as caught:
        local("llama").answer([chat("Why? " * 200, line=7)], own, SETTINGS, silent)
    assert caught.value.where == "rows.jsonl:7"
    assert caught.value.code == "context_overflow"


def test_a_source_goes_into_the_encoder() -> None:
    predictor = local("t5")
    (outcome,) = predictor.answer([PairExample(source="a b", target="c", origin=at(1))], own, SETTINGS, silent)
    assert outcome.prompt == "a b"
    assert outcome.reference == "c"
    assert outcome.num_prompt_tokens == len(predictor.loaded.tokenizer("a b").input_ids)


def test_likelihood_scores_the_assistants_tokens_as_the_plain_formula() -> None:
    predictor = local("llama")
    rows = [chat(question, answer="x" * n, line=n) for n, question in enumerate(QUESTIONS, 1)]
    for row, outcome in zip(rows, predictor.likelihood(rows, silent), strict=True):
        encoded = encode_chat(predictor.loaded.tokenizer, row.messages, max_length=256)
        with torch.no_grad():
            logprobs = predictor.loaded.model(torch.tensor([encoded.input_ids])).logits[0].log_softmax(-1)
        expected = [
            -logprobs[place - 1, token].item()
            for place, (token, on) in enumerate(zip(encoded.input_ids, encoded.is_trained, strict=True))
            if on
        ]
        assert outcome.num_scored_tokens == len(expected)
        assert outcome.nll_nats == pytest.approx(sum(expected), rel=1e-4)


def test_likelihood_of_a_target_equals_transformers_loss() -> None:
    predictor = local("t5")
    row = PairExample(source="a b", target="c d", origin=at(1))
    (outcome,) = predictor.likelihood([row], silent)
    tokenizer = predictor.loaded.tokenizer
    labels = torch.tensor([tokenizer("c d").input_ids])
    with torch.no_grad():
        loss = predictor.loaded.model(input_ids=torch.tensor([tokenizer("a b").input_ids]), labels=labels).loss
    assert outcome.nll_nats == pytest.approx(loss.item() * labels.numel(), rel=1e-4)
    assert outcome.num_scored_tokens == labels.numel()


def test_a_long_text_is_scored_to_its_end() -> None:
    predictor = local("llama")
    text = "the machine makes coffee " * 100
    (outcome,) = predictor.likelihood([TextExample(text=text, origin=at(1))], silent)
    num_tokens = len(predictor.loaded.tokenizer(text).input_ids)
    assert num_tokens > 256
    assert outcome.num_scored_tokens == num_tokens  # all but the first, and the end token
    assert outcome.nll_nats is not None
    assert math.isfinite(outcome.nll_nats)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
def test_classes_are_the_models_in_a_batch_as_alone(architecture: str) -> None:
    predictor = local(architecture, "classify")
    rows = [
        LabelExample(text=text, label="yes", text_pair=pair, origin=at(line))
        for line, (text, pair) in enumerate([("a", ""), ("a long text about coffee", ""), ("a", "b")], 1)
    ]
    outcomes = predictor.classify(rows, silent)
    for row, outcome in zip(rows, outcomes, strict=True):
        with torch.no_grad():
            encoded = predictor.loaded.tokenizer(row.text, row.text_pair or None, return_tensors="pt")
            expected = predictor.loaded.model(**encoded).logits[0].softmax(-1).tolist()
        assert list(outcome.probabilities) == ["no", "yes", "maybe"]
        assert list(outcome.probabilities.values()) == pytest.approx(expected, abs=1e-5)
        assert outcome.probabilities[outcome.answer] == max(outcome.probabilities.values())
        assert outcome.reference == "yes"


# Behind a URL


@dataclass
class Server:
    """A real HTTP server that answers from a list of (status, body) and keeps what it was sent."""

    replies: list[tuple[int, Any]]
    requests: list[Any] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server([])
    monkeypatch.setattr(predict.time, "sleep", lambda seconds: None)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            state.requests.append((self.path, self.headers.get("authorization"), json.loads(body)))
            status, reply = state.replies.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(reply.encode() if isinstance(reply, str) else json.dumps(reply).encode())

        def log_message(self, *parts: Any) -> None:
            """Nothing on the terminal."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{running.server_address[1]}/v1"
    yield state
    running.shutdown()
    running.server_close()


GOOD = {
    "choices": [{"message": {"content": "Clean it."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 3},
}


def test_a_server_is_asked_as_openai_is(server: Server) -> None:
    server.replies = [(200, GOOD)]
    (outcome,) = RemotePredictor(server.url, "small", "secret").answer([chat("Why?")], own, SETTINGS, silent)
    path, key, body = server.requests[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body["model"] == "small"
    assert body["messages"] == [{"role": "user", "content": "Why?"}]
    assert body["max_tokens"] == 6
    assert (outcome.answer, outcome.finish_reason, outcome.reference) == ("Clean it.", "stop", "It is clean.")
    assert (outcome.num_prompt_tokens, outcome.num_answer_tokens) == (9, 3)


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.replies = [(429, {}), (503, {}), (200, GOOD)]
    (outcome,) = RemotePredictor(server.url, "small").answer([chat("Why?")], own, SETTINGS, silent)
    assert outcome.answer == "Clean it."
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("replies", "num_asked", "words"),
    [
        ([(401, {"error": "no key"})], 1, "it answered 401"),
        ([(500, {})] * 4, 4, "it answered 500"),
        ([(200, "<html>")], 1, "its answer is not JSON"),
        ([(200, {"choices": []})], 1, "no chat completion"),
    ],
)
def test_a_server_that_does_not_answer_is_an_error(
    replies: list[Any], num_asked: int, words: str, server: Server
) -> None:
    server.replies = list(replies)
    with pytest.raises(UserError) as caught:
        RemotePredictor(server.url, "small").answer([chat("Why?")], own, SETTINGS, silent)
    assert words in caught.value.message
    assert caught.value.remedy
    assert len(server.requests) == num_asked


def test_no_server_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict.time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="cannot be reached"):
        RemotePredictor("http://127.0.0.1:9/v1", "small").answer([chat("Why?")], own, SETTINGS, silent)


def test_a_url_gives_neither_likelihoods_nor_classes() -> None:
    remote = RemotePredictor("http://127.0.0.1:9/v1", "small")
    for method in (remote.likelihood, remote.classify):
        with pytest.raises(UserError) as caught:
            method([], silent)
        assert caught.value.code == "metric_unfit"
