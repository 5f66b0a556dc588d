"""A finished comparison as a small JSON that is kept with the repository, and the tables that pages make of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.publish import write_json
from tunesmith.core.quantities import count, duration, gib, interval, millions, number, signed

Report = Mapping[str, Any]
DROPPED_FROM_ROWS = ("curve", "fixed", "broken", "run", "runs", "is_reused", "prompting", "general_perplexity")
SHOWN_PACKAGES = ("tunesmith", "torch", "transformers", "peft", "scikit-learn")


def keep(comparison: Path, to: Path) -> None:
    """Write what a comparison measured, without answers, curves and places on this machine, to `to`.

    Raises:
        UserError: There is no finished comparison in the folder.
    """
    file = comparison / "report.json"
    if not file.is_file():
        raise UserError("there is no finished comparison here.", code="no_comparison", where=str(comparison))
    report = json.loads(file.read_text(encoding="utf-8"))
    recipe = report["recipe"]
    environment = {key: value for key, value in report["environment"].items() if key != "command"}
    settings = {key: recipe[key] for key in ("train", "generate", "objective")}
    whole = {
        key: report[key]
        for key in (
            "name", "at", "seconds", "metric", "metric_title", "higher_is_better", "is_rate", "num_rows", "noun",
            "held_out", "seeds", "reference", "metrics", "recipe_fingerprint",
        )
    }  # fmt: skip
    whole |= {
        "model": named(recipe["model"]),
        "data_name": _data_name(recipe["data"]["source"]),
        "settings": {**settings, "tries": recipe["compare"]["tries"]},
        "data": {key: report["data"][key] for key in ("rows", "files", "contents_sha256")},
        "environment": environment,
        "rows": [_kept_row(row) for row in report["rows"]],
    }
    write_json(to, whole)


def _data_name(source: Any) -> str:
    """The folder's name of a file, or the file's where it stands alone."""
    place = Path(source if isinstance(source, str) else source[0]["path"])
    return place.parent.name or place.stem


def _kept_row(row: Report) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if key not in (*DROPPED_FROM_ROWS, *row["scores"])}
    scores = {}
    for key, score in row["scores"].items():
        details = {name: score["details"][name] for name in ("seeds", "seeds_sd") if name in score["details"]}
        scores[key] = {**{name: score[name] for name in ("value", "low", "high", "n")}, **details}
    return {**kept, "scores": scores, "model": {**row["model"], "name": named(row["model"])}}


def named(model: Report) -> str:
    """A model's name; of a folder elsewhere only its last part leaves this machine."""
    name = str(model["name"])
    return Path(name).name if Path(name).is_absolute() else name


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are set to the right."""
    marks = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, marks, *rows))


def quality_table(report: Report) -> str:
    """Each row's headline score with its interval, the spread over seeds, and its difference to the reference."""
    others = [key for key in report["metrics"] if key != report["metric"]]
    titles = [
        "",
        f"{report['metric_title']}, mean of seeds",
        "95 % interval",
        "spread over seeds (sd)",
        f"against {_reference(report)}",
        *(report["metrics"][key]["title"] for key in others),
        "learning rate (tried)",
    ]
    return table(titles, [_quality_row(report, row, others) for row in report["rows"]])


def _reference(report: Report) -> str:
    """The row that all are set against, or what several are called."""
    names = {row.get("against", report["reference"]) for row in report["rows"] if row["against_reference"]}
    return report["reference"] if names <= {report["reference"]} else "its counterpart"


def _quality_row(report: Report, row: Report, others: Sequence[str]) -> list[str]:
    score = row["scores"][report["metric"]]
    return [
        row["name"],
        f"**{points(report, score['value'])}**",
        f"{points(report, score['low'])} to {points(report, score['high'])}",
        points(report, score["seeds_sd"]) if "seeds_sd" in score else "–",
        against(report, row),
        *(number(row["scores"][key]["value"]) for key in others),
        rates(row),
    ]


def cost_table(report: Report) -> str:
    """What each row took: trained parameters, disk, time, memory, seconds per answer."""
    titles = [
        "",
        "trained parameters",
        "of all",
        "on disk",
        "epochs",
        "training, processor time",
        "training, wall clock",
        "peak memory",
        "seconds per answer",
    ]
    return table(titles, [_cost_row(row) for row in report["rows"]])


def _cost_row(row: Report) -> list[str]:
    trained, total = row["trainable_parameters"], row["total_parameters"]
    is_method = row["kind"] == "fine-tuning"
    cpu, wall = row["train_cpu_seconds"], row["train_whole_seconds"]
    answer = row["seconds_per_answer"]
    return [
        row["name"],
        millions(trained) if trained else "–",
        f"{trained / total:.2%}".replace("%", " %") if is_method and total else "–",
        gib(row["disk_bytes"]) if row["disk_bytes"] else "–",
        f"{row['epochs']:.3g}" if row["epochs"] else "–",
        duration(cpu) if cpu is not None else "–",
        duration(wall) if wall is not None else "–",
        gib(row["peak_memory_bytes"]),
        f"{answer:.2g}" if answer is not None else "–",
    ]


def points(report: Report, value: float) -> str:
    """A score as it is read: rates as per cent with one decimal, everything else with three digits."""
    return f"{100 * value:.1f} %" if report["is_rate"] else number(value)


def gap(report: Report, value: float) -> str:
    """A difference of scores with its sign, rates in points."""
    return signed(100 * value, 1) if report["is_rate"] else signed(value, 2 if abs(value) < 10 else 1)


def against(report: Report, row: Report) -> str:
    """The difference to the reference with its interval, or a dash for the reference itself."""
    found = row["against_reference"]
    if found is None:
        return "–"
    return f"{gap(report, found['value'])} [{gap(report, found['low'])}, {gap(report, found['high'])}]"


def rates(row: Report) -> str:
    """The learning rate that was chosen, with those tried; of a baseline its C. A dagger: at the edge of them."""
    edge = " †" if row["is_at_edge"] else ""
    if row["notes"]:
        return f"C = {row['notes']['C']:g} ({', '.join(row['notes']['tried'])}){edge}"
    if row["learning_rate"] is None:
        return "the recipe's, or its own" if row["kind"] == "fine-tuning" else "–"
    tried = [f"{found['lr']:g}" for found in row["tries"]]
    return f"{row['learning_rate']:g}" + (f" ({', '.join(tried)}){edge}" if tried else "")


def how_measured(report: Report) -> str:
    """Machine, versions, date and data, in one paragraph."""
    environment = report["environment"]
    machine = environment.get("machine_details", {})
    parts = [machine.get("processor") or environment["machine"], f"{environment['num_cores']} cores"]
    if machine.get("device_name"):
        parts.append(machine["device_name"])
    packages = environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in SHOWN_PACKAGES if name in packages)
    rows = report["data"]["rows"]
    sizes = f"{count(rows['train'])} training and {count(rows['validation'])} validation rows"
    return (
        f"Measured on {report['at'][:10]}, {', '.join(map(str, parts))}; Python {environment['python']}, {versions}. "
        f"{sizes}; scored on {count(report['num_rows'])} {report['held_out']} rows; seeds "
        f"{', '.join(map(str, report['seeds']))}. Recipe SHA-256 {report['recipe_fingerprint'][:16]}…"
    )


def interval_text(report: Report, row: Report) -> str:
    """92.6 % [91.7, 93.4], or 26.1 [25.1, 27.1]."""
    score = row["scores"][report["metric"]]
    if not report["is_rate"]:
        return interval(score["value"], score["low"], score["high"])
    return f"{100 * score['value']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
