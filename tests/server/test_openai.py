"""The server as OpenAI's own client sees it: a real uvicorn on a loopback port, tiny real models."""

from __future__ import annotations

import json
import math
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tunesmith.models.tiny import SPECIAL
from tunesmith.steps.serve import RunningServer

HELLO: list[Any] = [{"role": "user", "content": "what does the light mean"}]


def ask(client: Any, model: str = "red", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=HELLO, **more)


def drawn(client: Any, seed: int, model: str = "red") -> str:
    return str(ask(client, model, temperature=1.0, seed=seed, max_tokens=20).choices[0].message.content)


# Models


def test_models_are_listed_with_where_they_come_from(client: Any) -> None:
    found = {model.id: model for model in client.models.list()}
    assert set(found) == {"red", "red:1", "red:2", "blue", "blue:1", "tiny-base"}
    red = client.models.retrieve("red@champion")
    assert (red.id, red.object, red.owned_by) == ("red@champion", "model", "tunesmith")
    assert red.root == "red:1"
    assert red.version == 1
    assert red.parent == "tiny-base"
    assert red.created > 1_700_000_000


def test_a_model_is_chosen_by_name_alias_or_version(client: Any) -> None:
    by_name, by_alias, by_version = (ask(client, name) for name in ("red", "red@champion", "red:1"))
    assert {by_name.model, by_alias.model, by_version.model} == {"red:1"}
    texts = {answer.choices[0].message.content for answer in (by_name, by_alias, by_version)}
    assert len(texts) == 1
    assert ask(client, "red:2").choices[0].message.content not in texts


def test_an_unknown_model_names_the_nearest(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "reed")
    assert 'did you mean "red"' in caught.value.message
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


# Answers


def test_an_answer_has_every_field_of_openais(client: Any) -> None:
    answer = ask(client, max_tokens=5)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.completion_tokens <= 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer._request_id.startswith("req_")


def test_the_prompt_is_what_the_template_makes_of_it(client: Any, tiny_base: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    ids = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)
    assert ask(client, max_tokens=1).usage.prompt_tokens == len(ids)
    text = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, tokenize=False)
    plain = client.completions.create(model="red", prompt=ids, max_tokens=24, temperature=0)
    assert plain.choices[0].text == ask(client).choices[0].message.content
    assert client.completions.create(model="red", prompt=text, max_tokens=24).choices[0].text == plain.choices[0].text


def test_the_served_model_answers_as_transformers_does(client: Any, tiny_base: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    written = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    expected = tokenizer.decode(written, skip_special_tokens=True)
    assert ask(client, "tiny-base", max_tokens=12, temperature=0).choices[0].message.content == expected


def test_the_same_seed_gives_the_same_text_alone_or_among_others(client: Any) -> None:
    alone = {seed: drawn(client, seed) for seed in range(6)}
    assert len(set(alone.values())) > 1
    with ThreadPoolExecutor(12) as pool:
        among = list(pool.map(lambda seed: drawn(client, seed), [*range(6), *range(6)]))
    assert among == [alone[seed % 6] for seed in range(12)]


def test_adapters_on_one_base_do_not_mix(client: Any) -> None:
    names = ("red:1", "red:2", "blue", "tiny-base")
    alone = {name: drawn(client, 7, name) for name in names}
    assert len(set(alone.values())) == len(names)
    with ThreadPoolExecutor(16) as pool:
        among = list(pool.map(lambda name: drawn(client, 7, name), names * 4))
    assert among == [alone[name] for name in names * 4]


def test_several_choices_have_seeds_of_their_own(client: Any) -> None:
    answer = ask(client, n=3, temperature=1.0, seed=40, max_tokens=20)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [drawn(client, seed) for seed in (40, 41, 42)]


def test_a_stop_string_is_left_out_and_ends_the_answer(client: Any) -> None:
    whole = ask(client, max_tokens=24).choices[0].message.content
    stop = whole[5:8]
    cut = ask(client, max_tokens=24, stop=["never there", stop]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_the_length_limit_is_said(client: Any) -> None:
    answer = ask(client, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3
    assert ask(client, max_completion_tokens=2, max_tokens=9).usage.completion_tokens == 2


def test_an_answer_ends_where_the_context_ends(client: Any) -> None:
    prompt = list(range(10, 20)) * 25
    answer = client.completions.create(model="tiny-base", prompt=prompt, max_tokens=1000, temperature=0)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.completion_tokens <= 6


def test_logprobs_are_those_of_the_tokens(client: Any) -> None:
    choice = ask(client, logprobs=True, top_logprobs=3, max_tokens=6, temperature=0).choices[0]
    content = choice.logprobs.content
    assert "".join(token.token for token in content if token.token not in SPECIAL) == choice.message.content
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1.001
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    assert ask(client, max_tokens=2).choices[0].logprobs is None


def test_completions_have_logprobs_of_their_own_shape(client: Any) -> None:
    found = client.completions.create(model="red", prompt="the water tank", max_tokens=4, logprobs=2, temperature=0)
    logprobs = found.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 4
    assert logprobs.text_offset[0] == 0
    assert all(len(top) == 2 for top in logprobs.top_logprobs)


def test_several_prompts_are_answered_in_order(client: Any) -> None:
    prompts = ["the light", "the button"]
    found = client.completions.create(model="red", prompt=prompts, n=2, max_tokens=6, temperature=0)
    alone = [client.completions.create(model="red", prompt=one, max_tokens=6, temperature=0) for one in prompts]
    assert [choice.text for choice in found.choices] == [one.choices[0].text for one in alone for _ in range(2)]
    assert found.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)


# Streaming


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.0, "seed": 5}, {"n": 2, "seed": 5}])
def test_deltas_joined_are_the_whole_answer(client: Any, settings: dict[str, Any]) -> None:
    whole = [choice.message.content for choice in ask(client, max_tokens=24, **settings).choices]
    parts = dict.fromkeys(range(len(whole)), "")
    finishes: list[int] = []
    for chunk in ask(client, max_tokens=24, stream=True, **settings):
        (choice,) = chunk.choices
        parts[choice.index] += choice.delta.content or ""
        finishes += [choice.index] if choice.finish_reason else []
    assert list(parts.values()) == whole
    assert sorted(finishes) == list(range(len(whole)))


