"""One estimate of a plan: a sketch of the model, its micro-batches traced, memory and time added up."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.load import DataSet
from tunesmith.kernels.native_passes import used
from tunesmith.models.configuration import context_length
from tunesmith.models.load import load_tokenizer
from tunesmith.models.machine import Precision
from tunesmith.models.opened import Opened
from tunesmith.models.shapes import shape_of
from tunesmith.models.source import BUILT_IN, resolve
from tunesmith.objectives.base import Objective
from tunesmith.recipe import ModelSettings, Recipe
from tunesmith.steps.plan_data import Layout, SampleRows, lay_out, sample_rows, size
from tunesmith.steps.plan_machine import Target
from tunesmith.steps.train_choices import threads_here
from tunesmith.steps.train_work import MAX_VALIDATION_ANSWERS
from tunesmith.training.learner import Learner
from tunesmith.training.memory import GAPS, SLACK, Memory, Sizes, memory_of
from tunesmith.training.native import wished
from tunesmith.training.order import tokens_at_once
from tunesmith.training.pace import Pace, probed
from tunesmith.training.sketch import sketch
from tunesmith.training.trace import Trace, Tracer, Work

CHARACTERS_PER_TOKEN = 4.2
"""Of English text and a vocabulary of 30,000 tokens or more, where the tokenizer itself is not here."""
MOST_PROBED_BYTES = 2**30
"""Weights of the small real model that is timed."""
MOST_PROBED_SECONDS = 4.0
"""Of one of its micro-batches, by the rates alone."""
SNAPSHOT_SHARE = 0.5
"""Of free memory that a copy for a checkpoint may take with `train.snapshot: auto` (training/background.py)."""
ANSWERS_AT_ONCE = 32
_ALIKE = 0.9
"""Of the largest micro-batch's size: from here on it stands for the typical one, too."""
GENERATING = ("answers",)


@dataclass(frozen=True)
class Draft:
    """What all estimates of one plan share: the configuration, the tokenizer and the rows."""

    config: Any
    tokenizer: Any
    name: str
    rows: SampleRows
    validation: SampleRows
    num_held_out: int
    labels: tuple[str, ...]
    notes: tuple[str, ...]

    @staticmethod
    def of(recipe: Recipe, data: DataSet) -> Draft:
        """The configuration read, and a sample of the rows."""
        config, tokenizer, notes = configuration(recipe.model)
        objective = recipe.objective
        assert isinstance(objective, Objective), objective
        context = context_length(config) - recipe.method.num_positions()
        longest = context if recipe.data.max_length == "model" else min(recipe.data.max_length, context)
        sides = [
            sample_rows(side, objective, tokenizer, max_length=10**5 if notes else longest, labels=data.labels)
            for side in (data.train, data.validation or data.train[:1])
        ]
        if notes:  # the tokenizer is not the model's own
            some = [row.input_ids for row in sides[0].features[:100]]
            characters = sum(len(tokenizer.decode(ids)) for ids in some) / sum(len(ids) for ids in some)
            sides = [side.scaled(characters / CHARACTERS_PER_TOKEN, longest) for side in sides]
        answered = len(data.test) or min(len(data.validation), MAX_VALIDATION_ANSWERS)
        labels = tuple(data.labels)
        return Draft(config, tokenizer, recipe.model.name, sides[0], sides[1], answered, labels, notes)

    def sketch(self, recipe: Recipe, precision: Precision, *, is_cuda: bool, is_real: bool = False) -> Learner:
        """The learner of a recipe without weights, or with random ones."""
        assert isinstance(recipe.objective, Objective), recipe.objective
        return sketch(
            copy.deepcopy(self.config),
            self.tokenizer,
            name=self.name,
            method=recipe.method,
            objective=recipe.objective,
            labels=self.labels,
            precision=precision,
            packing=recipe.train.packing,
            quantize=recipe.model.quantize,
            is_cuda=is_cuda,
            is_real=is_real,
        )


