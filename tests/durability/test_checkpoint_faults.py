"""Checkpoints on failing disks and with failing numbers: named, the one before is used, nothing is said to be saved."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.core.errors import UserError
from tunesmith.core.publish import publishing, verify
from tunesmith.training.background import CheckpointWriter, snapshot_bytes
from tunesmith.training.checkpoint import Snapshot, TrainingState, load_best, load_checkpoint, save_checkpoint
from tunesmith.training.tensor_file import write_tensors

IDENTITY = {"seed": 1}


class Run:
    """Two tensors under AdamW, as a loop has them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.tensors = {"w": torch.nn.Parameter(torch.randn(3, 2)), "b": torch.nn.Parameter(torch.zeros(2))}
        self.optimizer = torch.optim.AdamW(self.tensors.values(), lr=0.1, fused=True)
        self.state = TrainingState()
        self.damage: list[str] = []

    def step(self, *, is_best: bool = False) -> None:
        for tensor in self.tensors.values():
            tensor.grad = torch.randn(tensor.shape)
        self.optimizer.step()
        self.state.step += 1
        if is_best:
            self.state.best_step, self.state.best_loss = self.state.step, 1.0

    def save(self, folder: Path, num_kept: int = 2) -> Path:
        snapshot = Snapshot.take(self.state, self.tensors, self.optimizer)
        return save_checkpoint(folder, snapshot, identity=IDENTITY, num_kept=num_kept)

    def load(self, folder: Path) -> int:
        def on_damage(fault: UserError) -> None:
            self.damage.append(fault.line())

        self.state = load_checkpoint(
            folder, tensors=self.tensors, optimizer=self.optimizer, identity=IDENTITY, on_damage=on_damage
        )
        return self.state.step

    def writer(self, folder: Path, **settings: Any) -> CheckpointWriter:
        values = {"identity": IDENTITY, "num_kept": 2, "has_best": True, **settings}
        return CheckpointWriter(folder, tensors=self.tensors, optimizer=self.optimizer, **values)


def _saved(folder: Path, *steps: int, num_kept: int = 2) -> Run:
    run = Run()
    for number in range(1, max(steps) + 1):
        run.step(is_best=number == min(steps))
        if number in steps:
            run.save(folder, num_kept)
    return run


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- files ------------------------------------------------------------------------------------------


