"""Links of the documents lead somewhere, and their recipes and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tunesmith.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)", prose)
    own = [link for link in links if "://" not in link]
    assert [link for link in own if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_recipes_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    typed = re.findall(r"^(?:\$ )?tunesmith (\w+)", text, flags=re.MULTILINE)
    assert [word for word in typed if word not in COMMANDS] == []
    assert [name for name in re.findall(r"\brecipes/\w+\.yaml", text) if not (ROOT / name).exists()] == []
