"""The frame of the command line, as a user meets it: streams, exit codes, flags, errors, start-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.cli import main as frame
from tunesmith.cli.flags import UsageError, read_flags
from tunesmith.core.errors import Interrupted


def tunesmith(*words: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its streams apart."""
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    return subprocess.run(
        [sys.executable, "-m", "tunesmith", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**clean, **environ},
        timeout=120,
    )


def test_help_lists_every_command_without_heavy_imports() -> None:
    code = (
        "import sys; from tunesmith.cli.main import main; main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, summary in frame.COMMANDS.items():
        assert name in done.stdout
        assert summary in " ".join(done.stdout.split())
    for heavy in ("torch", "transformers", "rich", "pydantic", "typer", "yaml"):
        assert f"'{heavy}'" not in done.stderr


def test_help_is_back_in_half_a_second() -> None:
    spent = []
    for _ in range(5):
        begun = time.perf_counter()
        assert tunesmith("--help").returncode == 0
        spent.append(time.perf_counter() - begun)
    assert min(spent) < 0.5


@pytest.mark.parametrize("name", sorted(frame.COMMANDS))
def test_every_command_has_help_with_an_example(name: str) -> None:
    done = tunesmith(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: tunesmith {name}")
    if name not in frame.GROUPS:
        assert f"tunesmith {name}" in done.stdout.partition("Example")[2], "its help ends with an example"


def test_the_version_is_said() -> None:
    assert tunesmith("--version").stdout.startswith("Tunesmith 0.")


def test_no_command_shows_help_on_stderr_and_is_a_usage_error() -> None:
    done = tunesmith()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands" in done.stderr


def test_an_unknown_command_suggests_the_nearest() -> None:
    done = tunesmith("trian")
    assert done.returncode == 2
    assert done.stderr == 'error  there is no command "trian"; did you mean "train"? [unknown_command]\n'


def test_an_unknown_option_is_a_usage_error() -> None:
    done = tunesmith("train", "--foo")
    assert done.returncode == 2
    assert done.stderr == "error  No such option: --foo. See: tunesmith train --help [usage]\n"


def test_an_unknown_inner_command_suggests_the_nearest() -> None:
    done = tunesmith("models", "lst")
    assert done.returncode == 2
    assert done.stderr == "error  No such command 'lst'. Did you mean 'list'? See: tunesmith models --help [usage]\n"


def test_a_group_alone_shows_what_it_has() -> None:
    done = tunesmith("models")
    assert done.returncode == 0
    assert all(name in done.stdout for name in frame.GROUPS["models"])


def test_a_wrong_key_is_one_line_with_place_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: tunesmith/base\ndata: {source: rows.jsonl}\ntrain:\n  epoch: 3\n")
    done = tunesmith("train", "r.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == 'error  r.yaml:4: "epoch" is not a setting of train; did you mean "epochs"? [unknown_setting]\n'
    )


def test_json_errors_are_one_object_on_stdout_with_the_same_code(tmp_path: Path) -> None:
    done = tunesmith("train", "nope.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert set(error) == {"code", "message", "where", "remedy"}
    assert (error["code"], error["where"]) == ("no_file", "nope.yaml")


def test_json_goes_anywhere_and_is_one_object(tmp_path: Path) -> None:
    before, after = tunesmith("--json", "plugins", "metrics"), tunesmith("plugins", "metrics", "--json")
    assert before.stdout == after.stdout
    listed = json.loads(after.stdout)
    assert {"name", "summary"} == set(listed[0])
    assert "exact_match" in [one["name"] for one in listed]


def test_a_closed_reader_is_no_error() -> None:
    script = f"{sys.executable} -m tunesmith --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Fine-tune")
    assert done.stderr == ""


def test_an_ascii_stream_gets_ascii_and_json_stays_json() -> None:
    done = tunesmith("plugins", "train", PYTHONIOENCODING="ascii")
    assert done.stdout.isascii()
    assert ">= 0" in done.stdout
    assert "≥ 0" in str(json.loads(tunesmith("plugins", "train", "--json", PYTHONIOENCODING="ascii").stdout))


@pytest.mark.parametrize("width", [100, 80, 60])
def test_output_keeps_to_the_width(width: int) -> None:
    for words in (("--help",), ("plugins",), ("plugins", "metrics"), ("plugins", "data")):
        lines = tunesmith(*words, COLUMNS=str(width)).stdout.splitlines()
        assert max(map(len, lines)) <= width, words


def broken(fault: BaseException) -> None:
    """Make `tunesmith chat` fail in this process."""
    raise fault


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return monkeypatch


def fail_with(failing: pytest.MonkeyPatch, fault: BaseException) -> None:
    failing.setattr(frame, "_call", lambda name, rest, session: broken(fault))


def test_a_bug_is_one_line_and_the_traceback_is_in_the_log(
    failing: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fail_with(failing, ZeroDivisionError("division by zero"))
    assert frame.main(["chat"]) == 70
    said = capsys.readouterr()
    log = tmp_path / "tunesmith" / "tunesmith.log"
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "ZeroDivisionError: division by zero" in said.err
    assert str(log) in said.err
    assert "Traceback" in log.read_text()


def test_debug_shows_the_traceback(failing: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(failing, ZeroDivisionError("division by zero"))
    assert frame.main(["chat", "--debug"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_interruption_is_130_and_names_how_to_go_on(
    failing: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(failing, Interrupted("stopped at step 7", resume="tunesmith train --resume runs/a-1"))
    assert frame.main(["train"]) == 130
    assert capsys.readouterr().err == "stopped  stopped at step 7\nresume   tunesmith train --resume runs/a-1\n"


def test_ctrl_c_without_anything_to_save_is_130_too(
    failing: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(failing, KeyboardInterrupt())
    assert frame.main(["train", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "interrupted"


def test_the_users_own_settings_of_other_packages_stay(failing: pytest.MonkeyPatch) -> None:
    failing.setenv("TRANSFORMERS_VERBOSITY", "debug")
    failing.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    frame.main(["--version"])
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_flags_are_found_anywhere_but_not_after_two_dashes() -> None:
    flags, words = read_flags(["train", "--home", "there", "r.yaml", "--color=never", "--", "--json"])
    assert (flags.home, flags.color, flags.is_json) == ("there", "never", False)
    assert words == ["train", "r.yaml", "--", "--json"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--color", "red"], '--color cannot be "red"; it is one of auto, always, never. [usage]'),
        (["--events"], "--events needs a value; it is one of jsonl. [usage]"),
        (["--home"], "--home needs a value; for example: --home ~/tunesmith [usage]"),
    ],
)
def test_a_wrong_flag_says_what_it_takes(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_flags(argv)
    assert caught.value.line() == message


def test_a_missing_recipe_is_asked_for() -> None:
    done = tunesmith("train")
    assert done.returncode == 2
    assert done.stderr == "error  train what? For example: tunesmith train recipes/manual_lora.yaml [usage]\n"


def test_resume_takes_no_recipe() -> None:
    done = tunesmith("train", "r.yaml", "--resume", "runs/a-1")
    assert (done.returncode, "leave the recipe out" in done.stderr) == (2, True)
