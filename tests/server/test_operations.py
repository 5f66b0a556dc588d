"""Health, metrics, feedback, clients that leave, full queues, and models that are refused or moved."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Warning
from tunesmith.core.home import Home
from tunesmith.core.store import Store, Version
from tunesmith.server.settings import ServerSettings
from tunesmith.steps.serve import RunningServer, start

HELLO: list[Any] = [{"role": "user", "content": "what does the light mean"}]
LONG = {"model": "red", "messages": HELLO, "max_tokens": 200, "temperature": 2, "seed": 3, "n": 8}
"""Sixteen hundred tokens or less: long enough to look at."""


def ask(client: Any, model: str = "red", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=HELLO, **more)


def samples(url: str) -> dict[str, float]:
    """Every sample of /metrics as `name{labels}`."""
    text = httpx.get(f"{url}/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(one.labels.items()))
            found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return found


def until(claim: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.01)


# Health and metrics


def test_a_server_that_is_well_says_so(server: RunningServer) -> None:
    assert httpx.get(f"{server.url}/livez").json() == {"status": "alive"}
    ready = httpx.get(f"{server.url}/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


def test_every_promised_metric_is_there(server: RunningServer, client: Any) -> None:
    ask(client, max_tokens=4)
    families = {
        family.name: family.type for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    }
    expected = {
        **dict.fromkeys(("num_requests_running", "num_requests_waiting", "adapters_loaded"), "gauge"),
        **dict.fromkeys(
            (
                "requests",
                "admission_rejections",
                "prompt_tokens",
                "generation_tokens",
                "adapter_requests",
                "nan_logits",
                "feedback",
            ),
            "counter",
        ),
        **dict.fromkeys(
            (
                "time_to_first_token_seconds",
                "inter_token_latency_seconds",
                "e2e_request_latency_seconds",
                "request_queue_time_seconds",
                "request_prompt_tokens",
                "request_generation_tokens",
            ),
            "histogram",
        ),
    }
    assert {f"tunesmith_{name}": kind for name, kind in expected.items()}.items() <= families.items()
    assert {"process_cpu_seconds", "process_resident_memory_bytes"} <= set(families)


def test_metrics_count_what_happened(server: RunningServer, client: Any) -> None:
    before = samples(server.url)
    answer = ask(client, "blue", max_tokens=4)
    httpx.get(f"{server.url}/no/such/{time.time()}")
    after = samples(server.url)

    def gained(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    finish = answer.choices[0].finish_reason
    assert gained(f"tunesmith_requests_total{{endpoint=/v1/chat/completions,finish_reason={finish},status=200}}") == 1
    assert gained("tunesmith_requests_total{endpoint=other,finish_reason=,status=404}") == 1
    assert gained("tunesmith_prompt_tokens_total") == answer.usage.prompt_tokens
    assert gained("tunesmith_generation_tokens_total") == answer.usage.completion_tokens
    assert gained("tunesmith_adapter_requests_total{adapter=blue:1}") == 1
    assert gained("tunesmith_time_to_first_token_seconds_count") == 1
    assert gained("tunesmith_inter_token_latency_seconds_count") == answer.usage.completion_tokens - 1
    assert gained("tunesmith_e2e_request_latency_seconds_count") == 1
    assert gained("tunesmith_request_queue_time_seconds_count") == 1
    assert after["tunesmith_adapters_loaded"] == 3
    assert after["tunesmith_num_requests_running"] == 0
    assert after["process_resident_memory_bytes"] > 1e7


# Feedback


def give(server: RunningServer, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/feedback", json=body)


def test_a_judgement_is_kept_and_given_again_it_replaces_the_first(
    server: RunningServer, client: Any, home: Home
) -> None:
    answer = ask(client, max_tokens=8)
    first = give(server, request_id=answer.id, value=False, rater="ann")
    assert first.status_code == 200
    assert first.json()["request_id"] == answer.id
    again = give(server, request_id=answer._request_id, value=True, correction="It is on.", rater="ann")
    assert again.status_code == 200
    give(server, request_id=answer.id, value=3.5, name="stars", rater="ann")
    with Store.open(home) as store:
        mine = [pair for pair in store.feedback("red") if answer.id.endswith(pair[1].id)]
    assert sorted((row.name, row.value, row.correction) for row, _ in mine) == [
        ("stars", 3.5, ""),
        ("thumbs", True, "It is on."),
    ]
    request = mine[0][1]
    assert (request.model, request.version, request.endpoint) == ("red", 1, "/v1/chat/completions")
    assert request.num_answer_tokens == answer.usage.completion_tokens
    assert request.messages == ({"role": "user", "content": HELLO[0]["content"]},)
    assert request.answers == (answer.choices[0].message.content,)


def test_a_streamed_answer_can_be_judged_as_soon_as_it_ends(server: RunningServer, client: Any) -> None:
    chunks = list(ask(client, max_tokens=4, stream=True))
    assert give(server, request_id=chunks[0].id, value=True).status_code == 200


def test_feedback_on_nothing_is_404_and_on_no_choice_400(server: RunningServer, client: Any) -> None:
    response = give(server, request_id="chatcmpl-nothing", value=True)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_request"
    answer = ask(client, max_tokens=1)
    response = give(server, request_id=answer.id, choice=5, value=True)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "choice"
    assert give(server, request_id=answer.id).status_code == 400


def test_feedback_is_counted_under_bounded_labels(server: RunningServer, client: Any) -> None:
    answer = ask(client, max_tokens=1)
    before = samples(server.url)
    give(server, request_id=answer.id, value=False)
    give(server, request_id=answer.id, name="made-up", value="anything")
    after = samples(server.url)
    for labels in ("name=thumbs,value=down", "name=other,value=other"):
        key = f"tunesmith_feedback_total{{{labels}}}"
        assert after[key] - before.get(key, 0) == 1


def test_text_is_not_kept_unless_it_was_turned_on(home: Home, tiny_base: Path) -> None:
    with start(home, ["blue"]) as running:
        answer = running.client().chat.completions.create(model="blue", messages=HELLO, max_tokens=3)
    with Store.open(home) as store:
        row = store.request(answer.id.removeprefix("chatcmpl-"))
    assert (row.messages, row.answers) == (None, None)
    assert row.num_answer_tokens == answer.usage.completion_tokens


# Limits


@pytest.fixture
def narrow(home: Home) -> Any:
    """A server with one request's room and a queue of one."""
    settings = ServerSettings(max_running=8, max_waiting=1, keep_alive_seconds=0.2, drain_seconds=0.1)
    with start(home, ["red"], settings=settings) as running:
        yield running


