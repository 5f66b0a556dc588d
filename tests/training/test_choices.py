"""Choices are made once in a run."""

from pathlib import Path

from tunesmith.core.run import RunFolder
from tunesmith.training.choices import Choice, choices, decided


def test_a_choice_is_made_once_and_taken_again_on_resume(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = decided(run, "compile", lambda: Choice(True, "1.2 times as fast"))
    again = decided(RunFolder(tmp_path), "compile", lambda: Choice(False, "another day"))
    assert first == again == Choice(True, "1.2 times as fast")


def test_choices_are_kept_side_by_side(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    decided(run, "compile", lambda: Choice(False, "no compiler"))
    decided(run, "recompute", lambda: Choice(4, "the rest fits"))
    assert choices(run) == {"compile": Choice(False, "no compiler"), "recompute": Choice(4, "the rest fits")}
