"""The trials of a search in `study.db`, kept by optuna: who proposes, who ends early, and what came of each.

Only one process writes. Every proposal is a function of the recipe's seed, the trial's number and the finished trials,
so that a search of one job that was killed and resumed proposes what it would have proposed anyway.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.space import Assignment, Choice, Range, label
from tunesmith.steps.search_plan import SearchPlan
from tunesmith.steps.search_trial import Result

if TYPE_CHECKING:
    import optuna

STORE = "study.db"
MOST_ATTEMPTS = 3
"""A trial during which the process died is tried so many times; it may be the trial that kills it."""
LEAST_TO_JUDGE = 4
"""Finished trials before the median ends others early."""
FIRST_JUDGED = 2
"""The first validation at which a trial may end early."""
REDUCTION = 3
"""Successive halving lets a third of the trials go on at each rung (the eta of arXiv:1603.06560)."""
SIGNIFICANT = 3
"""Digits of proposed numbers, so that recipes stay readable."""


@dataclass(frozen=True)
class Asked:
    """A trial that is to be run."""

    number: int
    chosen: Assignment
    trial: optuna.Trial


class Study:
    """Proposes trials and remembers what came of them."""

    def __init__(self, plan: SearchPlan, folder: Path) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.plan = plan
        self._optuna = optuna
        self._study = optuna.create_study(
            storage=f"sqlite:///{folder / STORE}",
            study_name=plan.recipe.name or "search",
            direction="maximize" if plan.higher_is_better else "minimize",
            pruner=make_pruner(plan.settings.pruner),
            load_if_exists=True,
        )
        self._mend()
        if plan.settings.sampler == "grid" and not self._study.trials:
            for number, chosen in enumerate(plan.combinations):
                self._enqueue(chosen, number, 1)

    def next(self) -> Asked | None:
        """The next trial, None when there have been enough."""
        while True:
            waiting = [one for one in self._study.trials if one.state.name == "WAITING"]
            number = len({one.user_attrs["number"] for one in self._study.trials if "number" in one.user_attrs})
            if not waiting and number >= self.plan.num_trials:
                return None
            self._study.sampler = make_sampler(self.plan, waiting[0].user_attrs["number"] if waiting else number)
            trial = self._study.ask()
            if "number" not in trial.user_attrs:
                trial.set_user_attr("number", number)
                trial.set_user_attr("attempt", 1)
            chosen = self._choose(trial)
            trial.set_user_attr("chosen", chosen)
            asked = Asked(trial.user_attrs["number"], chosen, trial)
            if trial.user_attrs["attempt"] <= MOST_ATTEMPTS:
                return asked
            fault = f"the process died {MOST_ATTEMPTS} times while it ran."
            self.tell(asked, Result("failed", code="process_died", fault=fault))

    def report(self, asked: Asked, validation: int, loss: float) -> bool:
        """Whether the trial ends after this validation (from 1) with this loss."""
        if not math.isfinite(loss):
            loss = math.inf
        asked.trial.report(-loss if self.plan.higher_is_better else loss, validation)
        return bool(asked.trial.should_prune())

    def tell(self, asked: Asked, result: Result) -> None:
        """Remember what came of a trial."""
        asked.trial.set_user_attr("result", plain(result.to_dict()))
        self._close(asked.trial, result.state, result.value)

    def put_back(self, asked: Asked) -> None:
        """The user stopped it: it is to be tried again, as if it had not been."""
        self._enqueue(asked.chosen, asked.number, asked.trial.user_attrs["attempt"])
        self._close(asked.trial, "failed", None)

    def trials(self) -> list[dict[str, Any]]:
        """What was tried, in order: `number`, `chosen` and all of `Result`."""
        found = [one for one in self._study.trials if "result" in one.user_attrs]
        rows = [
            {"number": one.user_attrs["number"], "chosen": one.user_attrs["chosen"], **one.user_attrs["result"]}
            for one in found
        ]
        return sorted(rows, key=lambda row: int(row["number"]))

    def importance(self) -> dict[str, float]:
        """The share of the value's variance over the space that each key explains, greatest first (fANOVA, Hutter et
        al. 2014, over a random forest of the complete trials); empty where there are too few or all are alike."""
        complete = [one for one in self._study.trials if one.state.name == "COMPLETE"]
        if len(complete) < LEAST_TO_JUDGE or len({one.value for one in complete}) == 1:
            return {}
        evaluator = self._optuna.importance.FanovaImportanceEvaluator(seed=self.plan.recipe.seed)
        try:
            found = self._optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        except (RuntimeError, ValueError):  # optuna's words for trees without a split: every value is alike
            return {}
        return {key: float(share) for key, share in found.items() if math.isfinite(share)}

    def _choose(self, trial: optuna.Trial) -> Assignment:
        chosen: Assignment = {}
        for key, axis in self.plan.space.axes.items():
            if not self.plan.space.is_active(key, chosen):
                continue
            if isinstance(axis, Choice):
                labels: list[Any] = list(axis.labels())
                chosen[key] = axis.options[labels.index(trial.suggest_categorical(key, labels))]
            elif axis.is_whole:
                low, high, step = int(axis.low), int(axis.high), int(axis.step or 1)
                chosen[key] = trial.suggest_int(key, low, high, step=step, log=axis.is_log)
            else:
                value = trial.suggest_float(key, axis.low, axis.high, step=axis.step, log=axis.is_log)
                chosen[key] = rounded(value, axis)
        return chosen

    def _enqueue(self, chosen: Assignment, number: int, attempt: int) -> None:
        waiting = [one.user_attrs["number"] for one in self._study.trials if one.state.name == "WAITING"]
        if number not in waiting:
            values = {key: label(value) for key, value in chosen.items()}
            self._study.enqueue_trial(values, user_attrs={"number": number, "attempt": attempt})

    def _mend(self) -> None:
        """What was running when the process died is closed as it ended, or waits again."""
        for one in self._study.trials:
            if one.state.name != "RUNNING":
                continue
            result = one.user_attrs.get("result")
            if result is not None:
                self._close(one.number, result["state"], result["value"])
                continue
            if "chosen" in one.user_attrs:
                self._enqueue(one.user_attrs["chosen"], one.user_attrs["number"], one.user_attrs["attempt"] + 1)
            self._close(one.number, "failed", None)

    def _close(self, trial: optuna.Trial | int, state: str, value: float | None) -> None:
        states = self._optuna.trial.TrialState
        if state == "complete":
            self._study.tell(trial, value)
        else:
            self._study.tell(trial, state=states.PRUNED if state == "pruned" else states.FAIL)


def make_sampler(plan: SearchPlan, number: int) -> Any:
    """Who proposes the trial of this number. TPE (Bergstra et al. 2011) begins with a third of the trials, 4 to 10, at
    random; it looks at keys together, those apart that do not always occur together."""
    from optuna.samplers import RandomSampler, TPESampler

    seed = (plan.recipe.seed * 1_000_003 + number) % 2**32
    if plan.settings.sampler != "tpe":
        return RandomSampler(seed=seed)
    at_random = min(10, max(4, plan.num_trials // 3))
    return TPESampler(seed=seed, n_startup_trials=at_random, multivariate=True, group=True, constant_liar=True)


def make_pruner(name: str) -> Any:
    """Who ends trials early, by the losses of their validations, which are numbered from 1."""
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    if name == "median":
        return MedianPruner(n_startup_trials=LEAST_TO_JUDGE, n_warmup_steps=FIRST_JUDGED)
    if name == "halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
    return NopPruner()


def rounded(value: float, axis: Range) -> float:
    """The value with three significant digits, still within its range."""
    return min(axis.high, max(axis.low, float(f"{value:.{SIGNIFICANT}g}")))


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values: numbers that are not finite become nothing."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list):
            out[key] = [one if not isinstance(one, float) or math.isfinite(one) else None for one in value]
        else:
            out[key] = None if isinstance(value, float) and not math.isfinite(value) else value
    return out