def test_a_client_that_leaves_frees_its_place(narrow: RunningServer) -> None:
    with httpx.stream("POST", f"{narrow.url}/v1/chat/completions", json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        assert samples(narrow.url)["tunesmith_num_requests_running"] == 1
    until(lambda: samples(narrow.url)["tunesmith_num_requests_running"] == 0)
    key = "tunesmith_requests_total{endpoint=/v1/chat/completions,finish_reason=abort,status=200}"
    until(lambda: samples(narrow.url).get(key) == 1)
    assert samples(narrow.url)["tunesmith_generation_tokens_total"] < 200


def test_a_client_that_leaves_without_streaming_frees_its_place_too(narrow: RunningServer) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{narrow.url}/v1/chat/completions", json=LONG, timeout=0.2)
    until(lambda: samples(narrow.url)["tunesmith_num_requests_running"] == 0, seconds=2)
    assert samples(narrow.url)["tunesmith_generation_tokens_total"] < 8 * 200


def occupy(url: str, **more: Any) -> None:
    """One request that runs, and one that waits."""
    for gauge in ("running", "waiting"):
        settings = {"json": LONG | more, "timeout": 60}
        threading.Thread(target=httpx.post, args=(f"{url}/v1/chat/completions",), kwargs=settings, daemon=True).start()
        until(lambda gauge=gauge: samples(url)[f"tunesmith_num_requests_{gauge}"] == 1)  # type: ignore[misc]


def test_a_full_queue_is_503_with_when_to_come_back(narrow: RunningServer) -> None:
    occupy(narrow.url)
    refused = httpx.post(f"{narrow.url}/v1/chat/completions", json=LONG)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    assert "x-should-retry" not in refused.headers
    assert samples(narrow.url)["tunesmith_admission_rejections_total{reason=queue_full}"] == 1


def test_the_client_waits_and_tries_again_by_itself(narrow: RunningServer) -> None:
    occupy(narrow.url, max_tokens=40)
    client = narrow.client().with_options(max_retries=20)
    answer = client.chat.completions.create(model="red", messages=HELLO, max_tokens=2)
    assert answer.usage.completion_tokens == 2


# Which models are served


def test_a_changed_adapter_is_refused(tmp_path: Path, register_adapter: Callable[..., Version]) -> None:
    version = register_adapter(Home(tmp_path), "red", 1)
    file = version.model / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError) as caught:
        start(Home(tmp_path), ["red"])
    assert caught.value.code == "damaged"
    assert "adapter_model.safetensors" in caught.value.message


