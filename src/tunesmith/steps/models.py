"""Versions: list and show what is registered, promote through gates, roll back along the alias' history."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tunesmith.core.errors import GateError, UserError
from tunesmith.core.events import Emit, Finished, Started
from tunesmith.core.home import Home
from tunesmith.core.publish import verify
from tunesmith.core.quantities import duration, interval
from tunesmith.core.store import CHAMPION, AliasMove, Store, Version, check_name, split_reference
from tunesmith.steps.gates import MARGIN, Gate, Judgement, judge
from tunesmith.steps.register import register

__all__ = ["Listed", "Promotion", "Rollback", "Shown", "list_models", "promote", "register", "rollback", "show"]


@dataclass(frozen=True)
class Listed:
    """A version with what a list shows of it."""

    version: Version
    num_bytes: int
    requests_last_hour: int

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.version.to_dict(),
            "size_bytes": self.num_bytes,
            "requests_last_hour": self.requests_last_hour,
        }


@dataclass(frozen=True)
class Shown:
    """Everything that is known of a version; `judgement` only where its gates were asked for."""

    listed: Listed
    history: tuple[AliasMove, ...]
    judgement: Judgement | None = None

    def to_dict(self) -> dict[str, Any]:
        gates = self.judgement.gates if self.judgement else ()
        return {
            **self.listed.to_dict(),
            "history": [move.to_dict() for move in self.history],
            "gates": [gate.to_dict() for gate in gates],
        }


@dataclass(frozen=True)
class Promotion:
    """An alias after a promotion. `move` is None where it pointed there already."""

    version: Version
    alias: str
    previous: int | None
    judgement: Judgement
    move: AliasMove | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.version.name,
            "alias": self.alias,
            "from": self.previous,
            "to": self.version.number,
            "is_moved": self.move is not None,
            "gates": [gate.to_dict() for gate in self.judgement.gates],
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Rollback:
    """An alias after it was moved back. `served_until` is when the version left it before."""

    move: AliasMove
    served_until: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {**self.move.to_dict(), "served_until": self.served_until, "seconds": self.seconds}


def list_models(home: Home, name: str = "") -> tuple[Listed, ...]:
    """All versions, newest first within each name; of one name where it is given.

    Raises:
        UserError: There is no such name.
    """
    with Store.open(home) as store:
        counts = store.request_counts(_an_hour_ago())
        names = (name,) if name else store.names()
        return tuple(_listed(version, counts) for one in names for version in store.versions(one))


def show(home: Home, reference: str, *, emit: Emit, with_gates: bool = False) -> Shown:
    """One version with its lineage and its aliases' history; its gates are tried only where asked for.

    Raises:
        UserError: There is no such version.
    """
    with Store.open(home) as store:
        version = store.version(reference)
        listed = _listed(version, store.request_counts(_an_hour_ago()))
        champion = _holder(store, version.name, CHAMPION)
        history = store.history(version.name)
    judgement = judge(version, _other(champion, version), emit=emit) if with_gates else None
    return Shown(listed, history, judgement)


def promote(
    home: Home,
    reference: str,
    *,
    alias: str = CHAMPION,
    margin: float = MARGIN,
    must_improve: bool = False,
    emit: Emit,
) -> Promotion:
    """Move an alias to a version if every gate holds; `must_improve` asks for a better score, too.

    Other aliases than the champion's are for trying: their gates are the same, but nothing is compared.

    Raises:
        GateError: A gate failed; the alias stays where it was.
        UserError: There is no such version, or somebody else moved the alias meanwhile.
    """
    started = time.perf_counter()
    check_name(alias, "an alias")
    with Store.open(home) as store:
        version = _candidate(store, reference)
        held = _holder(store, version.name, alias)
    rival = _other(held, version) if alias == CHAMPION else None
    emit(Started("promote", title_of(version, rival, alias), {"version": version.reference, "alias": alias}))
    judgement = judge(version, rival, margin=margin, must_improve=must_improve, emit=emit)
    if judgement.failed:
        raise _refusal(version, alias, held, judgement)
    previous = held.number if held else None
    move = None
    with Store.open(home) as store:
        if previous != version.number:
            gates = [gate.to_dict() for gate in judgement.gates]
            move = store.move_alias(version.name, alias, version.number, expected=previous, gates=gates)
        version = store.version(version.reference)
    seconds = time.perf_counter() - started
    promotion = Promotion(version, alias, previous, judgement, move, seconds)
    following = () if alias != CHAMPION else (f"tunesmith serve {version.name}",)
    emit(Finished("promote", sentence_of(promotion), seconds, {"version": version.number}, next=following))
    return promotion


def rollback(home: Home, name: str, *, alias: str = CHAMPION, emit: Emit) -> Rollback:
    """Move an alias back to the version that held it before; again for the one before that.

    Raises:
        UserError: There is none, or its files are damaged.
    """
    started = time.perf_counter()
    wanted, separator, rest = split_reference(name)
    if separator == ":":
        raise UserError("rolling back needs a name, not a version.", code="bad_reference", remedy=f"Write {wanted}.")
    alias = rest or alias
    with Store.open(home) as store:
        target, history, held = _before(store, wanted, alias)
        verify(target.folder)
        move = store.move_alias(wanted, alias, target.number, expected=held, kind="rollback")
    until = next((one.at for one in reversed(history) if one.previous == target.number), "")
    result = Rollback(move, until, time.perf_counter() - started)
    emit(Finished("rollback", rollback_sentence(result), result.seconds, {"from": move.previous, "to": move.number}))
    return result


def _before(store: Store, name: str, alias: str) -> tuple[Version, tuple[AliasMove, ...], int]:
    """The version to go back to, the alias' history, and the version it is at."""
    existing = {version.number: version for version in store.versions(name)}
    history = store.history(name, alias)
    held = _stack(history)
    earlier = [number for number in held[:-1] if number in existing]
    if not earlier:
        been = f"has been {held[-1]} from the start" if held else "was never set"
        raise UserError(
            f"there is no earlier version to go back to: {name}@{alias} {been}.",
            code="no_earlier_version",
            remedy=f"Promote one instead: tunesmith models list {name}",
        )
    return existing[earlier[-1]], history, held[-1]


