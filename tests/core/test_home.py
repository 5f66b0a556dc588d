"""Where a project's files lie, and who decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.home import Home


def test_the_option_wins_over_the_variable_over_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNESMITH_HOME", raising=False)
    assert Home.open().path == Path()
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "variable"))
    assert Home.open().path == tmp_path / "variable"
    assert Home.open(str(tmp_path / "option")).path == tmp_path / "option"


def test_paths_stay_as_they_were_given() -> None:
    home = Home.open("demo")
    assert str(home.runs) == "demo/runs"
    assert str(home.database) == "demo/.tunesmith/tunesmith.db"
    assert str(home.versions("manual") / "4") == "demo/.tunesmith/models/manual/4"


def test_opening_creates_nothing(tmp_path: Path) -> None:
    home = Home.open(str(tmp_path / "new"))
    assert home.runs.name == "runs"
    assert not (tmp_path / "new").exists()


def test_a_file_cannot_be_the_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as fault:
        Home.open(str(tmp_path / "file"))
    assert "must be a folder" in fault.value.line() and str(tmp_path / "file") in fault.value.line()
