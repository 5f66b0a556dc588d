"""Why an often quoted notebook finds adapters points behind full fine-tuning: two faults, each put back on purpose.

It left out the residual connection inside the adapter, so that what the frozen layer had learnt passes a random
bottleneck, and it kept a classifier's random head frozen. Each variant below is the same encoder, rows, batches and
steps. With several learning rates every variant is trained with each, and the best by validation stands in the table.

    full               every weight trains
    adapters           as published
    no residual        f(h) in place of h + f(h), both matrices random at first
    frozen head        as published, but the new head stays random
    both               no residual and a frozen head

    python benchmarks/adapter_faults.py --model FOLDER    all rows, 3 seeds, both styles: about 2.5 hours on one core
    python benchmarks/adapter_faults.py --model FOLDER --shots 8 --epochs 3 --seeds 1 --styles houlsby    minutes

It goes on where it was stopped: a training that stands in the results with the same settings is not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from tunesmith import __version__
from tunesmith.core.events import Event
from tunesmith.core.publish import write_json
from tunesmith.core.run import RunFolder
from tunesmith.data.load import load_data
from tunesmith.models.anatomy import num_parameters
from tunesmith.models.bottleneck import BottleneckLayer
from tunesmith.models.machine import processor_name
from tunesmith.recipe import make_recipe
from tunesmith.steps.train import make_loop
from tunesmith.steps.train_work import Work, score_rows

HERE = Path(__file__).parent
FAULTS = ("", "no residual", "frozen head", "both")
RATES = {"full": (3e-4,), "adapters": (1e-3,)}


def main() -> None:
    options = read_options()
    kept = json.loads(options.out.read_text(encoding="utf-8"))["runs"] if options.out.is_file() else []
    wanted = [
        settings(options, style, fault, rate, seed)
        for seed in options.seeds
        for style, fault in variants(options.styles)
        for rate in options.rates or RATES["adapters" if style else "full"]
    ]
    torch.set_num_threads(options.threads)
    for number, one in enumerate(wanted, 1):
        if not any(one == {key: run[key] for key in one} for run in kept):
            kept.append({**one, **train(options, one)})
            save(options, kept)
        run = next(run for run in kept if one == {key: run[key] for key in one})
        print(
            f"{number}/{len(wanted)} {run['variant']}, seed {run['seed']}, lr {run['lr']:g}: "
            f"accuracy {run['accuracy']:.4f}, validation loss {run['validation_loss']:.4f}, {run['seconds']:.0f} s",
            flush=True,
        )
    save(options, kept)
    print((options.out.with_suffix(".md")).read_text(encoding="utf-8"))


def read_options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an encoder: a folder or a hub id")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/banking77"), help="train.csv and test.csv")
    parser.add_argument("--shots", type=int, default=0, help="training rows per class; 0: all")
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rates", type=float, nargs="+", default=[], help=f"learning rates to try; else {RATES}")
    parser.add_argument("--styles", nargs="+", default=["houlsby", "pfeiffer"], choices=["houlsby", "pfeiffer"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "adapter_faults.json")
    return parser.parse_args()


def variants(styles: list[str]) -> list[tuple[str, str]]:
    """(style, fault); an empty style is full fine-tuning."""
    return [("", ""), *((style, fault) for style in styles for fault in FAULTS)]


def settings(options: Any, style: str, fault: str, rate: float, seed: int) -> dict[str, Any]:
    """What decides the outcome of one training."""
    name = ", ".join(part for part in (style or "full", fault) if part)
    return {
        "variant": name,
        "style": style,
        "fault": fault,
        "model": Path(options.model).name if Path(options.model).is_dir() else options.model,
        "shots": options.shots,
        "epochs": options.epochs,
        "lr": rate,
        "seed": seed,
    }


def train(options: Any, one: dict[str, Any]) -> dict[str, Any]:
    """Train one variant; its accuracy on the official test rows."""
    started = time.perf_counter()
    recipe = make_recipe(
        {
            "name": "adapter-faults",
            "model": {"name": options.model, "precision": "fp32"},
            "data": {
                "source": str(options.data / "train.csv"),
                "test": str(options.data / "test.csv"),
                "split": {"validation": 0.05},
                "shots": options.shots,
            },
            "method": {"name": "bottleneck", "style": one["style"]} if one["style"] else {"name": "full"},
            "objective": {"name": "classification"},
            "train": {
                "epochs": one["epochs"],
                "tokens_per_step": 1024,
                "lr": one["lr"],
                "validations": 5,
                "patience": 0,
            },
            "evaluate": [{"name": "accuracy"}],
            "seed": one["seed"],
        }
    )
    work = Work.prepare(recipe, load_data(recipe.data, seed=recipe.seed), silent, is_scored=False)
    break_it(work.learner.model, one["fault"], one["seed"])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        state = make_loop(RunFolder(Path(folder)), work).fit(lambda step: None)
    work.learner.model.eval()
    seconds = time.perf_counter() - started
    scored = replace(work.loaded, model=work.learner.model)
    (score,) = score_rows(recipe, scored, work.held_out, silent, "scoring").scores
    return {
        "accuracy": score.value,
        "low": score.low,
        "high": score.high,
        "num_test_rows": score.num_rows,
        "num_train_rows": len(work.rows.features),
        "validation_loss": state.best_loss,
        "trainable": num_parameters(work.learner.model)[0],
        "seconds": round(seconds, 1),
    }


def break_it(model: nn.Module, fault: str, seed: int) -> None:
    """Put the faults into a model whose adapters are right."""
    if fault in ("no residual", "both"):
        generator = torch.Generator().manual_seed(seed)
        for layer in (module for module in model.modules() if isinstance(module, BottleneckLayer)):
            for up in layer.bottleneck_up.values():
                bound = up.in_features**-0.5  # nn.Linear's own; zero would let nothing through
                nn.init.uniform_(up.weight, -bound, bound, generator=generator)
            layer.forward = MethodType(without_residual, layer)
    if fault in ("frozen head", "both"):
        heads = [parameter for name, parameter in model.named_parameters() if ".modules_to_save." in name]
        assert heads, "the model has no head that trains"
        for parameter in heads:
            parameter.requires_grad_(False)


def without_residual(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """f(h) in place of h + f(h); with Pfeiffer's place norm(f(norm(z))) in place of norm(z + f(norm(z)))."""
    y: torch.Tensor = self._base(x, *args, **kwargs)
    for name in self._at_work("after", "around norm"):
        y = self._adapter(name, y) if self.site[name].place == "after" else self._base(self._adapter(name, y))
    return y


