"""The doctor sees what is there: a taken port, a folder that cannot be written, a token, a damaged store."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from tunesmith.cli.main import main
from tunesmith.core.events import Event, Finished, Started
from tunesmith.core.home import Home
from tunesmith.steps import doctor as step


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_healthy_machine_has_no_problem(tmp_path: Path) -> None:
    events: list[Event] = []
    found = step.doctor(Home(tmp_path), port=free_port(), emit=events.append)
    assert found.num_problems == 0
    names = [check.name for check in found.checks]
    assert names == ["packages", "processor", "accelerator", "memory", "disk", "server", "network", "store"]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert list(tmp_path.iterdir()) == [], "looking leaves no trace"


def test_the_processor_says_what_was_measured() -> None:
    from tunesmith.models.machine import describe

    machine = describe()
    text = step.processor().text
    assert text.startswith(f"{machine.cores} cores")
    assert machine.precision in text
    assert machine.device != "cpu" or f"{machine.ratio:.1f} times fp32" in text


def test_a_taken_port_is_a_problem_and_names_another() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        check = step.free_port(port)
    assert check.level == "problem"
    assert check.text.startswith(f"port {port} is taken")
    assert f"process {os.getpid()}" in check.text
    assert check.remedy == f"tunesmith serve NAME --port {port + 1}"


def test_a_token_is_told_of_but_not_told() -> None:
    check = step.network({"HF_TOKEN": "hf_secret"})
    assert "HF_TOKEN is set" in check.text
    assert "hf_secret" not in check.text
    assert "HF_TOKEN is not set" in step.network({}).text


def test_a_home_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / ".tunesmith").write_text("not a folder")
    assert step.store(Home(tmp_path)).level == "problem"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert step.store(Home(tmp_path)).level == "problem"


def test_a_damaged_store_is_a_problem(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.registry.mkdir()
    home.database.write_bytes(b"this is no database" * 100)
    found = step.doctor(home, port=free_port())
    assert [check.name for check in found.checks if check.level == "problem"] == ["store"]


def test_little_memory_or_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "LITTLE_DISK", 2**62)
    monkeypatch.setattr(step, "LITTLE_MEMORY", 2**62)
    assert step.disk(tmp_path / "runs").level == "warning"
    assert step.memory().level == "warning"


def test_the_command_ends_with_1_where_something_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["doctor", "--port", port, "--home", str(tmp_path)]) == 1
        out = capsys.readouterr().out
        assert f"✗ server        port {port} is taken" in out
        assert out.rstrip().endswith("1 problem")
        assert main(["doctor", "--json", "--port", port, "--home", str(tmp_path)]) == 1
        assert json.loads(capsys.readouterr().out)["problems"] == 1
