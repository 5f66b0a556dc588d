"""Rules of the house that no single part can hold: size, words, help that ends with an example."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunesmith
from tunesmith import recipe
from tunesmith.core.describe import describe
from tunesmith.core.plugins import KINDS, Plugin, find, names, summary
from tunesmith.core.settings import Settings

ROOT = Path(__file__).parent.parent
PACKAGE = Path(tunesmith.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 410
PLUGINS = [(folder, name) for folder in KINDS for name in names(folder)]
SECTIONS = [value for value in vars(recipe).values() if isinstance(value, type) and issubclass(value, Settings)]


@pytest.mark.parametrize(("folder", "name"), PLUGINS)
def test_a_plugin_is_one_class_with_a_summary_and_documented_settings(folder: str, name: str) -> None:
    cls = find(folder, name)
    line = summary(folder, name)
    assert 20 <= len(line) <= 120, line
    assert line.endswith("."), line
    assert cls.__doc__, "the class says how it does it"
    assert [field.name for field in describe(cls) if not field.text] == []


@pytest.mark.parametrize("section", [cls for cls in SECTIONS if not issubclass(cls, Plugin)])
def test_every_setting_of_a_recipe_is_documented(section: type[Settings]) -> None:
    assert [field.name for field in describe(section) if not field.text] == []


def test_no_file_is_too_long_to_be_read_in_one_go() -> None:
    sizes = {str(file.relative_to(PACKAGE)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: size for name, size in sizes.items() if size > MOST_LINES} == {}


def test_every_module_says_what_is_in_it() -> None:
    silent = [
        str(file.relative_to(PACKAGE))
        for file in FILES
        if file.stat().st_size and not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert silent == []


def public_functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node


def test_public_functions_have_a_docstring() -> None:
    silent = [
        f"{file.relative_to(PACKAGE)}:{node.lineno} {node.name}"
        for file in FILES
        for node in public_functions(file)
        if not ast.get_docstring(node)
    ]
    assert silent == []


def test_nothing_is_caught_without_a_name() -> None:
    wrong = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert wrong == []


def test_the_help_of_every_command_has_an_example_of_that_very_command() -> None:
    from tunesmith.cli.main import COMMANDS, GROUPS
    from tunesmith.reports.reference import command_helps

    helps = {words: " ".join(text.split()) for name in COMMANDS for words, text in command_helps(name)}
    examples = {words: text.partition("Example: ")[2] for words, text in helps.items() if words not in GROUPS}
    without = [words for words, example in examples.items() if f"tunesmith {words}" not in example]
    assert without == []


def tracked_texts() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs the git repository: this is a copy without it")
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if file.is_file() and file.stat().st_size < 1_000_000:
            try:
                yield name, file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_no_file_names_the_machine_it_was_written_on() -> None:
    machine = re.compile(r"(?<![\w.])/(?:work|root|opt/(?:pypi|wheels))/|file:///|https?://(?:10|172|192)\.\d")
    own = str(Path(__file__).relative_to(ROOT))
    named = [f"{name}: {found[0]}" for name, text in tracked_texts() if name != own and (found := machine.search(text))]
    assert named == []