def test_tensors_of_every_type_come_back_and_the_sum_is_the_files(tmp_path: Path) -> None:
    types = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8]
    tensors = {str(kind): (torch.arange(7) % 5).to(kind) for kind in [*types, torch.bool, torch.float8_e4m3fn]}
    tensors |= {"ä scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3), "matrix": torch.randn(5, 3)}
    total = write_tensors(tmp_path / "x", tensors)
    assert total == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    back = load_file(tmp_path / "x")
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert back[name].view(torch.uint8).equal(tensor.view(torch.uint8)) if tensor.ndim else back[name] == tensor
    write_tensors(tmp_path / "none", {})
    assert load_file(tmp_path / "none") == {}


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_never_saved(tmp_path: Path, kind: torch.dtype, value: float) -> None:
    run = _saved(tmp_path, 1)
    before = (tmp_path / "step-000001" / "manifest.json").read_bytes()
    run.step()
    run.optimizer.state[run.tensors["b"]]["exp_avg"] = torch.tensor([1.0, value], dtype=kind)
    with pytest.raises(UserError, match='"exp_avg:b" holds numbers that are not finite') as caught:
        run.save(tmp_path)
    assert caught.value.code == "not_finite"
    assert _names(tmp_path) == ["best-000001", "step-000001"]
    assert (tmp_path / "step-000001" / "manifest.json").read_bytes() == before


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def _add_pickle(path: Path) -> None:
    (path.parent / "weights.pt").write_bytes(b"\x80\x04.")


def _publish_pickle(path: Path) -> None:
    """With a manifest that fits, as an attacker would."""
    copy = path.parent.with_name("copy")
    with publishing(copy) as draft:
        for one in path.parent.iterdir():
            if one.name != "manifest.json":
                shutil.copyfile(one, draft / one.name)
        (draft / "weights.pkl").write_bytes(b"\x80\x04.")
    shutil.rmtree(path.parent)
    copy.rename(path.parent)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (_truncate, "optimizer.safetensors has"),
        (_flip, "contents of optimizer.safetensors"),
        (Path.unlink, "optimizer.safetensors is missing"),
        (_add_pickle, "weights.pt is not in its manifest"),
        (_publish_pickle, "weights.pkl is a pickle"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, harm: Any, named: str) -> None:
    _saved(tmp_path, 2, 3)
    harm(tmp_path / "step-000003" / "optimizer.safetensors")
    run = Run()
    assert run.load(tmp_path) == 2
    assert len(run.damage) == 1 and "step-000003" in run.damage[0] and named in run.damage[0]


def test_rotation_never_deletes_the_newest_valid_one_for_a_damaged_later_one(tmp_path: Path) -> None:
    _saved(tmp_path, 2, 3, num_kept=2)
    _flip(tmp_path / "step-000003" / "model.safetensors")
    run = Run()
    assert run.load(tmp_path) == 2
    shutil.copytree(tmp_path / "step-000003", tmp_path / "step-000009")  # damaged, and later than all to come
    run.step()
    newest = run.save(tmp_path, num_kept=1)
    assert newest.name == "step-000003" and verify(newest)
    assert _names(tmp_path) == ["best-000002", "step-000003"]


def test_a_best_is_kept_as_long_as_a_checkpoint_counts_on_it(tmp_path: Path) -> None:
    run = Run()
    for number in range(1, 5):
        run.step(is_best=number in (1, 3))
        run.save(tmp_path)
    assert _names(tmp_path) == ["best-000003", "step-000003", "step-000004"]
    weights = [tmp_path / name / "model.safetensors" for name in ("best-000003", "step-000003")]
    assert weights[0].samefile(weights[1]), "one file on disk"
    best = {name: tensor.detach().clone() for name, tensor in run.tensors.items()}
    load_best(tmp_path, 3, run.tensors)
    assert any(not torch.equal(tensor, best[name]) for name, tensor in run.tensors.items())


def test_a_best_that_is_lost_is_said_and_looked_for_again(tmp_path: Path) -> None:
    _saved(tmp_path, 1, 2)
    _flip(tmp_path / "best-000001" / "model.safetensors")
    run = Run()
    assert run.load(tmp_path) == 2
    assert "best-000001" in run.damage[0]
    assert (run.state.best_step, run.state.best_loss) == (0, float("inf"))


@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("fatal", range(1, 16, 3))
def test_a_disk_that_fails_is_never_said_to_have_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fatal: int, fault: int
) -> None:
    run = _saved(tmp_path, 1)
    run.step(is_best=True)
    calls, honest = 0, os.fsync

    def broken(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= fatal:
            raise OSError(fault, os.strerror(fault))
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UserError) as caught, run.writer(tmp_path, snapshot="on") as writer:
        writer.save(run.state)
    assert writer.poll() == []
    assert caught.value.code == {errno.EIO: "cannot_write", errno.ENOSPC: "disk_full"}[fault]
    assert not [name for name in _names(tmp_path) if name.startswith(".")]
    monkeypatch.undo()
    again = Run()
    assert again.load(tmp_path) in (1, 2) and not again.damage


FULL = """
import pathlib, sys, torch
sys.path.insert(0, sys.argv[2])
from durability.test_checkpoint_faults import Run
from tunesmith.core.errors import UserError
root = pathlib.Path(sys.argv[1]) / "checkpoints"
run = Run()
run.step(); run.save(root)
run.tensors["large"] = torch.nn.Parameter(torch.randn(200, 500))
try:
    run.state.step += 1
    run.save(root)
except UserError as fault:
    print(fault.line())
del run.tensors["large"]
print(run.load(root), run.damage, sorted(path.name for path in root.iterdir()))
"""


