"""A training, opened from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.events import silent
from tunesmith.core.home import Home
from tunesmith.core.quantities import number
from tunesmith.core.run import RunFolder
from tunesmith.nouns.plan import Plan
from tunesmith.nouns.scores import frame, score_interval
from tunesmith.reporters.notebook import html_table, html_text, loss_curve

if TYPE_CHECKING:
    import pandas as pd

    from tunesmith.recipe import Recipe
    from tunesmith.steps.chat import Conversation
    from tunesmith.steps.merge import Merged


@dataclass(frozen=True, repr=False)
class Run:
    """A training: a folder with recipe, numbers, and the model."""

    path: Path
    home: Home

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def state(self) -> str:
        """`running`, `stopped`, `failed` or `finished`."""
        return self.folder.state

    @property
    def recipe(self) -> Recipe:
        """What would do it again; the file is `run.path / "recipe.yaml"`."""
        from tunesmith.recipe import read_recipe

        return read_recipe(self.folder.recipe)

    @property
    def report(self) -> dict[str, Any]:
        """Everything measured, as report.json has it; empty until the run is finished."""
        return self.folder.read_json("report.json") or {}

    @property
    def metrics(self) -> pd.DataFrame:
        """The numbers of every step and validation."""
        return frame(self.folder.read_metrics())

    @property
    def best(self) -> dict[str, Any]:
        """The validation whose weights were kept."""
        records = [record for record in self.folder.read_metrics() if record.get("validation_loss") is not None]
        return min(records, key=lambda record: record["validation_loss"], default={})

    @cached_property
    def _conversation(self) -> Conversation:
        return self.conversation()

    def conversation(self, *, system: str = "", temperature: float | None = None, seed: int = 1) -> Conversation:
        """A conversation of several turns: `.ask(question)` streams, `.answer(question)` waits."""
        from tunesmith.steps.chat import ChatSettings, open_conversation

        settings = ChatSettings(system=system, temperature=temperature, seed=seed)
        return open_conversation(self.home, str(self.path), settings=settings, emit=silent)

    def chat(self, question: str) -> str:
        """The model's answer to one question; nothing is remembered."""
        self._conversation.reset()
        return self._conversation.answer(question).answer

    def generate(self, prompts: Sequence[str]) -> list[str]:
        """An answer to each prompt, one after the other."""
        return [self.chat(prompt) for prompt in prompts]

    def merge(self, folder: str | Path, *, precision: str = "fp32") -> Merged:
        """Write adapter and base as one plain transformers folder; says by how much its outputs moved.

        Raises:
            UserError: There is no adapter, it cannot be merged, or the folder exists.
        """
        from tunesmith.api import merge

        return merge(self, folder, precision=precision)

    @property
    def plan(self) -> Plan:
        """What its recipe takes on this machine, told anew; what it took is in `report`."""
        from tunesmith.api import plan

        return plan(self.recipe, home=self.home.path)

    def resume(self) -> Run:
        """Go on where it was stopped, bit for bit."""
        from tunesmith.api import resume

        return resume(self)

    def __repr__(self) -> str:
        loss = self.best.get("validation_loss")
        tail = f", validation_loss={number(loss)}" if loss is not None else ""
        return f"Run({str(self.path)!r}, {self.state}{tail})"

    def _repr_html_(self) -> str:
        points = [
            (record["step"], record["validation_loss"])
            for record in self.folder.read_metrics()
            if record.get("validation_loss") is not None
        ]
        report = self.report
        before = {score["metric"]: score for score in report.get("before", {}).get("scores", ())}
        after = {score["metric"]: score for score in report.get("after", {}).get("scores", ())}
        rows = [(name, score_interval(before.get(name)), score_interval(score)) for name, score in after.items()]
        table = html_table(("", "before", "after"), rows) if rows else ""
        return html_text(repr(self)) + table + (loss_curve(points) if len(points) > 1 else "")
