"""Where a model comes from: a name becomes a folder or a hub id, and a folder gets a fingerprint.

Nothing is loaded here; a folder is only looked at, and refused where it holds no model or a pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.core.errors import Suggestions, UserError, suggest
from tunesmith.core.publish import refuse_pickles, sha256
from tunesmith.core.run import RunFolder

BUILT_IN = "tunesmith/base"
CARD = "tunesmith.json"
ADAPTER_CONFIG = "adapter_config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SECONDS_TO_REACH = 5.0
"""For a first answer from the hub; a machine without a network says so sooner."""
_MODEL_FILES = ("config.json", ADAPTER_CONFIG)


def resolve(name: str) -> str | Path:
    """The folder that `name` means, or `name` itself as a hub id.

    `tunesmith/base` is the packaged model, a run folder means its `model/`; a folder wins over a hub id.

    Raises:
        UserError: The folder holds no model, or the name can be neither a folder nor a hub id.
    """
    if name == BUILT_IN:
        return _checked(Path(__file__).parent.parent / "assets" / "base", name)
    if name.startswith("tunesmith/") and not Path(name).exists():
        raise _unknown(name, f'the built-in model is "{BUILT_IN}".')
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(path, name)
    if path.is_file():
        raise _unknown(name, "a model is a folder; name the folder that this file lies in.")
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1
    if looks_like_path or not _HUB_ID.fullmatch(name):
        near = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
        raise _unknown(name, suggest(path.name, near).sentence() or "Give a folder that exists, or a hub id.")
    return name


@cache
def check_hub(name: str) -> None:
    """Refuse at once a hub id that is not cached where the hub cannot be reached; its own library tries for a minute.

    Raises:
        UserError: So it is, with the nearest names that are here.
    """
    import httpx
    from huggingface_hub import constants, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(name, file), str) for file in _MODEL_FILES):
        return
    reason = "the hub is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    if not reason:
        try:
            httpx.head(f"{constants.ENDPOINT}/{name}/resolve/main/config.json", timeout=SECONDS_TO_REACH)
        except httpx.TransportError:
            reason = "the hub cannot be reached"
    if reason:
        here = [BUILT_IN, *_models(Path()), *(f"runs/{run}" for run in _models(Path("runs")))]
        cache = Path(constants.HF_HUB_CACHE)
        cached = [entry.name.removeprefix("models--").replace("--", "/") for entry in cache.glob("models--*")]
        near = suggest(name, [*here, *cached]).here or suggest(f"runs/{name}", here).here
        hint = Suggestions(near, ()).sentence() or f"Offline, name a folder, or the built-in `{BUILT_IN}`."
        raise _unknown(name, f"no folder here is called so, and {reason}. {hint[0].upper()}{hint[1:]}")


def _models(parent: Path) -> list[str]:
    """Folders that hold a model or are a run."""
    files = (*_MODEL_FILES, "recipe.yaml")
    entries = sorted(parent.iterdir()) if parent.is_dir() else []
    return [entry.name for entry in entries if any((entry / file).is_file() for file in files)]


def read_card(folder: Path) -> dict[str, Any]:
    """What the run wrote into `tunesmith.json`; empty for a folder from elsewhere.

    Raises:
        UserError: The file is no JSON object, or a newer Tunesmith wrote it.
    """
    file = folder / CARD
    if not file.is_file():
        return {}
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UserError(f"the file cannot be read: {fault}.", code="damaged", where=str(file)) from None
    if not isinstance(card, dict):
        raise UserError("the file is not a JSON object.", code="damaged", where=str(file))
    if card.get("format", 1) != 1:
        raise UserError(
            f"the model was written in format {card['format']!r}, and this Tunesmith reads format 1.",
            code="newer_format",
            where=str(file),
            remedy="Install the Tunesmith that wrote it.",
        )
    return card


def base_record(name: str, revision: str = "main") -> dict[str, str]:
    """The `base` entry of tunesmith.json: name as typed, revision, and the folder's fingerprint ("" for a hub id)."""
    source = resolve(name)
    return {
        "name": name,
        "revision": revision if isinstance(source, str) else "",
        "sha256": fingerprint(source) if isinstance(source, Path) else "",
    }


def fingerprint(folder: Path) -> str:
    """SHA-256 over the configuration and the weights of a model folder: what decides its outputs."""
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name in _MODEL_FILES or path.suffix == ".safetensors"
    )
    lines = "".join(f"{sha256(folder / name)}  {name}\n" for name in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _checked(folder: Path, name: str) -> Path:
    if (folder / "recipe.yaml").is_file():
        RunFolder(folder).refuse_several_tasks()
        if not (folder / "model").is_dir():
            raise UserError(
                f'the run "{name}" has no model yet.',
                code="unfinished_run",
                where=name,
                remedy=f"Finish it: tunesmith train --resume {name}",
            )
        folder = folder / "model"
    refuse_pickles(folder)
    if not any((folder / file).is_file() for file in _MODEL_FILES):
        raise UserError(
            "the folder holds no model: there is neither config.json nor adapter_config.json.",
            code="no_model",
            where=name,
            remedy="Name a folder that transformers or peft saved, or a run folder.",
        )
    return folder


def _unknown(name: str, remedy: str) -> UserError:
    return UserError(f'there is no model "{name}";', code="unknown_model", remedy=remedy)