def test_the_stream_is_openais_byte_by_byte(server: RunningServer) -> None:
    body = {
        "model": "red",
        "messages": HELLO,
        "max_tokens": 6,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        raw = response.read().decode()
        headers = response.headers
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-request-id"].startswith("req_")
    assert raw.endswith("data: [DONE]\n\n")
    events = raw.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]].count("length") == 1
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}


def test_a_stop_string_is_never_partly_streamed(client: Any) -> None:
    whole = ask(client, max_tokens=24).choices[0].message.content
    stop = whole[4:9]
    seen = ""
    for chunk in ask(client, max_tokens=24, stream=True, stop=stop):
        seen += chunk.choices[0].delta.content or ""
        assert whole.startswith(seen)
        assert len(seen) <= whole.index(stop)
    assert seen == whole[: whole.index(stop)]


def test_streamed_logprobs_are_the_whole_answers(client: Any) -> None:
    settings: dict[str, Any] = {"max_tokens": 12, "logprobs": True, "top_logprobs": 2, "temperature": 0}
    whole = ask(client, **settings).choices[0].logprobs.content
    parts = [
        token
        for chunk in ask(client, stream=True, **settings)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.token for token in parts] == [token.token for token in whole]


def test_completions_stream_too(client: Any) -> None:
    settings: dict[str, Any] = {"model": "red", "prompt": "the light", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**settings)
    chunks = list(client.completions.create(stream=True, **settings))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


# Refusals


def test_the_client_raises_what_each_status_means(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(client, temperature=3)
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        ask(client, stream_options={"include_usage": True})
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.NotFoundError):
        client.post("/nowhere", body={}, cast_to=object)


def test_a_prompt_longer_than_the_context_is_refused_with_both_counts(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="red", messages=[{"role": "user", "content": "light " * 400}])
    assert caught.value.code == "context_length_exceeded"
    assert "context is 256" in caught.value.message
    with pytest.raises(openai.BadRequestError, match="256"):
        client.completions.create(model="red", prompt=[5] * 256)


def test_a_token_outside_the_vocabulary_is_refused(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(model="red", prompt=[5, 100_000])


def envelope(response: httpx.Response) -> dict[str, Any]:
    """The error, after its shape was checked."""
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"].startswith("req_")
    text = response.text.lower()
    assert "traceback" not in text
    assert "/src/" not in text
    assert "detail" not in text
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/chat/completion", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/metrics", 405),
    ],
)
def test_every_wrong_address_has_openais_envelope(server: RunningServer, method: str, path: str, status: int) -> None:
    response = httpx.request(method, server.url + path)
    assert response.status_code == status
    envelope(response)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"model": "red", "messages": [], "x": NaN}', "application/json", 400),
        (b'{"model": "red", "temperature": Infinity}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"model": "red", "messages": [{"role": "user", "content": "\xff"}]}', "application/json", 400),
        (b'{"model": "red", "messages": [{"role": "user", "content": "\\ud800"}]}', "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"model=red", "application/x-www-form-urlencoded", 415),
        (b'{"x": "' + b"y" * (5 * 1024 * 1024) + b'"}', "application/json", 413),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(server: RunningServer, content: bytes, kind: str, status: int) -> None:
    url = f"{server.url}/v1/chat/completions"
    response = httpx.post(url, content=content, headers={"content-type": kind})
    assert response.status_code == status
    envelope(response)


def test_a_body_of_unknown_length_is_bounded_too(server: RunningServer) -> None:
    def chunks() -> Any:
        for _ in range(6):
            yield b"x" * 1024 * 1024

    url = f"{server.url}/v1/chat/completions"
    try:
        response = httpx.post(url, content=chunks(), headers={"content-type": "application/json"})
    except httpx.WriteError:
        return  # the server closed while we were still sending
    assert response.status_code == 413
    envelope(response)


def test_a_body_that_is_no_json_echoes_nothing_long(server: RunningServer) -> None:
    body = {"model": "red", "messages": [{"role": "z" * 10_000, "content": ""}] * 30}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert len(envelope(response)["message"]) < 4000


def test_pages_of_other_origins_and_other_hosts_are_refused(server: RunningServer) -> None:
    url = f"{server.url}/v1/models"
    assert httpx.get(url, headers={"origin": "http://evil.example"}).status_code == 403
    assert httpx.get(url, headers={"host": "evil.example"}).status_code == 403
    own = httpx.get(url, headers={"origin": server.url})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "invalid_http"),
        (b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 100_000, 400, "invalid_http"),
        (b"GET /livez HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", 431, "headers_too_large"),
    ],
)
def test_what_is_no_http_has_openais_envelope_too(server: RunningServer, raw: bytes, status: int, code: str) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(raw.replace(b"HTTP/1.1\r\nx", b"HTTP/1.1\r\nhost: localhost\r\nx"))
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}")
    assert "x-request-id: req_" in head
    assert json.loads(body)["error"]["code"] == code


def test_ordinary_requests_of_openais_client_still_work_with_its_defaults(server: RunningServer) -> None:
    """The client adds headers and retries of its own."""
    assert ask(server.client(), max_tokens=2).choices[0].message.content is not None
