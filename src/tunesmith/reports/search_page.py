"""The page of a search: one HTML file that needs no network, no script and no other file to be read."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import yaml

from tunesmith.core.quantities import count, duration, interval, number
from tunesmith.reports.search_plots import shown

Report = Mapping[str, Any]
STATES = {"complete": "", "pruned": "ended early", "failed": "failed"}
CELL = 'style="text-align:left"'
SHOWN_PACKAGES = ("tunesmith", "torch", "transformers", "peft")


def search_page(report: Report, plots: Mapping[str, str]) -> str:
    """The whole page; `plots` are SVGs by name."""
    style = Path(__file__).with_name("compare.css").read_text(encoding="utf-8")
    best = report["best"]
    headline = f"{report['metric_title']} {number(best['value'])}"
    title = f"{report['name'] or 'Search'}: {headline}"
    body = [
        _header(report, headline),
        _section("The best settings", "", _best(report)),
        _figure(
            "What each trial gave",
            "A trial that ended early was behind the others at the same share of its training.",
            plots.get("history", ""),
        ),
        _figure("What mattered", _importance_text(report), plots.get("importance", "")),
        _figure(
            "What went together",
            "One line per trial, from its values to its score; darker is better, the thick line is the best, dashed "
            "lines ended early.",
            plots.get("parallel", ""),
        ),
        _section("Every trial", "Best first.", _table(report)),
        _section("How this was done", "", _method(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>{''.join(body)}</main></body></html>\n"
    )


def ranked(report: Report) -> list[Mapping[str, Any]]:
    """Complete trials from best to worst, then those that ended early, then those that failed."""
    sign = -1 if report["higher_is_better"] else 1
    order = list(STATES)
    return sorted(
        report["trials"],
        key=lambda trial: (
            order.index(trial["state"]),
            sign * trial["value"] if trial["value"] is not None else trial["validation_loss"] or 0.0,
            trial["trial"],
        ),
    )


def _header(report: Report, headline: str) -> str:
    best, counts = report["best"], report["counts"]
    chosen = ", ".join(f"{key} {shown(value)}" for key, value in best["params"].items())
    ends = [f"{counts['pruned']} ended early" if counts["pruned"] else "", f"{counts['failed']} failed"]
    notes = " · ".join(end for end in ends if end and not end.startswith("0 "))
    tried = f"{count(len(report['trials']))} trials in {duration(report['seconds'])}" + (f" · {notes}" if notes else "")
    kicker = f"Tunesmith · {report['name'] or 'search'} · {report['at'][:10]}"
    return (
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(headline[:1].upper() + headline[1:])}</h1>'
        f'<p class="verdict">with {escape(chosen)}</p><p class="note">{escape(tried)}</p></header>\n<main>'
    )


def _section(title: str, text: str, body: str) -> str:
    intro = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{body}</section>\n"


def _figure(title: str, text: str, drawing: str) -> str:
    return _section(title, text, f'<figure class="scroll">{drawing}</figure>') if drawing else ""


def _importance_text(report: Report) -> str:
    partial = [axis["key"] for axis in report["space"] if axis["key"] not in report["importance"]]
    left_out = f" Left out, as not every trial has it: {', '.join(partial)}." if partial else ""
    return (
        "Over the whole space, not near the best: a key that matters little here may still matter there. "
        f"Only trials that went to their end are counted.{left_out}"
    )


def _best(report: Report) -> str:
    best, run = report["best"], report["best_run"]
    facts = [(key, shown(value)) for key, value in best["params"].items()]
    facts.append(("trial", f"{best['trial']}, best at step {count(best['best_step'])} of {count(best['steps'])}"))
    if run is not None:
        same = "the same" if run["is_reproduced"] else f"{number(run['trial_validation_loss'], 6)} in the trial"
        facts.append(("trained again", f"validation loss {number(run['validation_loss'], 6)} ({same})"))
        name = run["held_out"]["name"]
        for metric, score in run["scores"].items():
            text = interval(score["value"], score["low"], score["high"])
            facts.append((metric.replace("_", " "), f"{text} on {count(score['n'])} {name} rows"))
    listing = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts)
    return f"<dl>{listing}</dl>"


def _table(report: Report) -> str:
    keys = [axis["key"] for axis in report["space"]]
    titles = ["trial", report["metric_title"], *keys, "steps", "took", ""]
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in titles)
    rows = []
    for trial in ranked(report):
        value = trial["value"] if trial["state"] == "complete" else None
        cells = [f"<strong>{number(value)}</strong>" if value is not None else number(trial["validation_loss"])]
        cells += [escape(shown(trial["params"][key])) if key in trial["params"] else "–" for key in keys]
        cells += [count(trial["steps"]) if trial["steps"] else "–", duration(trial["seconds"])]
        note = STATES[trial["state"]] + (f": {trial['fault']}" if trial["fault"] else "")
        is_best = trial["trial"] == report["best"]["trial"]
        tds = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(
            f'<tr{" class=best" if is_best else ""}><th scope="row">{trial["trial"]}</th>{tds}'
            f"<td {CELL}>{escape(note)}</td></tr>"
        )
    caption = "A value without weight is the best validation loss before a trial ended early."
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _method(report: Report) -> str:
    environment, recipe = report["environment"], report["recipe"]
    machine = environment.get("machine_details", {})
    packages = environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in SHOWN_PACKAGES if name in packages)
    better = "highest" if report["higher_is_better"] else "lowest"
    facts = [
        ("Best", f"the {better} {report['metric_title']} on validation rows; test rows are not looked at by any trial"),
        ("Space", "; ".join(f"{axis['key']}: {axis['text']}" for axis in report["space"])),
        ("Proposed by", f"{report['sampler']}, seed {report['seed']}"),
        ("Ended early", report["pruner"]),
        ("Base model", recipe["model"]["name"]),
        ("Machine", f"{machine.get('processor') or environment['machine']}, {environment['num_cores']} cores"),
        ("Versions", f"Python {environment['python']}, {versions}"),
        ("Date", f"{report['at']}, took {duration(report['seconds'])}"),
    ]
    listing = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts)
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    return f"<dl>{listing}</dl><details><summary>The whole recipe</summary><pre>{escape(text)}</pre></details>"
