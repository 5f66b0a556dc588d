"""The store: numbers, aliases with history, requests, feedback, jobs; on SQLite, and on PostgreSQL where it is."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.home import Home
from tunesmith.core.store import AliasMove, FeedbackRow, Job, RequestRow, Store, Version, database, split_reference


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a private PostgreSQL server on a socket in a temporary folder."""
    pytest.importorskip("psycopg", reason="no PostgreSQL driver (psycopg)")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
    if initdb is None:
        pytest.skip("no PostgreSQL server on this machine")
    folder = tmp_path_factory.mktemp("pg")
    prefix: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        prefix = ["runuser", "-u", "nobody", "--"]
        folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/tunesmith-pg-XXXXXX"], text=True).strip())
        shutil.chown(folder, "nobody")
    data, binaries = folder / "data", Path(initdb).parent
    subprocess.run(
        [*prefix, initdb, "-D", str(data), "-U", "tunesmith", "-A", "trust"], check=True, capture_output=True
    )
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    control = [*prefix, str(binaries / "pg_ctl"), "-D", str(data)]
    log = str(folder / "log")
    subprocess.run([*control, "-o", options, "-l", log, "-w", "start"], check=True, capture_output=True)
    try:
        yield f"postgresql://tunesmith@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """ "" for the home's SQLite file, or a freshly emptied PostgreSQL database."""
    if request.param == "sqlite":
        return ""
    server: str = request.getfixturevalue("postgresql")
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return server


@pytest.fixture
def store(tmp_path: Path, url: str) -> Iterator[Store]:
    opened = Store.open(Home(tmp_path), url)
    yield opened
    opened.close()


def add(store: Store, name: str, content: str) -> Version:
    number = store.reserve_number(name)
    folder = store.home.versions(name) / str(number)
    folder.mkdir(parents=True)
    return store.add_version(name, number, content_hash=content, folder=folder, lineage={"seed": 1, "scores": []})


def promote(store: Store, name: str, number: int) -> AliasMove:
    return store.move_alias(name, "champion", number, expected=store.aliases(name).get("champion"))


def test_reading_a_store_that_is_not_there_creates_nothing(tmp_path: Path) -> None:
    store = Store.open(Home(tmp_path))
    assert store.names() == ()
    with pytest.raises(UserError, match='there is no registered model "x"'):
        store.version("x")
    assert list(tmp_path.iterdir()) == []


def test_numbers_count_up_and_are_never_given_again(store: Store) -> None:
    assert add(store, "manual", "a").number == 1
    assert add(store, "manual", "b").number == 2
    store.delete_version("manual:2")
    assert add(store, "manual", "c").number == 3
    assert store.reserve_number("manual", at_least=9) == 9
    assert store.reserve_number("other") == 1


def test_the_same_content_is_recorded_once(store: Store) -> None:
    first = add(store, "manual", "a")
    again = add(store, "manual", "a")
    assert (first.number, first.is_new) == (1, True)
    assert (again.number, again.is_new) == (1, False)
    assert add(store, "other", "a").is_new
    found = store.find_content("manual", "a")
    assert found is not None and found.number == 1
    assert store.find_content("manual", "zzz") is None


def test_a_name_stands_for_its_champion_else_its_newest(store: Store) -> None:
    add(store, "manual", "a")
    add(store, "manual", "b")
    assert store.version("manual").number == 2
    promote(store, "manual", 1)
    assert store.version("manual").number == 1
    assert store.version("manual@champion").aliases == ("champion",)
    assert store.version("manual:2").reference == "manual:2"
    assert [v.number for v in store.versions("manual")] == [2, 1]


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("manul", 'did you mean "manual"?'),
        ("manual@champoin", 'did you mean "champion"?'),
        ("manual:7", "there are: manual:1"),
        ("manual:x", "names no version"),
        ("../etc", "names no version"),
        ("manual@", "names no version"),
        ("manual:1:2", "names no version"),
        ("a" * 65, "names no version"),
        ("ma\0nual", "names no version"),
    ],
)
def test_a_wrong_reference_says_what_there_is(store: Store, reference: str, text: str) -> None:
    add(store, "manual", "a")
    promote(store, "manual", 1)
    with pytest.raises(UserError) as fault:
        store.version(reference)
    assert text in fault.value.line()


