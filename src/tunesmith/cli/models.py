"""Versions of models: list, show, register, promote through gates, roll back; and merge an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.session import Session
from tunesmith.core.errors import GateError
from tunesmith.reporters.text import Column, cell_width, facts, fold, gib, interval, pad, paint, table

if TYPE_CHECKING:
    from tunesmith.core.store import AliasMove
    from tunesmith.steps.gates import Gate
    from tunesmith.steps.models import Listed, Shown

app = typer.Typer()
Reference = Annotated[str, typer.Argument(show_default=False, help="manual, manual@champion or manual:4.")]


@app.command("list")
def list_(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(show_default=False, help="Only this name.")] = "",
) -> None:
    """List versions, newest first within each name, with their deciding score.

    Example: tunesmith models list manual
    """
    from tunesmith.steps.models import list_models

    session: Session = ctx.obj
    listed = list_models(session.home, name)
    if not listed:
        session.say("nothing is registered yet; a finished run can be: tunesmith models register runs/NAME")
    session.result({"models": [one.to_dict() for one in listed]}, text=_table(listed, session.width) if listed else "")


@app.command()
def show(
    ctx: typer.Context,
    reference: Reference,
    gates: Annotated[bool, typer.Option("--gates", help="Try every gate against the champion; nothing moves.")] = False,
) -> None:
    """Show where a version comes from: base, data, recipe, scores, aliases and their history.

    Example: tunesmith models show manual:4 --gates
    """
    from tunesmith.steps.models import show as run_step

    session: Session = ctx.obj
    shown = run_step(session.home, reference, emit=session.emit, with_gates=gates)
    session.result(shown.to_dict(), text=_description(shown, session.width))


@app.command()
def register(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(show_default=False, help="A finished run.")],
    name: Annotated[str, typer.Argument(show_default=False, help="The name to count under; else the recipe's.")] = "",
) -> None:
    """Register a finished run as the next version of a name; the same one again gives the version there is.

    Example: tunesmith models register runs/manual-lora-3 manual
    """
    from tunesmith.steps.models import register as run_step

    session: Session = ctx.obj
    version = run_step(session.home, run, name, emit=session.emit)
    session.result({**version.to_dict(), "is_new": version.is_new}, text=version.reference)


@app.command()
def promote(
    ctx: typer.Context,
    reference: Annotated[
        str, typer.Argument(show_default=False, help="A version: manual:4; a name alone means its newest.")
    ],
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "champion",
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="How much worse the score may be, as a share of the metric's range.")
    ] = 0.02,
) -> None:
    """Move an alias to a version if every gate holds; every gate is shown with its numbers.

    Exit code 1 and nothing moves where one fails.

    Example: tunesmith models promote manual:4
    """
    from tunesmith.steps.models import promote as run_step
    from tunesmith.steps.models import sentence_of

    session: Session = ctx.obj
    try:
        promotion = run_step(session.home, reference, alias=alias, margin=margin, emit=session.emit)
    except GateError as fault:
        session.say(gate_lines(fault.gates, session.err.width))
        raise
    session.say(gate_lines(promotion.judgement.gates, session.err.width))
    session.result(promotion.to_dict(), text=sentence_of(promotion))


@app.command()
def rollback(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(show_default=False, help="A registered name.")],
    alias: Annotated[str, typer.Option(help="The alias to move back.")] = "champion",
) -> None:
    """Move an alias back to the version that held it before; again for the one before that.

    Example: tunesmith models rollback manual
    """
    from tunesmith.steps.models import rollback as run_step
    from tunesmith.steps.models import rollback_sentence

    session: Session = ctx.obj
    result = run_step(session.home, name, alias=alias, emit=session.emit)
    session.result(result.to_dict(), text=rollback_sentence(result))


@app.command()
def merge(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(show_default=False, help="A run, its name, or a folder with a PEFT adapter.")],
    to: Annotated[str, typer.Option("--to", show_default=False, help="The folder to write; it must not exist.")],
    precision: Annotated[str, typer.Option(help="What the weights are written in: fp32 or bf16.")] = "fp32",
) -> None:
    """Merge an adapter into its base: a plain transformers folder, and by how much its outputs moved.

    Example: tunesmith models merge runs/manual-lora-3 --to merged/manual
    """
    from tunesmith.steps.merge import merge as run_step

    session: Session = ctx.obj
    by_name = session.home.runs / run
    target: str | Path = by_name if by_name.is_dir() and not Path(run).exists() else run
    merged = run_step(target, to, precision=precision, emit=session.emit)
    session.result(merged.to_dict(), text=merged.path)


def gate_lines(gates: Iterable[Gate], width: int) -> str:
    """One line per gate: whether it holds, its numbers, and what was asked."""
    gates = list(gates)
    edge = max((cell_width(gate.name) for gate in gates), default=0) + 2
    lines = []
    for gate in gates:
        mark = paint("✓", "green") if gate.passed else paint("✗", "red")
        text = f"{gate.text} · {gate.threshold}" if gate.threshold else gate.text
        lines.append(
            f"{mark} {pad(gate.name, edge)}{fold(text, max(20, width - edge - 2), 0)}".replace(
                "\n", "\n" + " " * (edge + 2)
            )
        )
    return "\n".join(lines)


def _table(listed: Sequence[Listed], width: int) -> str:
    metrics = {str(one.version.scores[0]["metric"]) for one in listed if one.version.scores}
    title = metrics.copy().pop().replace("_", " ") if len(metrics) == 1 else "score"
    columns = (
        Column("name", 9),
        Column("version", 9),
        Column("alias", 8),
        Column("made", 2),
        Column("method", 5),
        Column(title, 7),
        Column("served", 4),
        Column("size", 1),
    )
    return table(columns, [_row(one, is_named=len(metrics) > 1) for one in listed], width)


def _row(listed: Listed, *, is_named: bool) -> tuple[str, ...]:
    from tunesmith.steps.models import score_text

    version = listed.version
    score = score_text(version)
    if is_named and version.scores:
        score = f"{version.scores[0]['metric']} {score}".replace("_", " ")
    return (
        version.name,
        str(version.number),
        ", ".join(version.aliases),
        ago(version.at),
        str(version.lineage.get("method") or ""),
        score,
        f"{listed.requests_last_hour:,}/h" if listed.requests_last_hour else "–",
        gib(listed.num_bytes),
    )


def _description(shown: Shown, width: int) -> str:
    version = shown.listed.version
    lineage = version.lineage
    base = lineage.get("base") or {}
    recipe = lineage.get("recipe") or {}
    packages = lineage.get("packages") or {}
    chosen = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "peft") if name in packages)
    lines = [
        ("version", f"{version.reference}{_also(version.aliases)}"),
        ("made", f"{version.at} by {version.who} · from run {lineage.get('run', '–')}"),
        ("base", f"{base.get('name', '–')} · sha256 {_short(base.get('sha256'))}"),
        ("method", f"{lineage.get('method', '–')} · {lineage.get('objective', '')} · seed {lineage.get('seed')}"),
        ("data", f"{_source(recipe)} · sha256 {_short(lineage.get('data_sha256'))}"),
        ("recipe", f"fingerprint {_short(lineage.get('fingerprint'))}"),
        ("parent", str(lineage.get("parent") or "–")),
        ("code", f"tunesmith {lineage.get('code_version', '–')} · {chosen}"),
        ("content", f"sha256 {_short(version.content_hash)} · {gib(shown.listed.num_bytes)}"),
    ]
    lines += [
        (str(score["metric"]).replace("_", " "), f"{_interval(score)} · {score['num_rows']} held-out rows")
        for score in version.scores
    ]
    lines += [("champion" if place == 0 else "", _move(move)) for place, move in enumerate(shown.history)]
    text = facts(lines, width)
    return text + ("\n" + gate_lines(shown.judgement.gates, width) if shown.judgement else "")


def ago(at: str) -> str:
    """A UTC time as a person says it: `4 min ago`, `2 h ago`, `yesterday`, `3 days ago`, then the date."""
    then = datetime.fromisoformat(at)
    seconds = (datetime.now(UTC) - then).total_seconds()
    days = (datetime.now().astimezone().date() - then.astimezone().date()).days
    if seconds < 90:
        return "just now"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min ago"
    if days == 0 or seconds < 6 * 3600:
        return f"{seconds / 3600:.0f} h ago"
    return "yesterday" if days == 1 else f"{days} days ago" if days < 60 else at[:10]


def _interval(score: Mapping[str, Any]) -> str:
    return interval(score["value"], score["low"], score["high"])


def _source(recipe: dict[str, dict[str, object]]) -> str:
    source = recipe.get("data", {}).get("source", "–")
    return ", ".join(one["path"] for one in source) if isinstance(source, list) else str(source)


def _also(aliases: Sequence[str]) -> str:
    return f" · {', '.join(aliases)}" if aliases else ""


def _short(sha256: object) -> str:
    return str(sha256)[:12] if sha256 else "–"


def _move(move: AliasMove) -> str:
    before = "none" if move.previous is None else move.previous
    return f"{move.at} · {before} → {move.number} · {move.kind} by {move.who}"
