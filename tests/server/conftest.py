"""A home with tiny real models, and a server on them: a base, two adapters, registered as models are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.home import Home
from tunesmith.core.publish import content_hash, publishing
from tunesmith.core.store import Store, Version
from tunesmith.server.settings import ServerSettings
from tunesmith.steps.serve import RunningServer, start

GENERATE = {"max_new_tokens": 24, "temperature": 0.0, "top_p": 1.0}
PROMPTS = ("what does the light mean", "press the button", "the water tank is empty")


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the server does."""
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama with a chat template."""
    from tunesmith.models.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("models") / "tiny-base", "llama")


@pytest.fixture(scope="session")
def register_adapter(tiny_base: Path) -> Callable[..., Version]:
    """Registers a LoRA adapter with random weights on the tiny base, with probes of what it answers."""

    def make(home: Home, name: str, seed: int, **changes: Any) -> Version:
        with Store.open(home) as store:
            number = store.reserve_number(name)
            folder = home.versions(name) / str(number)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with publishing(folder) as draft:
                write_adapter(draft / "model", tiny_base, seed)
                for file, text in changes.items():
                    (draft / "model" / file.replace("__", ".")).write_text(text)
            lineage = {"base": {"name": "tiny-base"}}
            return store.add_version(name, number, content_hash=content_hash(folder), folder=folder, lineage=lineage)

    return make


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, register_adapter: Callable[..., Version]) -> Home:
    """A home with the models `red` and `blue`; `red` has two versions, the first is its champion."""
    home = Home(tmp_path_factory.mktemp("home"))
    register_adapter(home, "red", 1)
    register_adapter(home, "red", 2)
    register_adapter(home, "blue", 3)
    with Store.open(home) as store:
        store.move_alias("red", "champion", 1, expected=None)
    return home


@pytest.fixture(scope="session")
def server(home: Home, tiny_base: Path) -> Iterator[RunningServer]:
    """A server of the base, and of the adapters on it."""
    settings = ServerSettings(keep_text=True, follow_seconds=0.1)
    with start(home, ["red", "red:2", "blue", str(tiny_base)], settings=settings) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Any:
    """OpenAI's own client; it does not try again by itself, so that a test sees the first answer."""
    return server.client().with_options(max_retries=0)


def write_adapter(folder: Path, base: Path, seed: int) -> None:
    """The model folder of a finished LoRA run."""
    import torch

    from tunesmith.core.plugins import build
    from tunesmith.core.records import ChatExample, Message, Origin
    from tunesmith.models.load import load_base, load_trained
    from tunesmith.models.parity import record
    from tunesmith.models.source import base_record
    from tunesmith.recipe import ModelSettings

    folder.mkdir(parents=True)
    settings = ModelSettings(name=str(base))
    loaded = load_base(settings, "causal", trains_base_weights=False, precision="fp32", seed=1)
    method = build("methods", {"name": "lora", "rank": 4})
    model = method.attach(loaded.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    method.save(model, folder)
    loaded.tokenizer.save_pretrained(folder)
    card = {
        "format": 1,
        "task": "causal",
        "base": base_record(str(base)),
        "method": method.spec(),
        "objective": "sft",
        "labels": [],
        "max_length": 256,
        "generate": GENERATE,
        "precision": "fp32",
    }
    (folder / "tunesmith.json").write_text(json.dumps(card))
    examples = [
        ChatExample(messages=(Message("user", text), Message("assistant", "yes")), origin=Origin("probes", line))
        for line, text in enumerate(PROMPTS, 1)
    ]
    (folder / "probes.json").write_text(json.dumps(record(load_trained(folder), examples)))
