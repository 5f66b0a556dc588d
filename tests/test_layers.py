"""Imports point one way, and what is heavy stays where it belongs (CONTRIBUTING.md says why)."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import tunesmith
from tunesmith.core.plugins import KINDS, names

PACKAGE = Path(tunesmith.__file__).parent
PLUGINS = set(KINDS)
NOUNS = {"data", "models", "kernels", "reports", "assets"}

# What each part may import of Tunesmith itself; "base" stands for the contracts */base.py.
ALLOWED = {
    "core": {"core"},
    "base": {"core"},
    "recipe": {"core", "base"},
    "data": {"core", "base", "recipe", "data"},
    "kernels": {"core", "base", "recipe", "kernels"},
    "models": {"core", "base", "recipe", *NOUNS},
    "reports": {"core", "base", "recipe", *NOUNS},
    "training": {"core", "base", "recipe", *NOUNS, "training"},
    "steps": {"core", "base", "recipe", *NOUNS, "training", *PLUGINS, "steps"},
    "server": {"core", "base", "recipe", *NOUNS, "training", *PLUGINS, "steps", "server"},
    "cli": {"core", "base", "recipe", *NOUNS, "training", *PLUGINS, "steps", "server", "reporters", "cli"},
    "reporters": {"core", "reporters"},
    "nouns": {"api", "core", "recipe", "data", "steps", "reporters", "nouns"},
    "assets": set(),
    **{folder: {"core", "base", "recipe", *NOUNS} for folder in PLUGINS},
}
# The Python API and the generator of the reference stand outside: they may see everything. So do the steps that put
# a server together: the server stands above the steps, which it starts over HTTP, and `serve` is a step itself.
OUTSIDE = {
    "tunesmith/__init__.py",
    "tunesmith/__main__.py",
    "tunesmith/api.py",
    "tunesmith/api_search.py",
    "tunesmith/reports/reference.py",
    "tunesmith/steps/serve.py",
    "tunesmith/steps/demo.py",
}

FENCES = {
    "torch": {
        *{"models", "kernels", "methods", "objectives", "metrics", "optimizers"},
        *{"training", "steps", "server", "launchers"},
    },
    "transformers": {"models", "kernels", "methods", "objectives", "training", "steps", "server"},
    "accelerate": {"training", "launchers"},
    "peft": {"methods", "models"},
    "fastapi": {"server"},
    "uvicorn": {"server"},
    "typer": {"cli"},
    "sqlalchemy": {"core"},
    "alembic": {"core"},
    "optuna": {"steps"},
}
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "sklearn",
    "pandas",
    "matplotlib",
    "fastapi",
    "sqlalchemy",
    "optuna",
)


@dataclass(frozen=True)
class Import:
    """One import statement: where it stands, what it names, and whether it runs when the module is loaded."""

    file: Path
    line: int
    module: str
    is_eager: bool

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(PACKAGE.parent)}:{self.line} imports {self.module}"

    @property
    def folder(self) -> str:
        return self.file.relative_to(PACKAGE).parts[0]

    @property
    def part(self) -> str:
        return part_of(self.file.relative_to(PACKAGE).with_suffix("").parts)


def part_of(path: tuple[str, ...]) -> str:
    """`methods/base` is "base"; everything else belongs to its folder."""
    return "base" if len(path) == 2 and path[1] == "base" and path[0] in PLUGINS else path[0]


def imports_of(file: Path) -> list[Import]:
    """Every import of a file, those inside functions too; type-checking blocks are left out."""
    found: list[Import] = []

    def visit(node: ast.AST, is_eager: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child, is_eager)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(file, node.lineno, alias.name, is_eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            assert node.module is not None
            found.extend(Import(file, node.lineno, f"{node.module}.{alias.name}", is_eager) for alias in node.names)
        is_inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, is_eager and not is_inner)

    visit(ast.parse(file.read_text(encoding="utf-8")), True)
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def all_imports() -> list[Import]:
    """Those of the whole package; read when a test asks, not in every worker."""
    return [found for file in FILES for found in imports_of(file)]


def test_imports_of_tunesmith_point_one_way() -> None:
    wrong = [
        found.place
        for found in all_imports()
        if found.module.startswith("tunesmith.")
        and str(found.file.relative_to(PACKAGE.parent)) not in OUTSIDE
        and part_of(tuple(found.module.split(".")[1:3])) not in ALLOWED[found.part] | {"__version__"}
    ]
    assert wrong == []


def test_plugins_never_import_each_other() -> None:
    plugins = {f"tunesmith.{folder}.{name}" for folder in PLUGINS for name in names(folder)}
    wrong = [
        found.place
        for found in all_imports()
        if found.part in PLUGINS and any(f"{found.module}.".startswith(f"{plugin}.") for plugin in plugins)
    ]
    assert wrong == []


@pytest.mark.parametrize("library", sorted(FENCES))
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    wrong = [
        found.place
        for found in all_imports()
        if found.module.split(".")[0] == library and found.folder not in FENCES[library]
    ]
    assert wrong == []


def test_the_database_is_known_to_the_store_alone() -> None:
    wrong = [
        found.place
        for found in all_imports()
        if found.module.split(".")[0] in ("sqlalchemy", "alembic")
        and not any(part.startswith("store") for part in found.file.relative_to(PACKAGE / "core").parts)
    ]
    assert wrong == []


def test_plugin_modules_and_contracts_import_nothing_heavy_by_themselves() -> None:
    wrong = [
        found.place
        for found in all_imports()
        if found.is_eager
        and (found.part in {*PLUGINS, "base", "core", "recipe", "reporters", "cli", "data"})
        and not any(part.startswith("store") for part in found.file.parts)
        and found.module.split(".")[0] in HEAVY
    ]
    assert wrong == []


def loaded_after(code: str) -> set[str]:
    """The top-level modules that are loaded in a fresh Python after `code`."""
    script = f"{code}\nimport sys\nprint(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(answer.stdout.splitlines()[-1].split())


def test_every_plugin_and_the_recipe_load_without_torch() -> None:
    modules = ["tunesmith.recipe"] + [f"tunesmith.{folder}.{name}" for folder in PLUGINS for name in names(folder)]
    code = "\n".join(f"import {module}" for module in modules)
    assert loaded_after(code) & set(HEAVY) == set()


def test_help_loads_neither_torch_nor_pydantic_nor_rich() -> None:
    """A time limit would fail on a busy machine; what costs the time is what is loaded."""
    code = (
        "import sys\nfrom tunesmith.cli.main import main\nsys.argv = ['tunesmith', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    )
    assert loaded_after(code) & {*HEAVY, "pydantic", "rich", "numpy"} == set()


def test_the_package_itself_loads_nothing_heavy() -> None:
    assert loaded_after("import tunesmith") & {*HEAVY, "pydantic", "rich", "typer", "numpy"} == set()


def test_no_file_is_named_after_nothing() -> None:
    empty_words = {"util", "utils", "helper", "helpers", "common", "misc", "manager"}
    assert [str(file) for file in FILES if empty_words & set(file.stem.split("_"))] == []
