"""Rows before training: check them, show what is learnt of them, prepare a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.session import Session
from tunesmith.reporters.text import cell_width, count, duration, is_flat, pad, paint, shorten, sparkline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.core.events import Finding
    from tunesmith.data.learnt import Piece
    from tunesmith.recipe import Recipe
    from tunesmith.steps.data_report import CheckReport, ShownRow, ShowReport

WIDE = 100
PREVIEW_CHARACTERS = 800
app = typer.Typer()

File = Annotated[str, typer.Argument(show_default=False, help="A file or folder of rows, or a recipe.")]
Model = Annotated[str, typer.Option(show_default="tunesmith/base", help="Whose tokens and template are used.")]
Overrides = Annotated[list[str] | None, typer.Argument(show_default=False, help="Settings: data.max_length=640 …")]


@app.command()
def check(
    ctx: typer.Context,
    file: File,
    settings: Overrides = None,
    model: Model = "",
    test: Annotated[str, typer.Option(show_default=False, help="Held-out rows that must not be among these.")] = "",
    repair: Annotated[str, typer.Option(show_default=False, help="A new .jsonl for the rows that are fine.")] = "",
) -> None:
    """Say what is wrong with rows, with line and remedy, and how many tokens would be learnt.

    The exit code is 1 where rows cannot be trained on.

    Example: tunesmith data check tickets.jsonl --test held-out.jsonl
    """
    from tunesmith.steps.data import check as run_step

    session: Session = ctx.obj
    recipe = _recipe(file, settings, model)
    data = recipe.data.model_copy(update={"test": test}) if test else recipe.data
    report = run_step(data, model=recipe.model.name, repair=repair, emit=session.emit)
    session.result(report.to_dict(), text=_check_text(report, session.width))
    if any(finding.level == "error" for finding in report.findings):
        raise typer.Exit(1)


@app.command()
def show(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(show_default=False, help="FILE, or FILE:LINE for the row that starts there.")],
    settings: Overrides = None,
    model: Model = "",
    rows: Annotated[int, typer.Option(min=1, max=1000, help="How many rows are shown from the start.")] = 3,
) -> None:
    """Show how rows were read and which of their tokens are learnt.

    Example: tunesmith data show tickets.jsonl:301
    """
    from tunesmith.steps.data import show as run_step

    session: Session = ctx.obj
    path, line = _place(file)
    recipe = _recipe(path, settings, model)
    report = run_step(recipe.data, line=line, count=rows, model=recipe.model.name)
    session.result(report.to_dict(), text=_show_text(report, session))


@app.command()
def prepare(
    ctx: typer.Context,
    file: File,
    settings: Overrides = None,
    out: Annotated[str, typer.Option(show_default=False, help="The new folder.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Decides which rows are held out.")] = 1,
) -> None:
    """Write a data set: deduplicated, split into train, validation and test, with a data card.

    Train on it with `data.source=FOLDER`. Doing it again gives the same bytes.

    Example: tunesmith data prepare tickets.jsonl data.split.test=0.1 --out data/tickets
    """
    from tunesmith.core.errors import UserError
    from tunesmith.steps.data import prepare as run_step

    session: Session = ctx.obj
    if not out:
        raise UserError("say where the data set goes.", code="usage", remedy="For example: --out data/tickets")
    recipe = _recipe(file, settings, "")
    prepared = run_step(recipe.data, Path(out), seed=seed, emit=session.emit)
    session.result(prepared.to_dict(), text=str(prepared.path))


def _recipe(file: str, settings: list[str] | None, model: str) -> Recipe:
    """The recipe of a YAML file, or the smallest around a file of rows; options win."""
    from tunesmith.core.overrides import apply_override
    from tunesmith.recipe import make_recipe, read_recipe

    overrides = [*(settings or []), *([f"model={model}"] if model else [])]
    if Path(file).suffix in (".yaml", ".yml"):
        return read_recipe(file, overrides)
    values: dict[str, Any] = {"model": "tunesmith/base", "data": {"source": file}}
    for override in overrides:
        apply_override(values, override)
    return make_recipe(values)


def _place(file: str) -> tuple[str, int]:
    path, colon, line = file.rpartition(":")
    return (path, int(line)) if colon and line.isdigit() and not Path(file).exists() else (file, 0)


# What check prints


def _check_text(report: CheckReport, width: int) -> str:
    head = [f"{count(report.num_rows)} rows", _size(report.num_bytes), report.description or "unknown", "UTF-8"]
    if width >= WIDE:
        head.append(f"checked in {duration(report.seconds)}")
    blocks = ["\n".join([f"{paint(report.path, 'cyan')}   {' · '.join(head)}"])]
    errors = [finding for finding in report.findings if finding.level == "error"]
    warnings = [finding for finding in report.findings if finding.level == "warning"]
    lines = []
    if errors:
        number = _num_rows(errors, report)
        title = f"{count(number)} {'error' if number == 1 else 'errors'}, in rows that cannot be trained on"
        lines += [f"{paint('✗', 'red')} {title}", *_findings(errors, report, width)]
    if warnings:
        number = _num_rows(warnings, report)
        kinds = f"{len(warnings)} kind{'s' if len(warnings) > 1 else ''} of warning"
        title = f"{kinds}, in {count(number)} row{'s' if number > 1 else ''}"
        lines += [f"{paint('!', 'yellow')} {title}", *_findings(warnings, report, width)]
    blocks.append("\n".join(lines or [f"{paint('✓', 'green')} nothing is wrong with these rows"]))
    if report.lengths is not None:
        blocks.append(_token_lines(report, width))
    if report.preview:
        name = report.preview_origin.rpartition(":")[2]
        title = f"line {name} as it is trained: [underlined in brackets] is learnt, the rest context"
        blocks.append(title + "\n" + _indented(_drawn(report.preview, has_brackets=True)))
    last = [f"{count(report.num_usable)} of {count(report.num_rows)} rows can be trained on."]
    if report.repaired:
        last.append(f"{count(report.num_repaired)} rows written to {paint(report.repaired, 'cyan')}")
    for number, command in enumerate(report.next):
        last.append(f"{'next' if not number else '    '}    {command}")
    return "\n\n".join([*blocks, "\n".join(last)])


def _num_rows(findings: Sequence[Finding], report: CheckReport) -> int:
    """Rows with any of the findings; of a kind with very many rows not every place is kept."""
    rows = {place for finding in findings for place in report.places[finding.code]}
    return max([len(rows), *(finding.num_rows for finding in findings)])


def _findings(findings: Sequence[Finding], report: CheckReport, width: int) -> list[str]:
    rows = []
    for finding in findings:
        where = finding.where if width >= WIDE else finding.where.removeprefix(report.path)
        many = f" ({count(finding.num_rows)} rows)" if finding.num_rows > 1 else ""
        rows.append((where, finding.code, finding.message.replace("\n", "⏎") + many, finding.remedy))
    if is_flat(width):
        return [f"  {where}: {code}: {message}: {remedy}" for where, code, message, remedy in rows]
    edge = max(cell_width(row[0]) for row in rows) + 2
    aside = max(cell_width(row[3]) for row in rows)
    code_width = max(len(row[1]) for row in rows) + 2
    room = width - 2 - edge - code_width
    lines = []
    for where, code, message, remedy in rows:
        head = f"  {pad(where, edge)}{pad(code, code_width)}"
        if cell_width(message) + 2 + aside <= room:
            lines.append(head + pad(message, room - aside - 2) + "  " + paint(remedy, "cyan"))
        elif cell_width(message) + 2 + cell_width(remedy) <= room:
            lines.append(head + message + "  " + paint(remedy, "cyan"))
        else:
            indent = " " * (2 + edge + code_width)
            lines += [head + shorten(message, max(20, room)), indent + paint(remedy, "cyan")]
    return lines


def _token_lines(report: CheckReport, width: int) -> str:
    lengths = report.lengths
    assert lengths is not None
    measured = lengths.num_measured
    sizes = f"p5 {count(lengths.p5)} · median {count(lengths.median)} · p95 {count(lengths.p95)}"
    bars = sparkline([float(number) for number in lengths.histogram])
    share = 100 * report.num_trained / max(1, report.num_tokens)
    learnt = f"{count(report.num_trained)} of {count(report.num_tokens)} ({share:.0f} %)"
    ends = f"{count(report.num_with_end)} of {count(measured)}"
    ends = f"the end is trained in {ends} rows" if width >= WIDE else f"end trained: {ends}"
    spread = f"tokens per row     {sizes} · longest {count(lengths.longest)}"
    lines = [
        f"{spread}   {bars}" if cell_width(spread) + 3 + len(bars) <= width else spread,
        f"trained tokens     {learnt} · {ends}",
    ]
    if measured < report.num_usable:
        lines.append(f"measured           {count(measured)} rows, evenly chosen, and all that could be too long")
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    if num_bytes >= 100_000:
        return f"{num_bytes / 1e6:,.1f} MB"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes >= 1000 else f"{num_bytes} bytes"


# What show prints


def _show_text(report: ShowReport, session: Session) -> str:
    has_brackets = not session.out.has_styles
    legend = "[in brackets]" if has_brackets else paint("underlined", "underline", "green")
    head = [
        f"{paint(report.path, 'cyan')}   {report.description}",
        f"template and tokens of {report.model}, at most {count(report.max_length)}; {legend} is learnt",
    ]
    return "\n\n".join(["\n".join(head), *(_row_text(row, has_brackets, session.width) for row in report.rows)])


def _row_text(row: ShownRow, has_brackets: bool, width: int) -> str:
    if row.learnt is None:
        return f"{paint(row.origin, 'bold')}\n  {paint('✗', 'red')} {row.fault}"
    learnt = row.learnt
    facts = [row.kind, f"{count(learnt.num_trained)} of {count(learnt.num_tokens)} tokens learnt"]
    if learnt.num_cut:
        facts.append(paint(f"{count(learnt.num_cut)} cut off", "red"))
    if row.fields:
        facts.append(shorten("not used: " + ", ".join(row.fields), width))
    title = f"{paint(row.origin, 'bold')}   {' · '.join(facts)}"
    return title + "\n" + _indented(_drawn(learnt.pieces, has_brackets=has_brackets, limit=0))


def _drawn(pieces: Sequence[Piece], *, has_brackets: bool, limit: int = PREVIEW_CHARACTERS) -> str:
    """The pieces as text: learnt ones underlined (and in brackets), a line break as ⏎."""
    out, left = [], limit or sum(len(piece.text) for piece in pieces)
    for piece in pieces:
        text = piece.text if len(piece.text) <= left else piece.text[: max(0, left)] + "…"
        left -= len(piece.text)
        shown = text.replace("\r", "").replace("\n", "⏎\n")
        if piece.part == "trained":
            shown = _lined(shown, "underline", "green")
            shown = f"[{shown}]" if has_brackets else shown
        elif piece.part == "rejected":
            shown = _lined(shown, "underline", "red")
            shown = f"(not: {shown})" if has_brackets else shown
        elif piece.part == "cut":
            shown = ("{cut: " + shown + "}") if has_brackets else _lined(shown, "dim", "red")
        out.append(shown)
        if left < 0:
            break
    return "".join(out)


def _lined(text: str, *styles: str) -> str:
    """Each line in the styles by itself, so that indenting does not style the margin."""
    return "\n".join(paint(line, *styles) for line in text.split("\n"))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip("\n").split("\n"))