def test_an_alias_that_was_never_set_says_how_to_set_it(store: Store) -> None:
    add(store, "manual", "a")
    with pytest.raises(UserError) as fault:
        store.version("manual@champion")
    assert "tunesmith models promote manual:1" in fault.value.line()


def test_references_are_split_in_three_forms() -> None:
    assert split_reference("manual") == ("manual", "", "")
    assert split_reference("manual@champion") == ("manual", "@", "champion")
    assert split_reference("manual:12") == ("manual", ":", "12")


def test_an_alias_moves_only_from_where_it_was_seen(store: Store) -> None:
    for content in "abc":
        add(store, "manual", content)
    move = store.move_alias("manual", "champion", 1, expected=None, gates=[{"name": "files", "passed": True}])
    assert (move.previous, move.number, move.kind) == (None, 1, "promote")
    for stale in (None, 3):
        with pytest.raises(UserError, match="it is 1, not") as fault:
            store.move_alias("manual", "champion", 2, expected=stale)
        assert fault.value.code == "alias_moved"
    store.move_alias("manual", "champion", 2, expected=1)
    store.move_alias("manual", "champion", 1, expected=2, kind="rollback")
    history = store.history("manual")
    assert [(m.previous, m.number, m.kind) for m in history] == [
        (None, 1, "promote"),
        (1, 2, "promote"),
        (2, 1, "rollback"),
    ]
    assert history[0].gates == ({"name": "files", "passed": True},)
    assert history[0].to_dict()["from"] is None


def test_an_alias_never_points_at_nothing(store: Store) -> None:
    add(store, "manual", "a")
    with pytest.raises(UserError, match='there is no version "manual:5"'):
        store.move_alias("manual", "champion", 5, expected=None)
    with pytest.raises(UserError, match="cannot be a name for an alias"):
        store.move_alias("manual", "not ok", 1, expected=None)
    assert store.aliases("manual") == {}


def test_an_aliased_version_cannot_be_deleted(store: Store) -> None:
    version = add(store, "manual", "a")
    promote(store, "manual", 1)
    with pytest.raises(UserError) as fault:
        store.delete_version("manual:1")
    assert fault.value.code == "version_aliased"
    assert "it is the champion" in fault.value.message
    assert version.folder.is_dir()


def test_deleting_takes_the_files_too(store: Store) -> None:
    version = add(store, "manual", "a")
    store.delete_version("manual:1")
    assert not version.folder.exists()
    assert store.versions("manual") == ()


