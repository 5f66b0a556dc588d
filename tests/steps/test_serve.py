"""Which model a reference means, what names it is served by, and conversations."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.events import silent
from tunesmith.core.home import Home
from tunesmith.core.publish import content_hash, publishing
from tunesmith.core.store import Store
from tunesmith.server.settings import ServerSettings
from tunesmith.steps.chat import ChatSettings, Conversation, open_conversation
from tunesmith.steps.serve import start
from tunesmith.steps.served import Served, find_source, name_models


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tunesmith.models.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("models") / "tiny-base", "llama")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home where `manual` has three versions and a champion, with a run called `run-1`."""
    home = Home(tmp_path)
    with Store.open(home) as store:
        for number in (1, 2, 3):
            assert store.reserve_number("manual") == number
            folder = home.versions("manual") / str(number)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with publishing(folder) as draft:
                (draft / "file").write_text(str(number))
            store.add_version("manual", number, content_hash=content_hash(folder), folder=folder, lineage={})
        store.move_alias("manual", "champion", 2, expected=None)
    (home.runs / "run-1").mkdir(parents=True)
    return home


def served(number: int) -> Served:
    loaded: Any = SimpleNamespace(card={})
    return Served("manual", number, loaded, created=0, _lock=threading.Lock())


@pytest.mark.parametrize(
    ("reference", "name", "number"),
    [("manual", "manual", 2), ("manual:3", "manual", 3), ("manual@champion", "manual", 2), ("run-1", "run-1", None)],
)
def test_a_reference_is_a_version_or_a_run(home: Home, reference: str, name: str, number: int | None) -> None:
    with Store.open(home) as store:
        source = find_source(home, store, reference)
    assert source.name == name
    assert (source.version.number if source.version else None) == number


def test_a_folder_is_served_under_its_own_name(home: Home, base: Path) -> None:
    with Store.open(home) as store:
        assert find_source(home, store, str(base)).name == "tiny-base"
        assert find_source(home, store, "tunesmith/base").name == "tunesmith/base"
        with pytest.raises(UserError, match=r"did you mean|there is no") as caught:
            find_source(home, store, "manuel")
    assert "manual" in caught.value.line()


def test_the_plain_name_means_the_champion_where_it_is_served(home: Home) -> None:
    with Store.open(home) as store:
        both = name_models({"manual:1": served(1), "manual": served(2)}, store)
        assert [one.names for one in both] == [("manual:1",), ("manual", "manual:2", "manual@champion")]
        others = name_models({"manual:1": served(1), "manual:3": served(3)}, store)
        assert [one.names for one in others] == [("manual:1",), ("manual", "manual:3")]


def test_an_alias_that_was_asked_for_stays_with_what_was_opened_under_it(home: Home) -> None:
    with Store.open(home) as store:
        (one,) = name_models({"manual@champion": served(1)}, store)
    assert "manual@champion" in one.names


def test_a_conversation_remembers_until_it_is_reset(home: Home, base: Path) -> None:
    settings = ChatSettings(system="be brief", max_new_tokens=4)
    conversation = open_conversation(home, str(base), settings=settings, emit=silent)
    first = conversation.answer("hello")
    assert (first.num_tokens, first.finish_reason) == (4, "length")
    conversation.answer("again")
    assert [message.role for message in conversation.messages] == ["system", *("user", "assistant") * 2]
    assert conversation.messages[2].content == first.answer
    conversation.reset()
    assert [message.content for message in conversation.messages] == ["be brief"]
    assert conversation.answer("hello").answer == first.answer


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(home: Home, base: Path) -> None:
    conversation = open_conversation(
        home, str(base), settings=ChatSettings(max_new_tokens=50, temperature=2.0, seed=3), emit=silent
    )
    pieces = conversation.ask("hello")
    seen = next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert conversation.last is not None
    assert conversation.last.finish_reason == "interrupted"
    assert conversation.messages[-1].content == seen


def test_a_conversation_that_is_too_long_says_how_to_go_on(home: Home, base: Path) -> None:
    conversation = open_conversation(home, str(base), emit=silent)
    with pytest.raises(UserError, match="context is 256") as caught:
        conversation.answer("light " * 300)
    assert "/reset" in caught.value.remedy
    assert conversation.messages == ()


def test_a_model_from_source_to_target_is_asked_without_a_template(tmp_path: Path) -> None:
    from tunesmith.models.tiny import write_tiny

    folder = write_tiny(tmp_path / "translator", "t5")
    with start(Home(tmp_path), [str(folder)], settings=ServerSettings()) as running:
        client = running.client().with_options(max_retries=0)
        text = client.completions.create(model="translator", prompt="the light", max_tokens=5, temperature=0)
        assert text.usage.completion_tokens <= 5
        with pytest.raises(Exception, match="/v1/completions"):
            client.chat.completions.create(model="translator", messages=[{"role": "user", "content": "x"}])
    conversation = open_conversation(Home(tmp_path), str(folder), settings=ChatSettings(max_new_tokens=5), emit=silent)
    assert isinstance(conversation, Conversation)
    assert conversation.answer("the light").answer == text.choices[0].text


def test_the_built_in_sized_models_are_served(shared: Path, tmp_path: Path) -> None:
    for name in ("base-6m", "stories260k"):
        folder = shared / "models" / name
        with start(Home(tmp_path), [str(folder)]) as running:
            settings: dict[str, Any] = {"model": name, "prompt": "Once upon a time", "max_tokens": 20, "seed": 2}
            client = running.client()
            whole = client.completions.create(**settings, temperature=0.8).choices[0].text
            chunks = client.completions.create(**settings, temperature=0.8, stream=True)
            assert "".join(chunk.choices[0].text for chunk in chunks) == whole
            assert len(whole.split()) > 5