@pytest.mark.parametrize("stage", ["prompt", "logits", "text"])
def test_a_model_that_answers_otherwise_than_it_was_trained_to_is_refused(
    tmp_path: Path, register_adapter: Callable[..., Version], stage: str
) -> None:
    first = register_adapter(Home(tmp_path), "red", 1)
    probes = json.loads((first.model / "probes.json").read_text())
    spoil(probes["probes"][1], stage)
    register_adapter(Home(tmp_path), "red", 1, probes__json=json.dumps(probes))
    with pytest.raises(UserError) as caught:
        start(Home(tmp_path), ["red:2"])
    error = caught.value
    assert (error.code, error.where) == ("parity", "red:2")
    assert f"differs in the {stage}: probe 2" in error.message
    with start(Home(tmp_path), ["red:1"]) as running:
        assert "red:1" in running.models


def test_a_version_without_probes_is_refused(tmp_path: Path, register_adapter: Callable[..., Version]) -> None:
    register_adapter(Home(tmp_path), "red", 1, probes__json="{}")
    with pytest.raises(UserError):
        start(Home(tmp_path), ["red"])


def test_a_wrong_name_is_said_before_anything_is_loaded(home: Home) -> None:
    with pytest.raises(UserError, match="there is no") as caught:
        start(home, ["rde"])
    assert "red" in caught.value.remedy
    with pytest.raises(UserError, match='no version "red:9"'):
        start(home, ["red:9"])


def test_a_classifier_is_not_served(tmp_path: Path) -> None:
    from tunesmith.models.tiny import write_tiny

    folder = write_tiny(tmp_path / "classifier", "bert")
    with pytest.raises(UserError, match="classifier"):
        start(Home(tmp_path), [str(folder)])


def test_a_model_without_probes_is_served_with_a_warning(tmp_path: Path, tiny_base: Path) -> None:
    heard: list[Event] = []
    with start(Home(tmp_path), [str(tiny_base)], emit=heard.append):
        pass
    assert "no_probes" in [event.code for event in heard if isinstance(event, Warning)]


def test_two_different_models_of_one_name_are_refused(tmp_path: Path) -> None:
    from tunesmith.models.tiny import write_tiny

    folders = [write_tiny(tmp_path / place / "twin", "llama", seed=seed) for seed, place in enumerate("ab")]
    with pytest.raises(UserError, match='both be called "twin"'):
        start(Home(tmp_path), [str(folder) for folder in folders])