def test_the_database_itself_refuses_to_change_history(tmp_path: Path) -> None:
    home = Home(tmp_path)
    store = Store.open(home)
    add(store, "manual", "a")
    promote(store, "manual", 1)
    store.close()
    connection = sqlite3.connect(home.database)
    for statement in ("UPDATE alias_history SET number = 9", "DELETE FROM alias_history"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_feedback_is_one_per_request_name_and_rater(store: Store) -> None:
    store.add_request(RequestRow(id="r1", model="manual", version=3, num_choices=2))
    store.give_feedback(FeedbackRow(request="r1", value=True, rater="ann"))
    store.give_feedback(FeedbackRow(request="r1", value=False, rater="ann", choice=1, correction="Every month."))
    store.give_feedback(FeedbackRow(request="r1", value=True, rater="bob"))
    store.give_feedback(FeedbackRow(request="r1", name="style", value=4, rater="ann"))
    rows = {(row.name, row.rater): row for row, _ in store.feedback("manual")}
    assert len(rows) == 3
    assert rows["thumbs", "ann"].value is False
    assert rows["thumbs", "ann"].correction == "Every month."
    assert rows["style", "ann"].value == 4
    assert {request.version for _, request in store.feedback()} == {3}
    assert store.feedback("other") == ()


def test_feedback_on_an_unknown_request_or_choice_is_refused(store: Store) -> None:
    with pytest.raises(UserError) as fault:
        store.give_feedback(FeedbackRow(request="nope"))
    assert fault.value.code == "unknown_request"
    store.add_request(RequestRow(id="r1", model="manual"))
    with pytest.raises(UserError, match="there is none 1"):
        store.give_feedback(FeedbackRow(request="r1", choice=1))
    with pytest.raises(UserError, match="at most 100,000 characters, not 100,001"):
        store.give_feedback(FeedbackRow(request="r1", correction="x" * 100_001))
    assert store.feedback() == ()


def test_the_text_of_a_request_is_kept_only_when_given(store: Store) -> None:
    store.add_request(RequestRow(id="r1", model="manual", seconds=0.5))
    messages = ({"role": "user", "content": "Wie heiß?"},)
    store.add_request(RequestRow(id="r2", model="manual", messages=messages, answers=("Sehr.",)))
    assert store.request("r1").messages is None and store.request("r1").answers is None
    assert store.request("r1").seconds == 0.5
    assert store.request("r2").messages == messages
    assert store.request("r2").answers == ("Sehr.",)
    assert store.request("r2").at.endswith("Z")
    with pytest.raises(UserError, match="recorded before"):
        store.add_request(RequestRow(id="r1", model="manual"))


def test_a_job_keeps_its_state_and_progress(store: Store) -> None:
    store.add_job(Job(id="j1", kind="train", values={"recipe": "a.yaml"}))
    store.change_job("j1", state="running", progress=0.5)
    job = store.job("j1")
    assert (job.state, job.progress, dict(job.values)) == ("running", 0.5, {"recipe": "a.yaml"})
    assert [j.id for j in store.jobs()] == ["j1"]
    with pytest.raises(UserError, match="there is no job 'j2'"):
        store.job("j2")


def _register_many(folder: Path, url: str, worker: int, count: int) -> None:
    store = Store.open(Home(folder), url)
    for index in range(count):
        version = add(store, "manual", f"{worker}-{index}")
        while True:
            try:
                promote(store, "manual", version.number)
                break
            except UserError as fault:
                assert fault.code == "alias_moved", fault.line()
    store.close()


def test_processes_register_and_promote_at_once_without_loss(tmp_path: Path, url: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_register_many, args=(tmp_path, url, n, 8)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    store = Store.open(Home(tmp_path), url)
    assert sorted(v.number for v in store.versions("manual")) == list(range(1, 25))
    history = store.history("manual")
    assert len(history) == 24
    assert [m.previous for m in history] == [None, *[m.number for m in history[:-1]]]
    assert store.aliases("manual") == {"champion": history[-1].number}
    store.close()


def test_the_migrations_lead_to_the_tables_of_the_code(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    from tunesmith.core.store.tables import metadata

    add(store, "manual", "a")
    with store._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    folder = Path(database.__file__).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == database.NEWEST


def test_a_store_of_a_newer_tunesmith_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    store = Store.open(home)
    store.reserve_number("manual")
    store.close()
    connection = sqlite3.connect(home.database)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(UserError, match="newer Tunesmith") as fault:
        Store.open(home).names()
    assert 'its tables are at "9999"' in fault.value.message


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.registry.mkdir()
    home.database.write_bytes(b"this is no database at all, whatever its name says" * 50)
    with pytest.raises(UserError) as fault:
        Store.open(home).names()
    assert fault.value.code == "store_damaged"
    assert fault.value.where == str(home.database)


@pytest.mark.parametrize("wrong", ["nonsense", "mysql://user:secret@host/db", "sqlite://"])
def test_a_wrong_store_address_is_refused_without_its_password(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UserError) as fault:
        Store.open(Home(tmp_path), wrong)
    assert fault.value.code == "bad_store"
    assert "secret" not in fault.value.line()


def test_the_store_can_be_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_STORE", f"sqlite:///{tmp_path}/other/s.db")
    store = Store.open(Home(tmp_path / "home"))
    store.reserve_number("manual")
    store.close()
    assert (tmp_path / "other" / "s.db").is_file()
    assert not Home(tmp_path / "home").database.exists()


def test_a_store_in_an_unwritable_place_says_so(tmp_path: Path) -> None:
    (tmp_path / ".tunesmith").write_text("a file in the way")
    with pytest.raises(UserError) as fault:
        Store.open(Home(tmp_path)).reserve_number("manual")
    assert fault.value.code == "cannot_write"
