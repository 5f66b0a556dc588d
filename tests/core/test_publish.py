"""Atomic publishing: whole or not at all, whatever kills the process or fills the disk; damage is named."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.publish import (
    MANIFEST,
    content_hash,
    discard,
    disk_error,
    publishing,
    read_manifest,
    refuse_pickles,
    remove_stale_drafts,
    sha256,
    verify,
    write_json,
    write_text,
)

KILLED_AT = """
import os, pathlib, signal, sys
from tunesmith.core.publish import publishing, write_text
calls, fatal = 0, int(sys.argv[2])

def counted(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

os.fsync, os.rename, os.replace, os.mkdir = map(counted, (os.fsync, os.rename, os.replace, os.mkdir))
target = pathlib.Path(sys.argv[1])
if sys.argv[3] == "folder":
    with publishing(target) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "a.txt").write_text("a" * 1000)
        (draft / "b.txt").write_text("b")
else:
    write_text(target, "new")
"""


def publish(target: Path) -> Path:
    with publishing(target) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "a.txt").write_text("hello")
        (draft / "b.txt").write_text("b")
    return target


def test_a_published_folder_verifies_and_lists_every_file(tmp_path: Path) -> None:
    folder = publish(tmp_path / "out")
    manifest = verify(folder)
    assert sorted(manifest["files"]) == ["b.txt", "inner/a.txt"]
    # sha256("hello"), as published by NIST's example implementations and sha256sum
    known = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert manifest["files"]["inner/a.txt"] == {"bytes": 5, "sha256": known}
    assert sha256(folder / "inner" / "a.txt") == known
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_fault_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), publishing(tmp_path / "out") as draft:
        (draft / "a").write_text("a")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_replaced(tmp_path: Path) -> None:
    folder = publish(tmp_path / "out")
    with pytest.raises(UserError) as fault:
        publish(folder)
    assert fault.value.code == "exists" and str(folder) in fault.value.line()
    verify(folder)


def test_of_two_at_once_the_first_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(UserError) as fault, publishing(target) as draft:
        (draft / "mine").write_text("mine")
        publish(target)
    assert fault.value.code == "exists"
    assert sorted(verify(target)["files"]) == ["b.txt", "inner/a.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_kill_at_any_moment_leaves_all_or_nothing(tmp_path: Path, kind: str) -> None:
    finished = 0
    for fatal in range(1, 40):
        home = tmp_path / str(fatal)
        home.mkdir()
        target = home / "out"
        if kind == "file":
            target.write_text("old")
        command = [sys.executable, "-c", KILLED_AT, str(target), str(fatal), kind]
        code = subprocess.run(command, check=False).returncode
        if kind == "file":
            assert target.read_text() in ("old", "new")
        elif target.exists():
            assert sorted(verify(target)["files"]) == ["b.txt", "inner/a.txt"]
        if code == 0:
            finished = fatal
            break
        assert code == -signal.SIGKILL
    assert finished > 3, "the sweep must have killed at several points and then got through"


def test_after_a_kill_publishing_again_needs_no_cleaning(tmp_path: Path) -> None:
    target = tmp_path / "out"
    subprocess.run([sys.executable, "-c", KILLED_AT, str(target), "3", "folder"], check=False)
    assert not target.exists()
    verify(publish(target))


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_AT, str(tmp_path / "killed"), "3", "folder"], check=False)
    (stale,) = tmp_path.iterdir()
    with publishing(tmp_path / "alive") as draft:
        (draft / "a.txt").write_text("a")
        assert remove_stale_drafts(tmp_path) == 1
        assert not stale.exists() and draft.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["alive"]


def test_a_damaged_folder_gives_way_to_a_whole_one_and_an_equal_one_stays(tmp_path: Path) -> None:
    folder = publish(tmp_path / "out")
    before = (folder / MANIFEST).stat().st_ino
    for text, is_same in (("b", True), ("B", False)):
        with publishing(folder, is_replaced=True) as draft:
            (draft / "inner").mkdir()
            (draft / "inner" / "a.txt").write_text("hello")
            (draft / "b.txt").write_text(text)
        verify(folder)
        assert ((folder / MANIFEST).stat().st_ino == before) == is_same
    (folder / "b.txt").write_text("torn")
    with publishing(folder, is_replaced=True) as draft:
        (draft / "b.txt").write_text("new")
    assert sorted(verify(folder)["files"]) == ["b.txt"]
    discard(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_sum_that_was_taken_while_writing_is_checked_against_the_disk_on_reading(tmp_path: Path) -> None:
    sums: dict[str, str] = {}
    with publishing(tmp_path / "out", sums=sums) as draft:
        (draft / "a.txt").write_text("what the disk made of it")
        sums["a.txt"] = "0" * 64  # what was meant
    with pytest.raises(UserError, match=r"a\.txt do not match"):
        verify(tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: (folder / "b.txt").write_text("c"), "the contents of b.txt do not match its SHA-256 sum"),
        (lambda folder: (folder / "b.txt").write_text("bb"), "b.txt has 2 bytes, not 1"),
        (lambda folder: (folder / "inner" / "a.txt").unlink(), "inner/a.txt is missing"),
        (lambda folder: (folder / "added").write_text(""), "added is not in its manifest"),
        (lambda folder: (folder / MANIFEST).unlink(), "it has no readable manifest.json"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "it has no readable manifest.json"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "it has no readable manifest.json"),
    ],
)
def test_damage_is_found_and_the_file_named(tmp_path: Path, damage: object, text: str) -> None:
    folder = publish(tmp_path / "out")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(UserError) as fault:
        verify(folder)
    assert text in fault.value.message
    assert (fault.value.code, fault.value.where) == ("damaged", str(folder))


def test_every_single_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = publish(tmp_path / "out")
    for bit in range(8 * 5):
        data = bytearray(b"hello")
        data[bit // 8] ^= 1 << bit % 8
        (folder / "inner" / "a.txt").write_bytes(data)
        with pytest.raises(UserError, match=r"inner/a\.txt"):
            verify(folder)


def test_the_content_hash_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    one, same = publish(tmp_path / "one"), publish(tmp_path / "same")
    assert content_hash(one) == content_hash(same)
    with publishing(tmp_path / "other") as draft:
        (draft / "b.txt").write_text("other")
    assert content_hash(tmp_path / "other") != content_hash(one)
    assert read_manifest(one)["format"] == 1


def test_a_full_disk_is_said_and_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system call fails as it does on a full disk; where mounting is allowed, the next test uses a real one."""
    (tmp_path / "a.json").write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as fault:
        publish(tmp_path / "out")
    assert fault.value.code == "disk_full"
    assert "the disk is full" in fault.value.message and "bytes are free" in fault.value.message
    with pytest.raises(UserError, match=r"the disk is full: 3 bytes are needed and [\d,]+ are free"):
        write_text(tmp_path / "a.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_really_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    mount, unshare = shutil.which("mount"), shutil.which("unshare")
    if os.geteuid() != 0 or not mount or not unshare:
        pytest.skip("mounting a small tmpfs needs root")
    script = (
        "import sys, pathlib\nfrom tunesmith.core.errors import UserError\n"
        "from tunesmith.core.publish import publishing\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "try:\n    with publishing(root / 'out', needed_bytes=400_000) as draft:\n"
        "        (draft / 'big').write_bytes(b'x' * 400_000)\n"
        "except UserError as fault:\n    print(fault.message, sorted(p.name for p in root.iterdir()))\n"
    )
    shell = f'mount -t tmpfs -o size=100k none {tmp_path} && exec "$0" -c "$1" {tmp_path}'
    done = subprocess.run(
        [unshare, "--mount", "sh", "-c", shell, sys.executable, script], capture_output=True, text=True, check=False
    )
    if "mount" in done.stderr and "denied" in done.stderr:
        pytest.skip("mounting is not allowed here")
    found = re.fullmatch(
        r"the disk is full: 400,000 bytes are needed and ([\d,]+) are free\. \[\]", done.stdout.strip()
    )
    assert found and 0 < int(found[1].replace(",", "")) <= 102_400, (done.stdout, done.stderr)


def test_an_io_error_on_sync_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UserError) as fault:
        write_json(tmp_path / "a.json", {})
    assert fault.value.code == "cannot_write" and "Input/output error" in fault.value.message
    assert list(tmp_path.iterdir()) == []


def test_other_system_faults_name_the_place() -> None:
    fault = disk_error(PermissionError(errno.EACCES, "Permission denied"), Path("/x/y"))
    assert fault.line() == "/x/y: cannot be written: Permission denied. [cannot_write]"


def test_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "a.json", {"ä": 1})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": 1}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a/weights.pt", "x.pkl", "x.pth", "x.ckpt"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(UserError) as fault:
        refuse_pickles(tmp_path)
    assert fault.value.code == "pickle_refused" and name in fault.value.message