def test_a_port_in_use_is_said_with_the_remedy(server: RunningServer, home: Home) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(UserError) as caught:
        start(home, ["red"], port=port)
    assert caught.value.code == "port_in_use"
    assert f"port {port} is taken" in caught.value.message
    assert f"--port {port + 1}" in caught.value.remedy


def test_adapters_share_the_tensors_of_their_base(home: Home) -> None:
    from tunesmith.models.sharing import SharedBases

    with Store.open(home) as store:
        folders = [store.version(reference).model for reference in ("red:1", "red:2", "blue:1")]
    bases = SharedBases()
    models = [bases.load(folder).model for folder in folders]
    places = [
        {parameter.data_ptr() for name, parameter in model.named_parameters() if "lora" not in name} for model in models
    ]
    assert places[0] == places[1] == places[2]
    assert len({model.get_base_model() for model in models}) == 3


def test_a_moved_alias_is_followed_and_rolled_back(tmp_path: Path, register_adapter: Callable[..., Version]) -> None:
    home = Home(tmp_path)
    for seed in (1, 2):
        register_adapter(home, "red", seed)
    with Store.open(home) as store:
        store.move_alias("red", "champion", 1, expected=None)
        with start(home, ["red"], settings=ServerSettings(follow_seconds=0.05)) as running:
            client = running.client()
            first = ask(client).choices[0].message.content
            for before, after in ((1, 2), (2, 1)):
                store.move_alias("red", "champion", after, expected=before)
                until(lambda after=after: ask(client, max_tokens=1).model == f"red:{after}")  # type: ignore[misc]
            assert ask(client, "red@champion").choices[0].message.content == first


def test_a_new_champion_that_cannot_be_served_leaves_the_old_one(
    tmp_path: Path, register_adapter: Callable[..., Version]
) -> None:
    home, heard = Home(tmp_path), []
    register_adapter(home, "red", 1)
    second = register_adapter(home, "red", 2)
    (second.model / "adapter_model.safetensors").write_bytes(b"no")
    with Store.open(home) as store:
        store.move_alias("red", "champion", 1, expected=None)
        settings = ServerSettings(follow_seconds=0.05)
        with start(home, ["red@champion"], settings=settings, emit=heard.append) as running:
            store.move_alias("red", "champion", 2, expected=1)
            until(lambda: any(isinstance(event, Warning) and event.code == "damaged" for event in heard))
            assert ask(running.client(), "red@champion", max_tokens=1).model == "red:1"


# The end


def test_a_stopped_server_finishes_what_is_in_flight(home: Home) -> None:
    running = start(home, ["red"], settings=ServerSettings(drain_seconds=200.0))  # whatever else the machine does
    client = running.client().with_options(max_retries=0)
    stream = client.chat.completions.create(**LONG, stream=True)
    chunks = [next(stream)]
    stopping = threading.Thread(target=running.stop)
    stopping.start()
    until(lambda: httpx.get(f"{running.url}/readyz").status_code == 503)
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, max_tokens=1)
    assert caught.value.status_code == 503
    chunks += list(stream)
    stopping.join()
    assert chunks[-1].choices[0].finish_reason is not None
    with pytest.raises(openai.APIConnectionError):
        ask(client, max_tokens=1)


def test_what_does_not_finish_in_time_ends_with_an_error(home: Home) -> None:
    running = start(home, ["red"], settings=ServerSettings(drain_seconds=0.1))
    client = running.client().with_options(max_retries=0)
    stream = client.chat.completions.create(**LONG, stream=True)
    next(stream)
    stopping = threading.Thread(target=running.stop)
    stopping.start()
    with pytest.raises(openai.APIError, match="shutting down"):
        for _ in stream:
            pass
    stopping.join()


def spoil(probe: dict[str, Any], stage: str) -> None:
    """Record a probe otherwise at one stage, as a model that was changed since would have."""
    if stage == "prompt":
        probe["prompt"] += "!"
    elif stage == "logits":
        probe["logits"] = {token: value + 5 for token, value in probe["logits"].items()}
    else:
        probe["answer"] += " and more"