def title_of(version: Version, rival: Version | None, alias: str) -> str:
    """`manual:4 against manual@champion (version 3)`."""
    if rival is None:
        return f"{version.reference} as {version.name}@{alias}"
    return f"{version.reference} against {version.name}@{alias} (version {rival.number})"


def sentence_of(promotion: Promotion) -> str:
    """`manual@champion: 3 → 4`."""
    version = promotion.version
    if promotion.move is None:
        return f"{version.name}@{promotion.alias} is {version.number} already; all its gates hold"
    before = "none" if promotion.previous is None else promotion.previous
    return f"{version.name}@{promotion.alias}: {before} → {version.number}"


def rollback_sentence(result: Rollback) -> str:
    """`manual@champion: 4 → 3, which served until 14:10 today.`"""
    move = result.move
    until = f", which served until {_moment(result.served_until)}" if result.served_until else ""
    return f"{move.name}@{move.alias}: {move.previous} → {move.number}{until} ({duration(result.seconds)})"


def score_text(version: Version) -> str:
    """The deciding score with its interval, a dash where there is none."""
    if not version.scores:
        return "–"
    score = version.scores[0]
    return interval(score["value"], score["low"], score["high"])


def _candidate(store: Store, reference: str) -> Version:
    """What to promote: a plain name means its newest version, not its champion."""
    name, separator, _ = split_reference(reference)
    if separator:
        return store.version(reference)
    versions = store.versions(name)
    return versions[0] if versions else store.version(reference)


def _holder(store: Store, name: str, alias: str) -> Version | None:
    number = store.aliases(name).get(alias)
    return None if number is None else store.version(f"{name}:{number}")


def _other(held: Version | None, version: Version) -> Version | None:
    return None if held is None or held.number == version.number else held


def _refusal(version: Version, alias: str, held: Version | None, judgement: Judgement) -> GateError:
    stays = f"{alias} is still {held.number}" if held else f"there is no {alias} yet"
    count = f"{len(judgement.failed)} of {len(judgement.gates)} gates failed"
    first: Gate = judgement.failed[0]
    return GateError(
        f"{version.reference} was not promoted: {count}, first {first.name}; {stays}.",
        gates=judgement.gates,
        remedy=f"Look at it: tunesmith models show {version.reference} --gates",
    )


def _stack(history: tuple[AliasMove, ...]) -> list[int]:
    """The versions an alias held, oldest first, without those that were rolled back."""
    held: list[int] = []
    for move in history:
        if move.kind == "rollback":
            while held and held[-1] != move.number:
                held.pop()
        else:
            held.append(move.number)
    return held


def _listed(version: Version, counts: Mapping[tuple[str, int | None], int]) -> Listed:
    size = sum(path.stat().st_size for path in version.folder.rglob("*") if path.is_file())
    return Listed(version, size, counts.get((version.name, version.number), 0))


def _an_hour_ago() -> str:
    return (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(at: str) -> str:
    """`14:10 today`, or the day and time, in the local zone."""
    then = datetime.fromisoformat(at).astimezone()
    is_today = then.date() == datetime.now().astimezone().date()
    return f"{then:%H:%M} today" if is_today else f"{then:%Y-%m-%d %H:%M}"
