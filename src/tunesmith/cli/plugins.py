"""The reference in the terminal: kinds of plug-ins, the plug-ins of a kind, the settings of one.

The recipe's sections (`train`, `data`, `model` …) are shown the same way.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tunesmith.cli.session import Session
from tunesmith.core.errors import UserError, unknown_name
from tunesmith.core.plugins import KINDS, Kind, find, names, summary
from tunesmith.core.quantities import gib, millions
from tunesmith.reporters.text import Column, fold, is_flat, paint, shorten, table


def plugins(
    ctx: typer.Context,
    kind: Annotated[
        str, typer.Argument(metavar="KIND", show_default=False, help="Such as methods, or a recipe's section.")
    ] = "",
    name: Annotated[
        str, typer.Argument(metavar="NAME", show_default=False, help="A plug-in, or its dotted module.")
    ] = "",
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="The model that methods are costed on, by its configuration.")
    ] = "tunesmith/base",
) -> None:
    """Show every method, objective, metric … and its settings; of methods also what each costs.

    Example: tunesmith plugins methods lora
    """
    session: Session = ctx.obj
    place, _, inner = kind.partition(".")
    if not kind:
        _show_kinds(session)
    elif (found := _kind(kind)) is not None:
        if found.folder == "methods" and not name:
            _show_methods(session, found, model)
            return
        _show_kind(session, found) if not name else _show_class(session, find(found.folder, name), name)
    elif place in sections():
        _show_section(session, place, inner or name)
    else:
        known = [*KINDS, *(one.noun for one in KINDS.values()), *sections()]
        raise unknown_name("kind", kind, known, listing="tunesmith plugins")


def sections() -> dict[str, type[Any]]:
    """The recipe's sections that are groups of settings, and `recipe` itself."""
    from tunesmith import recipe
    from tunesmith.core.space import SearchSettings

    return {
        "recipe": recipe.Recipe,
        "model": recipe.ModelSettings,
        "data": recipe.DataSettings,
        "train": recipe.TrainSettings,
        "generate": recipe.GenerateSettings,
        "compare": recipe.CompareSettings,
        "search": SearchSettings,
    }


def _kind(word: str) -> Kind | None:
    return next((one for one in KINDS.values() if word in (one.folder, one.noun)), None)


def _show_kinds(session: Session) -> None:
    found = [
        {"name": kind.folder, "place": kind.place, "plugins": names(kind.folder)}
        for kind in KINDS.values()
        if names(kind.folder)
    ]
    columns = (Column("kind", 9), Column("in a recipe", 5), Column("plug-ins", 7))
    rows = [[paint(str(one["name"]), "cyan"), str(one["place"]), ", ".join(one["plugins"])] for one in found]
    others = ", ".join(sections())
    text = _table(columns, rows, session.width)
    session.result(found, f"{text}\n\n{fold(f'Sections of a recipe, shown the same way: {others}', session.width)}")


def _show_kind(session: Session, kind: Kind) -> None:
    found = [{"name": name, "summary": summary(kind.folder, name)} for name in names(kind.folder)]
    more = f"\n\nSettings of one: tunesmith plugins {kind.folder} {found[0]['name']}" if found else ""
    session.result(found, _summaries(kind, found, session.width) + more)


def _summaries(kind: Kind, found: list[dict[str, Any]], width: int) -> str:
    rows = [[paint(one["name"], "cyan"), one["summary"]] for one in found]
    return _table((Column(kind.noun, 9), Column("", 8)), rows, width)


def _show_methods(session: Session, kind: Kind, model: str) -> None:
    """What every method is, then what it costs on a model, then why that model cannot have some."""
    found = [_costed(kind, name, model) for name in names(kind.folder)]
    titles = (f"on {shorten(model, 20)}", "trained", "optimiser", "on disk", "rate")
    columns = tuple(Column(title, 9 - place) for place, title in enumerate(titles))
    parts = [_summaries(kind, found, session.width), table(columns, [_cost_row(one) for one in found], session.width)]
    refused = [[one["name"], one["refused"].removeprefix(f"{one['name']} ")] for one in found if "refused" in one]
    if refused:
        parts.append(_table((Column(f"not on {shorten(model, 20)}", 9), Column("", 8)), refused, session.width))
    about = (
        "Trained: parameters, and their share of the model's. Optimiser: AdamW's two fp32 moments. On disk: the "
        "weights that answering needs. Rate: the default peak learning rate. Another model: --model NAME. "
        "Settings of one: tunesmith plugins methods lora"
    )
    session.result(found, "\n\n".join([*parts, fold(about, session.width)]))