@dataclass(frozen=True)
class Estimate:
    """Memory and time of one recipe on one machine."""

    memory: Memory
    sizes: Sizes
    layout: Layout
    precision: Precision
    is_packed: bool
    factor: float
    """By how much real work is slower than the rates say; measured where it was probed."""
    is_probed: bool
    num_recomputed: int
    training_seconds: float
    validation_seconds: float
    scoring_seconds: float
    """Of the held-out rows, before and after."""

    @property
    def seconds(self) -> float:
        return self.training_seconds + self.validation_seconds + self.scoring_seconds

    @property
    def tokens_per_second(self) -> float:
        """While training, without padding."""
        return self.layout.num_steps * self.layout.tokens / self.training_seconds

    def times(self) -> dict[str, float]:
        """Seconds of each part, by name."""
        names = ("training", "validation", "scoring")
        return {name: getattr(self, f"{name}_seconds") for name in names}


def estimate(
    draft: Draft,
    recipe: Recipe,
    target: Target,
    *,
    is_probed: bool = False,
    factor: float = 0.0,
    is_rough: bool = False,
) -> Estimate:
    """Memory and time of a recipe over the draft's rows.

    `factor` is a probe's, taken where this recipe is not probed itself. A rough time goes by the largest micro-batch
    alone.

    Raises:
        UserError: The method or the objective refuses the model.
    """
    precision = target.precision if recipe.model.precision == "auto" else recipe.model.precision
    learner = draft.sketch(recipe, precision, is_cuda=target.is_cuda)
    is_packed = learner.layout.is_packed
    train = recipe.train
    at_once = tokens_at_once(train, target.device, precision)
    layout = lay_out(draft.rows, train, recipe.seed, is_packed=is_packed, micro_tokens=at_once)
    sizes = Sizes.of(learner, train, recipe.model.quantize)

    kept = _is_kept(recipe, learner, layout)
    if is_rough:
        layout = replace(layout, typical=layout.largest, small=layout.largest, steepest=layout.largest)
    elif size(layout.typical, is_packed=is_packed) > _ALIKE * size(layout.largest, is_packed=is_packed):
        layout = replace(layout, typical=layout.largest)
    tracer = Tracer(learner)
    with used(wished(train, learner.device).passes if target.is_here else None):
        costs = {rows: tracer.trace(rows) for rows in {layout.largest, layout.steepest, layout.typical, layout.small}}
    costliest = max((costs[layout.largest], costs[layout.steepest]), key=_held_bytes)
    states = _states_bytes(draft, recipe, learner, target, costliest, is_kept=kept)
    memory, recomputed = _memory(
        recipe, target, sizes, costliest, layout, states, precision, draft.config, is_packed=is_packed
    )
    pace = target.pace(precision)
    is_timed = False
    if factor:
        pace = Pace(pace.flops, pace.bytes_per_second, pace.operation_seconds, factor)
    if is_probed:
        timed = _probe(draft, recipe, precision, pace, layout, costs[layout.typical])
        is_timed, pace = timed is not None, timed or pace
    clock = _Clock(pace, layout, costs[layout.typical], costs[layout.small], is_packed)
    return Estimate(
        memory=memory,
        sizes=sizes,
        layout=layout,
        precision=precision,
        is_packed=is_packed,
        factor=pace.factor,
        is_probed=is_timed,
        num_recomputed=recomputed,
        training_seconds=clock.training(recipe, sizes, recomputed, has_states=kept),
        validation_seconds=train.validations * clock.forward(draft.validation.num_tokens),
        scoring_seconds=2 * clock.scoring(draft, recipe, sizes),
    )