def test_a_full_disk_names_place_needed_and_free_bytes_and_leaves_the_one_before(tmp_path: Path) -> None:
    mount, unshare = shutil.which("mount"), shutil.which("unshare")
    if os.geteuid() != 0 or not mount or not unshare:
        pytest.skip("mounting a small tmpfs needs root")
    shell = (
        f'mount -t tmpfs -o size=200k none {tmp_path} && exec "$0" -c "$1" {tmp_path} {Path(__file__).parent.parent}'
    )
    words = [unshare, "--mount", "sh", "-c", shell, sys.executable, FULL]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "mount" in done.stderr and "denied" in done.stderr:
        pytest.skip("mounting is not allowed here")
    error, rest = done.stdout.splitlines()
    assert error.startswith(f"{tmp_path}/checkpoints/step-000002: the disk is full: 400,") and "[disk_full]" in error
    assert " bytes are needed and " in error and " are free." in error
    assert rest == "1 [] ['step-000001']"


# --- the optimiser ----------------------------------------------------------------------------------


def test_states_of_any_type_come_back_as_they_were(tmp_path: Path) -> None:
    """Bytes as bytes, fp32 moments of bf16 weights as fp32, plain counts as plain counts."""
    weights = {"w": torch.nn.Parameter(torch.randn(4, 4).bfloat16())}
    kept = {
        "codes": torch.arange(16, dtype=torch.uint8),
        "mean": torch.randn(4, 4),
        "step": torch.tensor(7.0),
        "count": 3,
        "scale": 0.1,
        "name": "x",
        "none": None,
    }
    optimizer = torch.optim.SGD(weights.values(), lr=0.1)
    optimizer.state[weights["w"]].update(kept)
    state = TrainingState(step=1)
    save_checkpoint(tmp_path, Snapshot.take(state, weights, optimizer), identity=IDENTITY, num_kept=1)
    fresh = {"w": torch.nn.Parameter(torch.zeros(4, 4).bfloat16())}
    again = torch.optim.SGD(fresh.values(), lr=0.1)
    load_checkpoint(tmp_path, tensors=fresh, optimizer=again, identity=IDENTITY, on_damage=lambda fault: None)
    assert torch.equal(fresh["w"], weights["w"])
    found = again.state[fresh["w"]]
    assert set(found) == set(kept)
    for name, value in kept.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype and torch.equal(found[name], value)
        else:
            assert found[name] == value and type(found[name]) is type(value)


# --- beside training --------------------------------------------------------------------------------


def test_what_is_written_beside_training_is_what_was_when_it_began(tmp_path: Path) -> None:
    run = Run()
    run.step()
    wanted = {name: tensor.detach().clone() for name, tensor in run.tensors.items()}
    with run.writer(tmp_path, snapshot="on") as writer:
        writer.save(run.state)
        with torch.no_grad():
            for tensor in run.tensors.values():
                tensor.fill_(5.0)
        run.state.step = 99
    (path,) = writer.poll()
    assert path.name == "step-000001" and writer.poll() == []
    again = Run()
    assert again.load(tmp_path) == 1
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.tensors.items())


def test_at_most_one_is_under_way_and_its_copy_is_used_again(tmp_path: Path) -> None:
    run = Run()
    with run.writer(tmp_path, snapshot="on") as writer:
        for _ in range(4):
            run.step()
            writer.save(run.state)
            assert len([one for one in threading.enumerate() if one.name == "checkpoint"]) <= 1
            copies = {name: kept.data_ptr() for name, kept in writer._copies._kept.items()}
            assert len(copies) == len(run.tensors) + 6  # two moments and a count of each
        assert copies == {name: kept.data_ptr() for name, kept in writer._copies._kept.items()}
    kept = sum(tensor.nbytes for tensor in writer._copies._kept.values())
    assert kept == snapshot_bytes(run.tensors, run.optimizer)
    assert _names(tmp_path) == ["step-000003", "step-000004"]


@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_failure_in_writing_fails_the_run(tmp_path: Path, mode: str) -> None:
    run = Run()
    run.step()
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    writer = run.writer(tmp_path / "checkpoints", snapshot=mode)
    with pytest.raises(UserError) as caught:
        writer.save(run.state)
        writer.wait()
    assert caught.value.code == "cannot_write" and writer.poll() == []
