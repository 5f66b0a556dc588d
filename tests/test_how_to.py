"""The worked example of docs/how-to/add-a-plugin.md is code that runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tunesmith.core.plugins import find

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "add-a-plugin.md"


def blocks() -> dict[str, str]:
    """The Python blocks of the page by the path in their first line."""
    found = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return dict(found)


def test_the_metric_of_the_page_passes_its_own_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric, test = blocks().values()
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "character_error_rate.py").write_text(metric, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    outside = "my_package.character_error_rate"
    names: dict[str, object] = {}
    exec(compile(test.replace('"character_error_rate"', f'"{outside}"'), "the page", "exec"), names)
    claims = [value for name, value in names.items() if name.startswith("test_")]
    assert len(claims) == 2
    for claim in claims:
        assert callable(claim)
        claim()
    find.cache_clear()
    sys.modules.pop(outside)
    sys.modules.pop("my_package")
