"""Where everything of one project lies: runs in `runs/`, the registry in `.tunesmith/`.

Chosen by `--home DIR`, else TUNESMITH_HOME, else the working directory. Nothing is created until something is
written into it, so a listing in the wrong folder leaves no trace.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.errors import UserError

VARIABLE = "TUNESMITH_HOME"


@dataclass(frozen=True)
class Home:
    """The folders of a project; paths stay as the user gave them, so that what is printed can be typed again."""

    path: Path

    @staticmethod
    def open(option: str | None = None) -> Home:
        """The home named by the option, else by TUNESMITH_HOME, else the working directory.

        Raises:
            UserError: What is named is a file.
        """
        path = Path(option or os.environ.get(VARIABLE) or ".").expanduser()
        if path.exists() and not path.is_dir():
            raise UserError("the home must be a folder.", code="bad_home", where=str(path), remedy="Name a folder.")
        return Home(path)

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.path / "runs"

    @property
    def registry(self) -> Path:
        """The database and the files of registered versions."""
        return self.path / ".tunesmith"

    @property
    def database(self) -> Path:
        """The SQLite file, used unless TUNESMITH_STORE names another database."""
        return self.registry / "tunesmith.db"

    def versions(self, name: str) -> Path:
        """The folder that holds the numbered versions of a registered model."""
        return self.registry / "models" / name
