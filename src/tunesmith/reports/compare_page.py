"""The page of a comparison: one HTML file that needs no network, no script and no other file to be read.

It is drawn from report.json and answers.jsonl alone, so an old comparison can be drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from tunesmith.core.quantities import count, duration, gib, interval, millions, number
from tunesmith.reports.drawings import curve_plot, interval_plot

Report = Mapping[str, Any]
SHOWN_PACKAGES = ("tunesmith", "torch", "transformers", "peft")
KINDS = {"prompting": "prompt only", "retrieval": "retrieval", "baseline": "baseline", "fine-tuning": "fine-tuned"}


def compare_page(report: Report, answers: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    here = Path(__file__)
    headline, _, rest = report["verdict"]["sentence"].partition(": ")
    title = f"{report['name'] or 'Comparison'}: {headline.lower()}"
    body = [
        _header(report, headline, rest),
        _section("Quality", _how_to_read(report), f'<figure class="scroll">{interval_plot(report)}</figure>'),
        _section("What it costs", "Measured in one session on one machine, one row after the other.", _table(report)),
        _curves(report),
        _answers(report, answers),
        _section("How this was measured", "", _method(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{here.with_name('compare.css').read_text(encoding='utf-8')}</style></head>\n"
        f"<body>{''.join(body)}</main><script>{here.with_name('compare.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _header(report: Report, headline: str, rest: str) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report["verdict"]["notes"])
    kicker = f"Tunesmith · {report['name'] or 'comparison'} · {report['at'][:10]}"
    return (
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(headline)}</h1>'
        f'<p class="verdict">{escape(rest).replace(" %", "&nbsp;%")}</p>{notes}</header>\n<main>'
    )


def _section(title: str, text: str, body: str) -> str:
    intro = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{body}</section>\n"


def _how_to_read(report: Report) -> str:
    direction = "further right is better" if report["higher_is_better"] else "further left is better"
    title = report["metric_title"]
    return (
        f"{title[:1].upper() + title[1:]} on {count(report['num_rows'])} held-out {report['noun']}; {direction}. "
        f"The line is the 95 % interval: how far the choice of these rows {_chance(report)} could have moved the score."
    )


def _chance(report: Report) -> str:
    num_seeds = len(report.get("seeds", [1]))
    return "alone" if num_seeds == 1 else f"and of {num_seeds} seeds, whose mean is shown,"


def _table(report: Report) -> str:
    others = [key for key in report["metrics"] if key != report["metric"]]
    heads = [
        report["metric_title"],
        *(report["metrics"][key]["title"] for key in others),
        "trainable",
        "training",
        "s/answer",
        "memory",
        "forgets",
    ]
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in ["row", *heads])
    body = "".join(_table_row(report, row, [report["metric"], *others]) for row in report["rows"])
    caption = (
        "Trainable: parameters that were changed. Memory: the most this row held, training included. "
        "Forgets: growth of perplexity on general English. Intervals are 95 %."
    )
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _table_row(report: Report, row: Report, keys: Sequence[str]) -> str:
    cells = []
    for key in keys:
        score = row["scores"].get(key)
        if score is None:
            cells.append("–")
            continue
        value, _, band = interval(score["value"], score["low"], score["high"]).partition(" ")
        shown = f'<span class="range">{band}</span>' if key == keys[0] else ""
        cells.append(f"<strong>{value}</strong>{shown}" if key == keys[0] else value)
    cells += [
        millions(row["trainable_parameters"]) if row["trainable_parameters"] else "–",
        duration(row["train_seconds"]) if row["train_seconds"] is not None else "–",
        f"{row['seconds_per_answer']:.2g}" if row["seconds_per_answer"] is not None else "–",
        gib(row["peak_memory_bytes"]),
        percent(row["forgets"]),
    ]
    is_best = row["name"] == report["verdict"]["best"]
    key_mark = f'<span class="key {row["kind"]}" title="{KINDS[row["kind"]]}"></span>'
    tds = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr{" class=best" if is_best else ""}><th scope="row">{key_mark}{escape(row["name"])}</th>{tds}</tr>'


def percent(change: float | None) -> str:
    """+5.7 %, or a dash where it was not measured."""
    return "–" if change is None else f"{100 * change:+.1f} %".replace("-", "−")


def _curves(report: Report) -> str:
    figures = []
    for row in report["rows"]:
        drawing = curve_plot(row["name"], row["curve"]) if row["curve"] else ""
        if drawing:
            text = f"{escape(row['name'])} <span>{'trained earlier' if row['is_reused'] else ''}</span>"
            figures.append(f"<figure><figcaption>{text}</figcaption>{drawing}</figure>")
    if not figures:
        return ""
    text = "Nats per token over optimiser steps: training thin, validation bold, the dot is the best validation."
    return _section("Learning", text, f'<div class="curves">{"".join(figures)}</div>')


def _answers(report: Report, answers: Sequence[Mapping[str, Any]]) -> str:
    best: Report = next((row for row in report["rows"] if row["name"] == report["verdict"]["best"]), {})
    tags = {
        "fixed": set(best.get("fixed", ())),
        "broken": set(best.get("broken", ())),
        "wrong": set(report["wrong_in_every_row"]),
    }
    name, rival = report["verdict"]["best"], report["verdict"]["rival"]
    texts = {"fixed": f"fixed by {name}", "broken": f"broken by {name}", "wrong": "wrong in every row"}
    buttons = [("all", f"all · {len(answers)}"), *((tag, f"{texts[tag]} · {len(tags[tag])}") for tag in tags)]
    shown = [pair for pair in buttons if pair[0] == "all" or tags[pair[0]] or (rival and pair[0] != "wrong")]
    controls = "".join(
        f'<button type="button" value="{tag}" aria-pressed="{str(tag == "all").lower()}">{escape(text)}</button>'
        for tag, text in shown
    )
    bar = (
        f'<div class="filter" role="group" aria-label="Which answers" hidden>{controls}'
        '<input type="search" placeholder="words in question or answer" aria-label="Words in question or answer">'
        '<span id="shown" role="status"></span></div>'
    )
    articles = "".join(_article(report, one, tags, texts) for one in answers)
    against = f" Fixed and broken are against {rival}, the best prompt row." if rival else ""
    first = f" Of several seeds the first, {report['seeds'][0]}, is shown." if len(report.get("seeds", [1])) > 1 else ""
    intro = f"All {count(len(answers))} held-out {report['noun']} with what every row answered.{first}{against}"
    return _section("Every answer", intro, bar + articles)


def _article(report: Report, one: Mapping[str, Any], tags: Mapping[str, set[str]], texts: Mapping[str, str]) -> str:
    own = [tag for tag, origins in tags.items() if one["origin"] in origins]
    marks = "".join(f'<span class="tag">{escape(texts[tag])}</span>' for tag in own)
    rows = "".join(
        f'<tr><th scope="row">{escape(given["name"])}</th><td>{escape(given["answer"]) or "<i>(nothing)</i>"}</td>'
        f'<td class="mark">{_mark(report, given["goodness"])}</td></tr>'
        for given in one["answers"]
    )
    reference = f'<p class="expected">Expected: {escape(one["reference"])}</p>' if one["reference"] else ""
    return (
        f'<article data-tags="{" ".join(own)}"><h3>{escape(one["prompt"])}{marks}</h3>{reference}'
        f"<table><tbody>{rows}</tbody></table></article>\n"
    )


def _mark(report: Report, goodness: float) -> str:
    if not report["is_rate"]:
        return number(abs(goodness))
    if goodness > 0:
        return '<span class="right">✓ right</span>'
    return '<span class="wrong">✗ wrong</span>'


def _method(report: Report) -> str:
    environment, machine = report["environment"], report["environment"].get("machine_details", {})
    packages = environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in SHOWN_PACKAGES if name in packages)
    generate = report["recipe"]["generate"]
    drawn = f"temperature {generate['temperature']}" if generate["temperature"] else "always the likeliest token"
    scores = [score for row in report["rows"] for score in row["scores"].values()]
    signatures = sorted({score["signature"] for score in scores if score.get("signature")})
    held_out = f"{count(report['num_rows'])} held-out {report['noun']}"
    facts = [
        ("Rows", f"{held_out} ({report['held_out']}), the same for every row"),
        ("Base model", report["recipe"]["model"]["name"]),
        ("Answers", f"the model's own chat template, at most {generate['max_new_tokens']} new tokens, {drawn}"),
        (
            "Intervals",
            "95 %. Rates: Wilson; differences of rates on the same rows: Newcombe; everything else: bootstrap (BCa), "
            "paired by row for differences.",
        ),
        ("Seeds", _seeds(report)),
        ("Seconds per answer", "one question at a time after one to warm up, mean of up to 12 spread over the rows"),
        (
            "Memory",
            "peak of the process (on a GPU: of its memory), libraries included, reset before each row; "
            "each row loads its own model",
        ),
        ("Forgetting", "perplexity of a packaged text in plain English, after training against before"),
        ("Metrics", "; ".join(signatures)),
        ("Machine", _machine(environment, machine)),
        ("Versions", f"Python {environment['python']}, {versions}"),
        ("Date", f"{environment['at']}, took {duration(report['seconds'])}"),
        ("Data", _data_sums(report["data"])),
        ("Recipe", f"SHA-256 {report['recipe_fingerprint']}"),
    ]
    listing = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts if value)
    recipe = yaml.safe_dump(dict(report["recipe"]), sort_keys=False, allow_unicode=True)
    return f"<dl>{listing}</dl><details><summary>The whole recipe</summary><pre>{escape(recipe)}</pre></details>"


def _seeds(report: Report) -> str:
    seeds = report.get("seeds", [1])
    if len(seeds) == 1:
        return ""
    return (
        f"{', '.join(map(str, seeds))}; the mean is shown. Its interval adds the variance over the rows (jackknife) "
        "and over the seeds; Student's quantile with the degrees of freedom of Welch and Satterthwaite."
    )


def _machine(environment: Report, machine: Report) -> str:
    parts = [machine.get("processor") or environment["machine"]]
    parts.append(f"{machine.get('cores', environment['num_cores'])} cores")
    if machine.get("device_name"):
        parts.append(machine["device_name"])
    if machine.get("memory_bytes"):
        parts.append(f"{gib(machine['memory_bytes'])} memory")
    if machine.get("precision"):
        parts.append(f"computes in {machine['precision']}")
    return ", ".join(map(str, parts))


def _data_sums(card: Report) -> str:
    sums = card.get("contents_sha256", {})
    return "SHA-256 " + "; ".join(f"{side} {sum_[:16]}…" for side, sum_ in sums.items()) if sums else ""