class _Clock:
    """Times by a pace, for micro-batches of any size between and beyond two that were traced."""

    def __init__(self, pace: Pace, layout: Layout, typical: Trace, small: Trace, is_packed: bool) -> None:
        self.pace, self.layout = pace, layout
        self.typical, self.small = typical, small
        sizes = [size(rows, is_packed=is_packed) for rows in (layout.typical, layout.small)]
        self.size = max(1, sizes[0])
        self.rise = self.size - sizes[1]

    def at(self, places: float, of: Any) -> float:
        """`of(work)` of a micro-batch with so many places, on the line through the two that were traced."""
        high, low = of(self.typical.whole), of(self.small.whole)
        if self.rise <= 0 or high <= low:
            return float(high * places / self.size)
        return float(max(0.0, high + (high - low) / self.rise * (places - self.size)))

    def training(self, recipe: Recipe, sizes: Sizes, recomputed: int, *, has_states: bool) -> float:
        """All steps."""
        layout = self.layout
        each = layout.places / layout.micro_batches
        micro = self.at(each, self.pace.seconds)
        if recomputed:
            share = recomputed / max(1, sum(kind.number for kind in self.typical.kinds))
            micro += share * self.at(each, self.pace.forward_seconds)
        step = self.pace.optimizer_seconds(sizes.trained_bytes)
        steps = layout.num_steps
        whole = self.typical.whole
        held = whole.kept_bytes + whole.transient_bytes + sizes.trained_bytes + sizes.optimizer_bytes
        first = self.pace.first_seconds_per_byte * held
        if not has_states:
            return first + steps * (layout.micro_batches * micro + step)
        once = min(1.0, layout.steps_per_epoch / steps) * steps * layout.micro_batches
        frozen = self._frozen()
        above = max(0.0, micro - self.pace.seconds(frozen))
        return first + once * self.at(each, self.pace.forward_seconds) + steps * (layout.micro_batches * above + step)

    def forward(self, num_tokens: float) -> float:
        """Rows of so many tokens without a backward pass, in micro-batches of twice the size."""
        padding = self.layout.places / self.layout.tokens
        number = num_tokens * padding / (2 * self.size)
        return number * self.at(2 * self.size, self.pace.forward_seconds)

    def scoring(self, draft: Draft, recipe: Recipe, sizes: Sizes) -> float:
        """Every held-out row scored once."""
        assert recipe.evaluate != "auto", recipe.evaluate
        rows = draft.num_held_out
        tokens = rows * draft.validation.num_tokens / max(1, draft.validation.number)
        needs = {metric.needs for metric in recipe.evaluate}
        passes = len(needs - set(GENERATING))
        seconds = passes * self.forward(tokens)
        if needs & set(GENERATING):
            written = min(recipe.generate.max_new_tokens, 1.3 * _answer_tokens(draft.validation))
            work = self.typical.whole
            at_once = min(ANSWERS_AT_ONCE, max(1, rows))
            reading = sizes.weight_bytes / self.pace.bytes_per_second
            computing = 2 * sizes.total * at_once / self.pace.flops
            calling = work.operations / 3 * self.pace.operation_seconds * 4  # modules, caches and the loop in Python
            one = max(reading, computing) + calling
            seconds += self.forward(tokens) + (rows / at_once + 12) * written * one
        return seconds

    def _frozen(self) -> Work:
        """What the frozen blocks take of a typical micro-batch."""
        kinds = [kind for kind in self.typical.kinds if kind.is_frozen]
        total = Work(*[0.0] * 8)
        for kind in kinds:
            total = total.plus(kind.each, kind.number)
        return total


def configuration(settings: ModelSettings) -> tuple[Any, Any, tuple[str, ...]]:
    """The configuration and a tokenizer of a model that may not be here, and notes on what stands in for it.

    Raises:
        UserError: It is neither a folder nor a published model whose shape is known.
    """
    if settings.config:
        from tunesmith.models.fresh import make_config

        tokenizer = load_tokenizer(settings)
        return make_config(settings.config, tokenizer), tokenizer, ()
    source = resolve(settings.name)
    if isinstance(source, Path):
        from tunesmith.models.continuing import is_adapter, root_of

        root, name = (source, settings.name) if not is_adapter(source) else root_of(source, settings.name)[:2]
        opened = Opened(root, name, trust_remote_code=settings.trust_remote_code)
        return opened.config(), load_tokenizer(settings), ()
    shape = shape_of(settings.name)
    if shape is None:
        opened = Opened(source, settings.name, settings.revision, settings.trust_remote_code)
        return opened.config(), opened.tokenizer(), ()
    from transformers import AutoConfig

    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    note = f"the shape of {settings.name} is from a table, and a token is taken for {CHARACTERS_PER_TOKEN} characters"
    return config, load_tokenizer(ModelSettings(name=BUILT_IN)), (note,)


