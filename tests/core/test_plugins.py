"""Plug-ins are files: found by name, refused with a reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import KINDS, Plugin, build, find, kind_of, names, summary


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of plug-ins outside ours, importable as `mine.x`."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    find.cache_clear()
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize("folder", sorted(KINDS))
def test_the_folder_is_the_list(folder: str) -> None:
    found = names(folder)
    assert found == sorted(found) and "base" not in found and "__init__" not in found
    for name in found:
        assert summary(folder, name), f"{folder}/{name}.py has no docstring"
        assert find(folder, name).__module__ == f"tunesmith.{folder}.{name}"


def test_a_kind_goes_by_its_folder_or_its_noun() -> None:
    assert kind_of("methods") is kind_of("method") is KINDS["methods"]
    with pytest.raises(UserError) as fault:
        kind_of("metod")
    assert 'did you mean "methods"?' in fault.value.line()


def test_a_wrong_name_gets_the_nearest() -> None:
    with pytest.raises(UserError) as fault:
        find("methods", "lorra")
    assert fault.value.code == "unknown_method"
    assert 'there is no method "lorra"; did you mean "lora"?' in fault.value.line()


def test_a_plugin_knows_its_name_and_how_a_recipe_writes_it() -> None:
    method = build("methods", {"name": "lora", "rank": 4})
    assert method.name == "lora"
    assert method.spec()["name"] == "lora" and method.spec()["rank"] == 4
    assert build("methods", method.spec()) == method
    assert build("methods", method) is method
    assert method.changed() == {"rank": 4}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"name": "lora", "rnk": 4}, '"rnk" is not a setting of method; did you mean "rank"?'),
        ({"name": "lora", "rank": 0}, "`method.rank` cannot be 0: Input should be greater than 0."),
        ({"name": "lora", "rank": "many"}, "`method.rank` cannot be 'many'"),
        ({"rank": 4}, "a method is a name or a mapping with `name`"),
        (7, "a method is a name or a mapping with `name`, not 7"),
        (None, "a method is a name or a mapping with `name`, not None"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(spec: object, text: str) -> None:
    with pytest.raises(UserError) as fault:
        build("methods", spec)  # type: ignore[arg-type]
    assert text in fault.value.line()


def test_a_dotted_name_is_a_module_from_outside(outside: Path) -> None:
    (outside / "shout.py").write_text(
        '"""Shout."""\nfrom tunesmith.core.plugins import Plugin\nfrom tunesmith.metrics.base import Metric\n'
        "class Loud(Plugin):\n    volume: int = 11\n    'How loud.'\n"
    )
    built = build("metrics", {"name": "mine.shout", "volume": 3})
    assert isinstance(built, Plugin) and built.name == "mine.shout"
    assert built.spec() == {"name": "mine.shout", "volume": 3}


@pytest.mark.parametrize(
    ("name", "source", "text"),
    [
        ("mine.absent", None, 'the metric "mine.absent" cannot be imported: No module named'),
        ("mine.needs", "import absent_library", "cannot be imported: No module named 'absent_library'"),
        ("mine.none", "x = 1", "must hold exactly one plug-in class, not 0"),
        (
            "mine.two",
            "from tunesmith.core.plugins import Plugin\nclass A(Plugin): ...\nclass B(Plugin): ...",
            "must hold exactly one plug-in class, not 2",
        ),
        ("mine.broken", "def (", "cannot be imported: invalid syntax"),
        (".", None, "cannot be imported"),
        ("..lora", None, "cannot be imported"),
        ("mine..x", None, "cannot be imported"),
        ("mine.", None, "cannot be imported"),
    ],
)
def test_a_module_that_is_no_plugin_says_why(outside: Path, name: str, source: str | None, text: str) -> None:
    if source is not None:
        (outside / f"{name.partition('.')[2]}.py").write_text(source)
    with pytest.raises(UserError) as fault:
        find("metrics", name)
    assert text in fault.value.message
