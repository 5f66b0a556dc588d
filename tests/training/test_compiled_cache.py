"""What is compiled is kept whole between runs, or not at all."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest
from torch._inductor import codecache
from torch._inductor.runtime.cache_dir_utils import cache_dir

from tunesmith.core.publish import MANIFEST, is_whole
from tunesmith.kernels.compiled_blocks import CannotCompileError
from tunesmith.training.compiled_cache import CACHE, compiled_kept_in


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE, raising=False)
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):
        monkeypatch.setattr(codecache, name, getattr(codecache, name))


def _compile(folder: Path, name: str = "block.so") -> set[str]:
    """Stands for compiling into the folder; what was there before."""
    with compiled_kept_in(folder):
        before = {path.name for path in Path(cache_dir()).iterdir()}
        (Path(cache_dir()) / name).write_text("code")
    return before


def test_pytorchs_own_folder_is_nobodys_wish_and_is_named_again_afterwards(tmp_path: Path) -> None:
    default = cache_dir()
    assert os.environ[CACHE] == default  # PyTorch itself writes it there
    with compiled_kept_in(tmp_path / "compiled"):
        assert cache_dir() == str(tmp_path / "compiled")
        assert Path(codecache._HEADER_DIR).parent == tmp_path / "compiled"
    assert os.environ[CACHE] == default


def test_a_folder_that_the_user_names_gets_ours_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "named"))
    for _ in range(2):
        with compiled_kept_in(tmp_path / "compiled"):
            assert cache_dir() == str(tmp_path / "named" / "tunesmith")
    assert not (tmp_path / "compiled").exists()


def test_what_was_compiled_is_there_the_next_time(tmp_path: Path) -> None:
    assert _compile(tmp_path / "compiled") == set()
    assert is_whole(tmp_path / "compiled")
    assert _compile(tmp_path / "compiled") == {"block.so"}


def test_an_interrupted_compilation_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), compiled_kept_in(tmp_path / "compiled"):
        (tmp_path / "compiled" / "half.so").write_text("co")
        raise KeyboardInterrupt
    assert not (tmp_path / "compiled" / MANIFEST).exists()  # as after a kill
    assert _compile(tmp_path / "compiled") == set()
    assert not (tmp_path / "compiled" / "half.so").exists()


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    _compile(tmp_path / "compiled")
    (tmp_path / "compiled" / "block.so").write_text("")
    assert _compile(tmp_path / "compiled") == set()


def test_a_block_that_cannot_be_compiled_takes_no_other_with_it(tmp_path: Path) -> None:
    _compile(tmp_path / "compiled")
    with pytest.raises(CannotCompileError), compiled_kept_in(tmp_path / "compiled"):
        raise CannotCompileError
    assert _compile(tmp_path / "compiled") == {"block.so"}


def test_who_comes_second_waits(tmp_path: Path) -> None:
    found: list[set[str]] = []
    with (tmp_path / ".compiled.lock").open("w") as lock:  # as another process holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: found.append(_compile(tmp_path / "compiled")))
        second.start()
        second.join(0.3)
        assert second.is_alive()
    second.join(10)
    assert found == [set()]


def test_a_folder_that_cannot_be_written_leaves_pytorch_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    default = cache_dir()
    with compiled_kept_in(tmp_path / "file" / "compiled"):
        assert cache_dir() == default