def _memory(  # noqa: PLR0913, PLR0917 - as above
    recipe: Recipe,
    target: Target,
    sizes: Sizes,
    largest: Trace,
    layout: Layout,
    states: int,
    precision: Precision,
    config: Any,
    *,
    is_packed: bool,
) -> tuple[Memory, int]:
    """The memory, and how many blocks are computed again; `auto` takes as many as fitting needs."""
    depth = sum(kind.number for kind in largest.kinds)
    snapshot = 0
    if recipe.train.snapshot != "off" and not target.is_cuda:
        snapshot = sizes.trained_bytes + sizes.optimizer_bytes
        if recipe.train.snapshot == "auto" and snapshot > SNAPSHOT_SHARE * target.memory_bytes:
            snapshot = 0
    answer = sizes.weight_bytes
    if recipe.method.trains_base_weights:
        answer = sizes.total * (2 if precision == "bf16" else 4)
    stored = 2 if recipe.method.is_adapter and str(getattr(config, "dtype", "")).endswith("16") else 4

    def told(number: int) -> Memory:
        return memory_of(
            sizes,
            largest,
            accumulates=layout.micro_batches > 1.05,
            recomputed=number,
            states_bytes=states,
            snapshot_bytes=snapshot,
            has_early_snapshot=recipe.train.validations > 1 and layout.num_steps > 1,
            file_bytes=0 if target.is_cuda else stored * sizes.total,
            process_bytes=target.process_bytes,
            answer_bytes=answer,
            slack=1.0 if target.is_cuda else SLACK,
            gaps=1.0 if target.is_cuda else GAPS,
        )

    wish = recipe.train.recompute
    if wish != "auto":
        number = {"none": 0, "all": depth}.get(str(wish), min(depth, int(wish) if isinstance(wish, int) else 0))
        return told(number), number
    for number in range(depth + 1):
        found = told(number)
        if found.training_bytes <= target.memory_bytes:
            return found, number
    return told(depth), depth


def _held_bytes(cost: Trace) -> float:
    return cost.whole.kept_bytes + cost.whole.transient_bytes


def _states_bytes(draft: Draft, recipe: Recipe, learner: Learner, target: Target, cost: Trace, *, is_kept: bool) -> int:
    """The output of frozen blocks kept in memory (training/frozen.py); 0 where it goes to disk or is not kept."""
    if not is_kept or recipe.train.cache == "disk":
        return 0
    config = draft.config.get_text_config()
    width: Any = getattr(config, "hidden_size", None) or getattr(config, "d_model", 0)
    is_whole = all(kind.is_frozen for kind in cost.kinds) and learner.objective.task == "classify"
    places = (draft.rows.number + draft.validation.number) * (
        1 if is_whole else draft.rows.num_tokens / max(1, draft.rows.number)
    )
    taken = round(places * width * (2 if learner.precision == "bf16" and not recipe.method.trains_base_weights else 4))
    return taken if taken < target.memory_bytes / 4 else 0


def _is_kept(recipe: Recipe, learner: Learner, layout: Layout) -> bool:
    """Whether frozen blocks run once a row."""
    is_read_again = layout.num_steps > layout.steps_per_epoch
    frozen = recipe.method.num_frozen_blocks(learner.model) > 0
    return bool(frozen and is_read_again and recipe.train.cache != "off" and learner.objective.is_fixed)


def _answer_tokens(rows: SampleRows) -> float:
    """Learnt tokens of a row, on average."""
    return sum(row.weight for row in rows.features) / len(rows.features)


def _probe(
    draft: Draft, recipe: Recipe, precision: Precision, pace: Pace, layout: Layout, typical: Trace
) -> Pace | None:
    """The pace measured with two real blocks (of each kind); None where they are too large to try."""
    shallow = replace(draft, config=_shallow(draft.config, max(2, len(typical.kinds))))
    told = shallow.sketch(recipe, precision, is_cuda=False)
    if sum(one.numel() * one.element_size() for one in told.model.parameters()) > MOST_PROBED_BYTES:
        return None
    with used(wished(recipe.train, told.device).passes):
        work = Tracer(told).whole(layout.typical)
    if pace.seconds(work) > MOST_PROBED_SECONDS:
        return None
    learner, before = shallow.sketch(recipe, precision, is_cuda=False, is_real=True), torch.get_num_threads()
    torch.set_num_threads(int(threads_here(recipe.train.threads).value))
    try:
        with used(wished(recipe.train, learner.device).passes):
            return probed(pace, learner, layout.typical, work, recipe.train)
    finally:
        torch.set_num_threads(before)


def _shallow(config: Any, depth: int) -> Any:
    """The configuration with so many blocks."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers"):
        if isinstance(vars(text).get(name), int):
            setattr(text, name, depth)
    if isinstance(vars(text).get("decoder_layers"), int):
        text.decoder_layers = depth
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types)[:depth]
    return config
