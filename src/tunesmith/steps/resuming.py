"""Go on with a run as what it began with: its settings, data, base and environment, or what was allowed by name.

`resumes.json` in the run keeps what was allowed and what changed, so that it need be allowed once. Settings that the
version it began with did not have are as things were before them, which is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Warning
from tunesmith.core.publish import discard
from tunesmith.core.run import RunFolder, environment, now
from tunesmith.core.space import refuse_ranges
from tunesmith.models.machine import describe
from tunesmith.models.source import base_record
from tunesmith.recipe import Recipe, make_recipe, read_values
from tunesmith.steps.train_work import STEP, Work
from tunesmith.training.checkpoint import newest_identity
from tunesmith.training.identity import Difference, completed, differences, is_covered, refuse_differences

RECORD = "resumes.json"
_VERSIONS = ("torch", "transformers", "peft", "tokenizers", "numpy")
"""Packages whose other version may give other last digits."""


class Resumption:
    """A stopped run, the recipe that it goes on with, and what may differ from what it began with."""

    def __init__(self, run: RunFolder, overrides: Sequence[str], allow: Sequence[str]) -> None:
        """Read the recipe; nothing is written.

        Raises:
            UserError: It is finished, or a setting differs that is not allowed to.
        """
        if run.state == "finished":
            remedy = f"Try: tunesmith chat {run.path}"
            raise UserError("this run is finished.", code="finished", where=str(run.path), remedy=remedy)
        self.run = run
        record = run.read_json(RECORD) or {"allowed": [], "changes": []}
        self.allowed: tuple[str, ...] = tuple(dict.fromkeys([*record["allowed"], *allow]))
        self.changes: list[dict[str, Any]] = list(record["changes"])
        self.recipe, unknown = _recipe_of(run, overrides)
        began, unknown_then = completed(newest_identity(run.checkpoints) or _plain(_recipe_of(run)[0]), self.recipe)
        self.added: list[Difference] = list({one.setting: one for one in (*unknown, *unknown_then)}.values())
        self._found = self._checked(
            differences(began, _plain(self.recipe)), "these settings are not what the run began with"
        )
        if not self._may_differ("model.sha256"):
            self._check_base()

    def check_data(self, card: Mapping[str, Any]) -> None:
        """Compare the data card with the run's.

        Raises:
            UserError: They differ, and that was not allowed.
        """
        found = differences(self.run.read_json("data.json"), json.loads(json.dumps(card)), "data")
        self._found += self._checked(found, "the data are not what this run began with")
        self._card = card

    def begin(self, recipe: Recipe, emit: Emit) -> None:
        """Write down what differs, now that everything is ready; a model of before it is made again."""
        if self.added:
            shown = ", ".join(f"{one.setting}={one.now}" for one in self.added)
            emit(Warning(STEP, "new_settings", f"this run is older than some settings; it goes on with {shown}"))
            self.run.write("recipe.yaml", recipe.to_yaml())
        if not self._found:
            return
        told = [one for one in self._found if not is_covered(one.setting, ["name"])]
        self.changes += [{"at": now(), "setting": one.setting, "was": one.was, "now": one.now} for one in told]
        self.run.write(RECORD, {"allowed": list(self.allowed), "changes": self.changes})
        self.run.write("recipe.yaml", recipe.to_yaml())
        self.run.write("data.json", self._card)
        if self.run.model.exists():
            discard(self.run.model)

    def _check_base(self) -> None:
        before = (self.run.read_json("environment.json") or {}).get("base") or {}
        if not before.get("sha256") or before.get("name") != self.recipe.model.name:
            return
        now_sha = base_record(self.recipe.model.name, self.recipe.model.revision)["sha256"]
        found = differences(before["sha256"], now_sha, "model.sha256")
        self._found += self._checked(found, "the base model's files are not what this run began with")

    def _may_differ(self, setting: str) -> bool:
        return is_covered(setting, self.allowed)

    def _checked(self, found: list[Difference], about: str) -> list[Difference]:
        refuse_differences(found, allowed=self.allowed, run=str(self.run.path), about=about)
        return found


def record_work(run: RunFolder, work: Work) -> None:
    """Write environment.json when a run begins; where it goes on, warn of what differs, for last digits may too."""
    recipe = work.recipe
    found: dict[str, Any] = environment(
        machine=describe().to_dict(),
        seed=recipe.seed,
        base=base_record(recipe.model.name, recipe.model.revision),
        threads=torch.get_num_threads(),
        precision=work.learner.precision,
        device=work.learner.device.type,
    )
    before = run.read_json("environment.json")
    if before is None:
        run.write("environment.json", found)
        return
    pairs = [(name, before["packages"].get(name), found["packages"].get(name)) for name in _VERSIONS]
    pairs += [(name, before.get(name), found[name]) for name in ("threads", "precision", "device")]
    if wrong := [f"{name} {was} → {is_now}" for name, was, is_now in pairs if was is not None and was != is_now]:
        text = f"other than when the run began: {', '.join(wrong)}; the last digits of its numbers may differ"
        work.emit(Warning(STEP, "other_environment", text))


def _recipe_of(run: RunFolder, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Difference]]:
    """The run's recipe, and the settings that an older version did not write into it."""
    values, locate = read_values(run.recipe, overrides)
    refuse_ranges(values, locate)
    recipe = make_recipe(values, locate=locate)
    filled, added = completed(values, recipe)
    return (make_recipe(filled, locate=locate) if added else recipe), added


def _plain(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = recipe.model_dump(mode="json")
    return values
