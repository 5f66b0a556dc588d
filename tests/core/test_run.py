"""Run folders: numbers, files, the lock, metrics that survive a torn line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.run import RunFolder, environment, now

HOLDER = """
import pathlib, sys, time
from tunesmith.core.run import RunFolder
with RunFolder(pathlib.Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


def make(root: Path, stem: str = "run") -> RunFolder:
    run = RunFolder.create(root, stem)
    run.write("recipe.yaml", "model: tunesmith/base\n")
    return run


def test_runs_are_numbered_after_the_highest(tmp_path: Path) -> None:
    assert make(tmp_path, "manual").name == "manual-1"
    assert make(tmp_path, "manual").name == "manual-2"
    (tmp_path / "manual-7").mkdir()
    (tmp_path / "manual-lora-9").mkdir()
    assert make(tmp_path, "manual").name == "manual-8"
    assert make(tmp_path, "other").name == "other-1"


@pytest.mark.parametrize("stem", ["../up", "a/b", "/abs", "..", ".hidden", "", "a\0b", "x" * 101])
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path: Path, stem: str) -> None:
    with pytest.raises(UserError) as fault:
        RunFolder.create(tmp_path / "runs", stem)
    assert fault.value.code == "bad_name"
    assert list(tmp_path.iterdir()) == []


def test_opening_what_is_no_run_names_the_nearest(tmp_path: Path) -> None:
    make(tmp_path, "manual")
    assert RunFolder.open(tmp_path / "manual-1").name == "manual-1"
    with pytest.raises(UserError) as fault:
        RunFolder.open(tmp_path / "manul-1")
    assert fault.value.code == "unknown_run"
    assert 'did you mean "manual-1"?' in fault.value.line()
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.open(tmp_path / "nowhere" / "x")


def test_the_state_is_on_disk(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert run.state == "created"
    run.set_state("failed", error="no data")
    assert RunFolder.open(run.path).state == "failed"
    assert run.read_json("state.json")["error"] == "no data"
    assert run.read_json("absent.json") is None


def test_a_torn_last_line_of_the_metrics_is_left_out(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert run.read_metrics() == []
    run.append_metrics({"step": 1, "loss": 2.5})
    run.append_metrics({"step": 2, "loss": 2.25})
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "lo')
    assert run.read_metrics() == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25}]


def test_a_resumed_run_drops_the_torn_line_and_what_it_will_log_again(tmp_path: Path) -> None:
    run = make(tmp_path)
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')  # killed here
    run.keep_metrics(2)
    run.append_metrics({"step": 3})
    assert run.read_metrics() == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_metrics_that_a_power_cut_left_unreadable_end_before_it(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.append_metrics({"step": 1, "train_loss.größe": 2.5})
    whole = run.metrics.read_bytes()
    for torn in (b'{"step": 2, "train_loss.gr\xc3', b"\0\0\0\n", b'\xff{"step": 2}\n{"step": 3}\n'):
        run.metrics.write_bytes(whole + torn)
        assert run.read_metrics() == [{"step": 1, "train_loss.größe": 2.5}]
        run.keep_metrics(1)
        assert run.metrics.read_bytes() == whole


def test_a_full_disk_is_said_of_metrics_too(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.metrics.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"the disk is full: 12 bytes are needed") as fault:
        run.append_metrics({"step": 1})
    assert fault.value.where == str(run.metrics)


def test_what_a_killed_process_left_half_written_goes_with_the_next_start(tmp_path: Path) -> None:
    run = make(tmp_path)
    for place in (run.path / ".model.tmp-0123abcd", run.checkpoints / ".step-000010.tmp-89abcdef"):
        place.mkdir()
        (place / "model.safetensors").write_bytes(b"half")
    (run.path / ".state.json.tmp-00000000").write_text("{")
    (run.path / ".notes").write_text("mine")
    with run.locked():
        assert sorted(path.name for path in run.path.iterdir()) == [".lock", ".notes", "checkpoints", "recipe.yaml"]
        assert list(run.checkpoints.iterdir()) == []


def test_metrics_refuse_what_is_not_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        make(tmp_path).append_metrics({"loss": float("inf")})


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    run = make(tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    try:
        with pytest.raises(UserError) as fault, run.locked():
            pass
        assert fault.value.code == "run_locked" and fault.value.where == str(run.path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with run.locked():
        pass


def test_the_environment_holds_versions_and_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/somebody/.venv/bin/tunesmith", "train", "r.yaml"])
    found = environment(seed=7)
    assert found["seed"] == 7 and found["command"] == ["tunesmith", "train", "r.yaml"]
    assert {"tunesmith", "torch", "transformers"} <= set(found["packages"])
    assert "somebody" not in str(found)


def test_the_time_is_utc_to_the_second() -> None:
    assert len(now()) == len("2025-01-31T12:00:00Z") and now().endswith("Z")
