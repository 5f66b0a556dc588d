"""Where copies for checkpoints and states of frozen blocks have room: a container's limit counts."""

from __future__ import annotations

import threading

import pytest

from made_training import make_loop
from tunesmith.methods.full import Full
from tunesmith.methods.last_k import LastK
from tunesmith.models import memory
from tunesmith.training.background import snapshot_bytes


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A control group whose limit in bytes can be set."""
    limit, use = tmp_path / "memory.max", tmp_path / "memory.current"
    use.write_text("0")
    monkeypatch.setattr(memory, "_CGROUPS", ((limit, use),))
    return limit.write_text


def test_checkpoints_are_written_beside_training_only_where_the_container_has_room(container, tmp_path, monkeypatch):
    loop = make_loop(tmp_path / "run", Full(), "llama", "clm")
    loop.fit(lambda step: None)
    needed = snapshot_bytes(loop.tensors, loop.optimizer)
    started, start = [], threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(start(thread)))
    for limit, number in ((2 * needed - 2, 0), (2 * needed, 1)):
        container(str(limit))
        with loop._writer() as writer:
            writer.save(loop.state)
        assert len(started) == number, limit


def test_frozen_states_go_to_disk_where_the_container_has_no_room(container, tmp_path):
    settings = {"steps": 8, "tokens_per_step": 64}
    needed = make_loop(tmp_path / "roomy", LastK(k=1), "llama", "clm", **settings).frozen.num_bytes
    container(str(4 * needed - 1))
    tight = make_loop(tmp_path / "tight", LastK(k=1), "llama", "clm", recompute="none", **settings)
    assert tight.frozen.place == "disk"
