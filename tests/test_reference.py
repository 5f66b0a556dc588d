"""The reference pages are what the code says now."""

from __future__ import annotations

from pathlib import Path

from tunesmith.core.plugins import KINDS, names
from tunesmith.recipe import TrainSettings
from tunesmith.reports.reference import MEASURED, pages, write

KEPT = Path(__file__).parent.parent / "docs" / "reference"


def test_the_pages_in_the_repository_are_fresh(tmp_path: Path) -> None:
    write(tmp_path)
    fresh = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.glob("*.md")}
    kept = {file.name: file.read_text(encoding="utf-8") for file in KEPT.glob("*.md") if file.name not in MEASURED}
    stale = sorted(name for name in fresh | kept if fresh.get(name) != kept.get(name))
    assert stale == [], "run `make docs`"


def test_every_plugin_and_every_train_setting_has_its_entry() -> None:
    written = pages()
    for folder in KINDS:
        for name in names(folder):
            assert f"\n## {name}\n" in written[f"{folder}.md"]
    for setting in TrainSettings.model_fields:
        assert f"\n| `{setting}` | " in written["recipe.md"]


def test_a_page_of_something_that_is_gone_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "gadgets.md").write_text("old", encoding="utf-8")
    write(tmp_path)
    assert not (tmp_path / "gadgets.md").exists()
