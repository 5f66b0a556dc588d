"""docs/methods.md, made from the comparisons that are kept in benchmarks/results: every number and what follows of it.

    python -m tunesmith.reports.methods_page keep COMPARISON benchmarks/results/methods_NAME.json
    python -m tunesmith.reports.methods_page page benchmarks/results docs/methods.md

tests/reports/test_methods_page.py makes the page anew and compares, so it can neither be edited by hand nor grow old.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tunesmith.core.publish import write_text
from tunesmith.core.quantities import count, duration, millions
from tunesmith.reports.measured import (
    Report,
    cost_table,
    gap,
    how_measured,
    interval_text,
    keep,
    quality_table,
    table,
)

NOTE = "<!-- Made by `python -m tunesmith.reports.methods_page page benchmarks/results docs/methods.md`. -->\n"
FAULTS = "adapter_faults.json"
HOW_TO_READ = """\
Every row of a table has the same training rows, tokens per step, held-out rows and metrics. Methods are trained with
several seeds, which decide the order of the rows, the new weights and dropout; the split is the same for all. The
learning rate is chosen for each method by itself: each rate in brackets is tried with the first seed, and the lowest
validation loss is taken (†: it lies at the edge of what was tried, so another rate may be better still). Scores are
means over the seeds; the interval holds both chances, of the seeds and of the held-out rows (`core/seeds.py` says how),
and differences are paired by row. Processor time is that of the whole training, reading and saving included, all
threads together; other work on the machine changes it less than the wall clock. The baselines have no seed."""


def methods_page(reports: Sequence[Report], faults: Report | None) -> str:
    """The page from kept comparisons and, where there is one, the result of benchmarks/adapter_faults.py."""
    parts = [
        NOTE + "# What each way of fine-tuning gives, and what it costs",
        "`tunesmith plugins methods` lists the methods; here they are measured side by side, with the baselines a "
        "sceptic would run. To measure again: "
        + "; ".join(f"`tunesmith compare recipes/{report['name']}.yaml --jobs 2`" for report in reports)
        + ".",
        "\n".join(line for line in HOW_TO_READ.splitlines()),
        *(_section(report) for report in reports),
    ]
    if faults:
        parts.append(_faults_section(faults))
    return "\n\n".join(parts) + "\n"


def _section(report: Report) -> str:
    title = f"## {report['model']} on {report['data_name']}"
    reading = "\n".join(f"- {line}" for line in readings(report))
    return "\n\n".join(
        [
            title,
            how_measured(report),
            quality_table(report),
            "What it took:",
            cost_table(report),
            "What it says:",
            reading,
        ]
    )


def readings(report: Report) -> list[str]:
    """What follows from the numbers, as sentences."""
    rows = report["rows"]
    reference = next(row for row in rows if row["name"] == report["reference"])
    methods = [row for row in rows if row["kind"] == "fine-tuning" and row is not reference]
    lines = [f"{reference['name']} reaches {report['metric_title']} {interval_text(report, reference)}."]
    lines += _against_reference(report, methods)
    lines += _cheapest(report, reference, methods)
    lines += _untrained(report, [row for row in rows if row["kind"] != "fine-tuning"])
    lines += _forgetting(rows)
    edge = [row["name"] for row in rows if row["is_at_edge"]]
    if edge:
        lines.append(f"At the edge of the rates tried, so perhaps not at its best: {_listed(edge)}.")
    return lines


def is_equal(row: Report) -> bool:
    """Whether the interval of the difference to the reference holds zero."""
    found = row["against_reference"]
    return bool(found["low"] <= 0 <= found["high"])


def _against_reference(report: Report, methods: Sequence[Report]) -> list[str]:
    name, lines = report["reference"], []
    sign = 1 if report["higher_is_better"] else -1
    equal = [row for row in methods if is_equal(row)]
    better = [row for row in methods if not is_equal(row) and sign * row["against_reference"]["value"] > 0]
    worse = [row for row in methods if not is_equal(row) and sign * row["against_reference"]["value"] < 0]
    if equal:
        lines.append(f"Not to be told from {name} with these rows and seeds: {_differences(report, equal)}.")
    if better:
        lines.append(f"Better than {name} beyond chance: {_differences(report, better)}.")
    if worse:
        lines.append(f"Worse than {name} beyond chance: {_differences(report, worse)}.")
    adapters = [row for row in methods if row["method"]["name"] == "bottleneck"]
    if adapters and report["is_rate"] and report["higher_is_better"]:
        best = max(adapters, key=lambda row: row["against_reference"]["value"])
        lines.append(
            f"Houlsby et al. (arXiv:1902.00751) report adapters 0.4 points behind full fine-tuning on GLUE; here "
            f"{best['name']} is {gap(report, best['against_reference']['value'])} points from {name}."
        )
    return lines


def _cheapest(report: Report, reference: Report, methods: Sequence[Report]) -> list[str]:
    """The least cost among what reaches the reference or cannot be told from it."""
    sign = 1 if report["higher_is_better"] else -1
    good = [row for row in methods if is_equal(row) or sign * row["against_reference"]["value"] > 0]
    if not good:
        return []
    smallest = min(good, key=lambda row: row["trainable_parameters"])
    share = smallest["trainable_parameters"] / reference["trainable_parameters"]
    lines = [
        f"The fewest trained parameters that reach it: {smallest['name']}, "
        f"{millions(smallest['trainable_parameters'])} ({100 * share:.2g} % of {reference['name']}'s)."
    ]
    timed = [row for row in good if row["train_cpu_seconds"] is not None]
    if timed and reference["train_cpu_seconds"]:
        fastest = min(timed, key=lambda row: row["train_cpu_seconds"])
        ratio = fastest["train_cpu_seconds"] / reference["train_cpu_seconds"]
        lines.append(
            f"The least training time that reaches it: {fastest['name']}, {duration(fastest['train_cpu_seconds'])} of "
            f"processor time, {ratio:.2g} times {reference['name']}'s."
        )
    return lines


def _untrained(report: Report, rows: Sequence[Report]) -> list[str]:
    if not rows:
        return []
    best = (max if report["higher_is_better"] else min)(rows, key=lambda row: row["scores"][report["metric"]]["value"])
    found = best["against_reference"]
    side = "not to be told from it" if is_equal(best) else f"{gap(report, found['value'])} against it"
    return [f"The best row without fine-tuning is {best['name']}: {interval_text(report, best)}, {side}."]


def _forgetting(rows: Sequence[Report]) -> list[str]:
    known = [row for row in rows if row["forgets"] is not None]
    if not known:
        return []
    most, least = max(known, key=lambda row: row["forgets"]), min(known, key=lambda row: row["forgets"])
    return [
        f"Perplexity on general English grows most with {most['name']} ({100 * most['forgets']:+.0f} %) and least with "
        f"{least['name']} ({100 * least['forgets']:+.0f} %)."
    ]


def _differences(report: Report, rows: Sequence[Report]) -> str:
    return _listed([f"{row['name']} ({gap(report, row['against_reference']['value'])})" for row in rows])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _faults_section(faults: Report) -> str:
    """The often quoted notebook: which of its two faults cost what."""
    rows = [
        [
            row["variant"],
            f"{100 * row['accuracy']:.1f} % ± {100 * row['spread']:.1f}",
            "–" if row["against_full"] is None else f"{100 * row['against_full']:+.1f}".replace("-", "−"),
            f"{row['lr']:g}",
            f"{row['epochs']:g}",
            count(row["num_train_rows"]),
            str(len(row["seeds"])),
        ]
        for row in faults["summary"]
    ]
    titles = ["", "test accuracy ± sd over seeds", "against full, points", "learning rate", "epochs", "rows", "seeds"]
    return "\n\n".join(
        [
            "## Why a notebook found adapters 4.6 points behind",
            "An often quoted notebook reports bottleneck adapters 4.6 points behind full fine-tuning. It left out the "
            "residual connection inside the adapter and kept the classifier's random head frozen. Both faults, put "
            "back on purpose (`benchmarks/adapter_faults.py`; the methods of Tunesmith have neither):",
            f"{faults['model'] + ', ' if 'model' in faults else ''}{faults['date']}, {faults['machine']}.",
            table(titles, rows),
            "\n".join(f"- {line}" for line in _faults_read(faults)),
        ]
    )


def _faults_read(faults: Report) -> list[str]:
    by_name = {row["variant"]: row for row in faults["summary"] if row["against_full"] is not None}
    lines = []
    for style in ("houlsby", "pfeiffer"):
        right = by_name.get(style)
        broken = [(name, by_name[name]) for fault in _FAULTS if (name := f"{style}, {fault}") in by_name]
        if not right or not broken:
            continue
        costs = _listed([f"{name.partition(', ')[2]} {_lost(right, row)}" for name, row in broken])
        lines.append(
            f"{style} as published lies {100 * right['against_full']:+.1f} points from full; against that, the faults "
            f"cost: {costs}.".replace("-", "−")
        )
        worst = min(broken, key=lambda one: one[1]["accuracy"] if one[0] != f"{style}, both" else 2)
        lines.append(f"Of the two the greater cause is: {worst[0].partition(', ')[2]}.")
    return lines


_FAULTS = ("no residual", "frozen head", "both")


def _lost(right: Report, row: Report) -> str:
    return f"{100 * (row['accuracy'] - right['accuracy']):+.1f} points"


def read_kept(folder: Path, stem: str) -> list[Report]:
    """The kept comparisons of a folder whose names begin so, by name."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(f"{stem}*.json"))]


def made(results: Path) -> str:
    """The page of a folder of results."""
    faults = results / FAULTS
    found = json.loads(faults.read_text(encoding="utf-8")) if faults.is_file() else None
    return methods_page(read_kept(results, "methods"), found)


def main(words: Sequence[str]) -> int:
    """`keep COMPARISON FILE` or `page RESULTS FILE`; 2 where it is neither."""
    match list(words):
        case ["keep", comparison, to]:
            keep(Path(comparison), Path(to))
        case ["page", results, to]:
            write_text(Path(to), made(Path(results)))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
