"""What the engine aims at (targets.csv) and what was measured last, in one table, from the kept results.

make bench                          measures everything, then prints this
python benchmarks/targets.py        the table alone
"""

from __future__ import annotations

import csv
import json
import sys

from side_by_side import HERE, LATEST, RESULTS


def main() -> None:
    kept = {line["benchmark"]: line["ratio"] for line in json.loads((RESULTS / LATEST).read_text(encoding="utf-8"))}
    with (HERE / "targets.csv").open(encoding="utf-8", newline="") as file:
        targets = list(csv.DictReader(file))
    text = "\n".join(table(targets, kept)) + "\n"
    print(text)
    (RESULTS / "targets.md").write_text(text, encoding="utf-8")
    missed = [one["key"] for one in targets if one["key"] in kept and verdict(one, kept[one["key"]]) == "**not met**"]
    if missed:
        print(f"not met: {', '.join(missed)}", file=sys.stderr)


def table(targets: list[dict[str, str]], kept: dict[str, float]) -> list[str]:
    """The page."""
    lines = [
        "# Targets",
        "",
        "Ratios, each measured in one run on one machine; the pages beside this one say which, with versions and date. "
        "Lines of a GPU were not measured: none was there.",
        "",
        "| work | against | target | aim | measured | |",
        "|---|---|--:|--:|--:|---|",
    ]
    for one in targets:
        ratio = kept.get(one["key"])
        measured = "not measured" if ratio is None else number(one, ratio)
        judged = "" if ratio is None else verdict(one, ratio)
        aim = number(one, float(one["aim"])) if one["aim"] else ""
        target = f"{one['bound']} {number(one, float(one['least']))}"
        lines.append(f"| {one['work']} | {one['against']} | {target} | {aim} | {measured} | {judged} |")
    return lines


def verdict(target: dict[str, str], ratio: float) -> str:
    """Whether a ratio reaches its target, and its aim."""
    if target["bound"] == "at most":
        return "met" if ratio <= float(target["least"]) else "**not met**"
    if target["aim"] and ratio >= float(target["aim"]):
        return "aim met"
    return "met" if ratio >= float(target["least"]) else "**not met**"


def number(target: dict[str, str], value: float) -> str:
    """`2.5 x`, or `30 %` of a share."""
    return f"{100 * value:.3g} %" if target["unit"] == "share" else f"{value:.3g} x"


if __name__ == "__main__":
    main()
