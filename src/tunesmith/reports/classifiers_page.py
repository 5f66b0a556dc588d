"""docs/encoders-or-decoders.md, made from a kept comparison: are encoders better classifiers than decoders?

    python -m tunesmith.reports.methods_page keep COMPARISON KEPT
    python -m tunesmith.reports.classifiers_page KEPT docs/encoders-or-decoders.md

KEPT is benchmarks/results/encoders_or_decoders.json. Rows whose title begins with `encoder` are set against those
that begin with `decoder` and go on alike.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tunesmith.core.publish import write_text
from tunesmith.core.quantities import duration, millions
from tunesmith.reports.measured import Report, cost_table, gap, how_measured, interval_text, quality_table

NOTE = (
    "<!-- Made by `python -m tunesmith.reports.classifiers_page benchmarks/results/encoders_or_decoders.json "
    "docs/encoders-or-decoders.md`. -->\n"
)
INTRO = """\
It is often said that encoders suit classification and decoders generation. Here both classify: the same rows, tokens
per step, epochs and seeds, every weight trained, one learning rate for both of a random pair. The budget is small, so
what is ahead here need not be ahead after a longer training. An encoder's tokens see both sides and its head reads
the first token; a decoder's see what is before them, and its head reads the last one. The pair of random weights has
one shape, one tokenizer and one budget, so it differs in the architecture alone. A pre-trained pair differs in size
and in what it was trained on, too: it shows what one can have, and not which architecture is better."""


def classifiers_page(report: Report) -> str:
    """The page of a kept comparison of `recipes/encoders_or_decoders.yaml`."""
    lines = [*_sizes(report), *_readings(report)]
    return "\n\n".join(
        [
            NOTE + "# Encoders or decoders for classification?",
            INTRO,
            f"To measure again: `tunesmith compare recipes/{report['name']}.yaml --jobs 2`. {how_measured(report)}",
            quality_table(report),
            "What it took:",
            cost_table(report),
            "What it says:",
            "\n".join(f"- {line}" for line in lines) + "\n",
        ]
    )


def pairs(report: Report) -> list[tuple[str, Report, Report]]:
    """(what they share, the encoder's row, the decoder's row)."""
    rows = {row["name"]: row for row in report["rows"]}
    shared = [name.partition(", ")[2] for name in rows if name.startswith("encoder, ")]
    return [(one, rows[f"encoder, {one}"], rows[f"decoder, {one}"]) for one in shared if f"decoder, {one}" in rows]


def _sizes(report: Report) -> list[str]:
    return [f"{kind}: encoder {_size(encoder)}, decoder {_size(decoder)}." for kind, encoder, decoder in pairs(report)]


def _size(row: Report) -> str:
    name = row["model"]["config"].get("model_type") or row["model"]["name"]
    return f"{name} of {millions(row['total_parameters'])} parameters"


def _readings(report: Report) -> list[str]:
    lines = []
    for kind, encoder, decoder in pairs(report):
        found = encoder["against_reference"]
        assert encoder["against"] == decoder["name"], encoder["against"]
        is_apart = found["low"] > 0 or found["high"] < 0
        ahead = "encoder" if (found["value"] > 0) == report["higher_is_better"] else "decoder"
        said = f"the {ahead} is ahead beyond chance" if is_apart else "they cannot be told apart"
        lines.append(
            f"{kind}: encoder {interval_text(report, encoder)}, decoder {interval_text(report, decoder)}; difference "
            f"{gap(report, found['value'])} [{gap(report, found['low'])}, {gap(report, found['high'])}]: {said}."
        )
        times = [row["train_cpu_seconds"] for row in (encoder, decoder)]
        if all(times):
            lines.append(f"{kind}: training took {duration(times[0])} and {duration(times[1])} of processor time.")
    return lines


def main(words: Sequence[str]) -> int:
    """`KEPT PAGE`; 2 where it is not that."""
    if len(words) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    report = json.loads(Path(words[0]).read_text(encoding="utf-8"))
    write_text(Path(words[1]), classifiers_page(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