def _costed(kind: Kind, name: str, model: str) -> dict[str, Any]:
    from pydantic import ValidationError

    from tunesmith.models.cost import method_cost
    from tunesmith.recipe import ModelSettings

    cls = find(kind.folder, name)
    one: dict[str, Any] = {"name": name, "summary": summary(kind.folder, name), "model": model}
    one["learning_rate"] = getattr(cls, "learning_rate", None)
    try:
        cost = method_cost(cls(), ModelSettings(name=model))  # type: ignore[arg-type]
    except UserError as fault:
        if fault.code in ("method_refused", "needs_weights", "bad_value", "missing_setting", "missing_package"):
            return {**one, "refused": fault.message}
        raise
    except ValidationError:
        return {**one, "refused": "it has a setting that must be given."}
    return {**one, **cost.to_dict(), "share": cost.share}


def _cost_row(one: dict[str, Any]) -> list[str]:
    name, rate = one["name"], f"{one['learning_rate']:g}"
    if "refused" in one:
        return [name, "–", "–", "–", rate]
    trained = f"{millions(one['trainable'])} ({100 * one['share']:.3g} %)"
    return [name, trained, gib(one["optimizer_bytes"]), gib(one["disk_bytes"]), rate]


def _show_section(session: Session, place: str, inner: str) -> None:
    from tunesmith.core.describe import describe

    cls = sections()[place]
    if inner:
        groups = {one.name: one.group for one in describe(cls) if one.group is not None}
        if inner not in groups:
            raise unknown_name(f"group in {place}", inner, groups, listing=f"tunesmith plugins {place}")
        cls = groups[inner]
    _show_class(session, cls, f"{place}.{inner}" if inner else place)


def _show_class(session: Session, cls: type[Any], name: str) -> None:
    """One class of settings: what it is, and each setting with type, default and meaning."""
    import inspect

    from tunesmith.core.describe import describe

    about = inspect.getdoc(inspect.getmodule(cls) if _is_plugin(cls) else cls) or ""
    settings = [
        {"name": one.name, "type": one.takes, "default": one.default, "documentation": one.text}
        for one in describe(cls)
    ]
    value: dict[str, Any] = {"name": name, "summary": about.partition("\n")[0], "documentation": about}
    value["settings"] = settings
    lines = [paint(name, "bold"), _prose(about, session.width), ""]
    if rate := getattr(cls, "learning_rate", None):
        value["learning_rate"] = rate
        lines += [fold(f"Peak learning rate: {rate:g}, where train.lr does not say another.", session.width), ""]
    for one in settings:
        default = f" · default {one['default']}" if one["default"] not in ("", "needed") else ""
        needed = " · needed" if one["default"] == "needed" else ""
        lines.append(
            fold(f"{paint(one['name'], 'cyan')}   {one['type'].replace('`', '')}{default}{needed}", session.width, 4)
        )
        if one["documentation"]:
            lines.append("    " + fold(one["documentation"], session.width - 4).replace("\n", "\n    "))
    session.result(value, "\n".join(lines if settings else [*lines, "It has no settings."]))


def _prose(text: str, width: int) -> str:
    """A docstring for a terminal: its paragraphs and list items, each folded anew."""
    lines: list[str] = []
    for line in text.splitlines():
        joins = bool(lines) and lines[-1] != "" and line.strip() != "" and not line.startswith("- ")
        if joins:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line.strip())
    return "\n".join(fold(line, width, 2 if line.startswith("- ") else 0) for line in lines)


def _is_plugin(cls: type[Any]) -> bool:
    from tunesmith.core.plugins import Plugin

    return issubclass(cls, Plugin)


def _table(columns: tuple[Column, ...], rows: list[list[str]], width: int) -> str:
    """A table whose last column is folded under itself instead of cut."""
    if is_flat(width):
        return table(columns, rows, width)
    edges = [max(len(column.title), *(len(_bare(row[i])) for row in rows)) + 3 for i, column in enumerate(columns[:-1])]
    room = max(20, width - sum(edges))
    lines = []
    for row in ([column.title for column in columns], *rows):
        head = "".join(cell + " " * (edge - len(_bare(cell))) for cell, edge in zip(row, edges, strict=False))
        lines.append((head + fold(row[-1], room).replace("\n", "\n" + " " * sum(edges))).rstrip())
    return "\n".join(lines)


def _bare(cell: str) -> str:
    from tunesmith.reporters.text import plain

    return plain(cell)