def save(options: Any, runs: list[dict[str, Any]]) -> None:
    """Every training, and the table of the best rate of each variant."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    versions = f"tunesmith {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    machine = f"{processor_name()}, {options.threads} threads, {versions}"
    summary = summarise(runs)
    whole = {"benchmark": "adapter_faults", "date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine}
    write_json(options.out, {**whole, "summary": summary, "runs": runs})
    lines = [
        f"# Adapters with and without two faults\n\n{whole['date']} · {machine}\n",
        "| variant | rows | epochs | learning rate | test accuracy, mean of seeds | seeds | against full |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in summary:
        gap = "" if row["against_full"] is None else f"{100 * row['against_full']:+.1f} points"
        lines.append(
            f"| {row['variant']} | {row['num_train_rows']:,} | {row['epochs']:g} | {row['lr']:g} | "
            f"{100 * row['accuracy']:.1f} % ± {100 * row['spread']:.1f} | {len(row['seeds'])} | {gap} |"
        )
    lines.append(
        "\n± is the standard deviation over seeds. The learning rate is the best of those tried, by validation."
    )
    options.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per model, rows, epochs and variant: the rate with the lowest mean validation loss, and its mean accuracy."""
    groups: dict[tuple[Any, ...], dict[float, list[dict[str, Any]]]] = {}
    for run in runs:
        place = (run["model"], run["shots"], run["epochs"], run["variant"])
        groups.setdefault(place, {}).setdefault(run["lr"], []).append(run)
    rows: list[dict[str, Any]] = []
    for (model, shots, epochs, variant), rates in groups.items():
        most = max(len(one) for one in rates.values())
        whole = {rate: one for rate, one in rates.items() if len(one) == most}  # a rate half done is not compared
        rate = min(whole, key=lambda one: statistics.fmean(run["validation_loss"] for run in whole[one]))
        found = [run["accuracy"] for run in whole[rate]]
        rows.append(
            {
                "variant": variant,
                "model": model,
                "shots": shots,
                "num_train_rows": whole[rate][0]["num_train_rows"],
                "epochs": epochs,
                "lr": rate,
                "accuracy": statistics.fmean(found),
                "spread": statistics.stdev(found) if len(found) > 1 else 0.0,
                "seeds": sorted(run["seed"] for run in whole[rate]),
                "trainable": whole[rate][0]["trainable"],
            }
        )
    fulls = {(row["model"], row["shots"], row["epochs"]): row["accuracy"] for row in rows if row["variant"] == "full"}
    for row in rows:
        full = fulls.get((row["model"], row["shots"], row["epochs"]))
        row["against_full"] = None if full is None or row["variant"] == "full" else row["accuracy"] - full
    return rows


def silent(event: Event) -> None:
    """The table is the only thing said."""


if __name__ == "__main__":
    main()
