"""Each reporter draws the same events: what it writes, when, and what it never writes."""

from __future__ import annotations

import json
import re
import sys
import types
from datetime import UTC, datetime

import pytest
from storyboard import QUESTION, demo, play, training, training_end
from streams import Stream

from tunesmith.core.events import Finding, Finished, Metric, Progress, Sample, Saved, Started, Warning
from tunesmith.reporters.choose import choose
from tunesmith.reporters.jsonl import JsonLines
from tunesmith.reporters.lines import Lines, value_text
from tunesmith.reporters.live import Live
from tunesmith.reporters.notebook import Notebook, loss_curve
from tunesmith.reporters.quiet import Quiet
from tunesmith.reporters.story import Story
from tunesmith.reporters.text import Output, cell_width, plain


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines_reporter() -> tuple[Lines, Stream, Clock]:
    stream, clock = Stream(), Clock()
    noon = datetime(2026, 11, 21, 18, 4, 2, tzinfo=UTC)
    reporter = Lines(Output(stream, environ={}), clock=clock, utc=lambda: noon)
    reporter.start()
    return reporter, stream, clock


def test_lines_have_time_verb_and_values() -> None:
    reporter, stream, _ = lines_reporter()
    with reporter:
        reporter(Started("train", values={"run": "runs/a-1", "steps": 640}))
        reporter(
            Metric("train", {"train_loss": 1.914, "validation_loss": 1.873, "tokens_per_second": 8120.4}, at=80, of=640)
        )
        reporter(Sample("train", "q", "a", at=80))
        reporter(Warning("train", "grad_spike", "it is 9 times its median", {"step": 251}))
        reporter(Saved("train", "runs/a-1/checkpoints/80", "checkpoint"))
        reporter(Finding("error", "leak", "a.jsonl:3", "a test row", "delete it", 2))
        reporter(Finished("train", "text for people", 161.0, {"steps": 640, "path": "runs/a-1"}))
    assert stream.text().splitlines() == [
        "18:04:02Z train start run=runs/a-1 steps=640",
        "18:04:02Z train step=80 of=640 train_loss=1.914 validation_loss=1.873 tokens_per_second=8120",
        '18:04:02Z train warning code=grad_spike step=251 message="it is 9 times its median"',
        "18:04:02Z train saved what=checkpoint path=runs/a-1/checkpoints/80",
        '18:04:02Z data finding level=error code=leak where=a.jsonl:3 rows=2 message="a test row" remedy="delete it"',
        "18:04:02Z train done seconds=161 steps=640 path=runs/a-1",
    ]


def test_lines_say_progress_once_in_ten_seconds() -> None:
    reporter, stream, clock = lines_reporter()
    reporter(Started("train"))
    for step in range(100):
        clock.now += 0.5
        reporter(Progress("train", step, 100))
    progress = [line for line in stream.text().splitlines() if " progress " in line]
    assert len(progress) == 5
    assert progress[0].endswith("done=19 of=100")
    reporter.stop()


def test_lines_have_a_heartbeat_only_in_silence() -> None:
    reporter, stream, clock = lines_reporter()
    reporter(Started("serve"))
    clock.now += 59
    reporter.heartbeat()
    assert "working" not in stream.text()
    clock.now += 2
    reporter.heartbeat()
    reporter.heartbeat()
    assert stream.text().count("serve working seconds=61") == 1
    reporter(Finished("serve"))
    clock.now += 100
    reporter.heartbeat()
    assert stream.text().count("working") == 1, "what has ended is silent"
    reporter.stop()


def test_lines_have_no_escapes_and_no_carriage_returns() -> None:
    reporter, stream, _ = lines_reporter()
    play(reporter, [*training(), training_end(), Warning("x", "hostile", "\x1b[31mred\rgone")])
    reporter.stop()
    assert "\x1b" not in stream.text()
    assert "\r" not in stream.text()
    assert all(re.match(r"\d\d:\d\d:\d\dZ [a-z]+ ", line) for line in stream.text().splitlines())


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (0.25, "0.25"), (12345.6, "12346"), ("a b", '"a b"'), ('a"b', '"a\\"b"'), (3, "3")],
)
def test_values_have_no_spaces_of_their_own(value: bool | float | str, text: str) -> None:
    assert value_text(value) == text


def test_jsonl_is_one_object_per_event_with_its_type() -> None:
    stream = Stream()
    events = [*training(), training_end(), Progress("train", 1, 2, values={"loss": float("nan")})]
    play(JsonLines(stream), events)
    records = [json.loads(line) for line in stream.text().splitlines()]
    assert len(records) == len(events)
    assert {record["type"] for record in records} == {
        *("started", "progress", "metric", "sample", "saved", "warning", "finished")
    }
    assert set(records[0]) == {
        *("type", "at_utc", "step", "title", "values", "lines", "at", "of", "on_interrupt"),
    }
    assert records[-1]["values"] == {"loss": "nan"}


@pytest.mark.parametrize("kind", ["lines", "live"])
def test_a_signal_in_the_middle_of_a_write_is_drawn_next(kind: str) -> None:
    class Interrupting(Stream):
        """A stream that is interrupted, once, while it writes; the handler emits."""

        is_done = False

        def write(self, text: str) -> int:
            if not self.is_done:
                self.is_done = True
                reporter(Warning("train", "stopping", "finishing step 3, then saving"))
            return super().write(text)

    stream = Interrupting(is_terminal=kind == "live")
    output = Output(stream, environ=TERMINAL)
    reporter = Lines(output) if kind == "lines" else Live(output)
    with reporter:
        reporter(Started("train", title="begins", values={"run": "begins"}))
    assert stream.text().index("begins") < stream.text().index("finishing step 3")


def test_quiet_writes_warnings_only() -> None:
    stream = Stream()
    play(Quiet(Output(stream, environ={})), [*training(), training_end()])
    assert stream.text() == "! step 248: gradient norm 18.2, 9 times its median; clipped to 1.0\n"


def story(width: int) -> Story:
    return Story(lambda: width, Clock())


def told(width: int, events: list[object]) -> tuple[list[str], list[str]]:
    teller = story(width)
    lines = [plain(line) for event in events for text in teller.tell(event) for line in text.split("\n")]  # type: ignore[arg-type]
    return lines, [plain(line) for line in teller.bottom()]


@pytest.mark.parametrize("width", [100, 80, 60, 40])
def test_no_line_of_a_training_is_wider_than_the_terminal(width: int) -> None:
    lines, bottom = told(width, training())
    assert bottom
    assert max(cell_width(line) for line in [*lines, *bottom] if " " in line) <= width, "only a URL may be wider"
    lines, bottom = told(width, demo())
    assert max(map(cell_width, [*lines, *bottom])) <= width


def test_a_training_is_told_as_drawn() -> None:
    lines, bottom = told(100, training())
    assert lines[0] == "run      runs/manual-lora-3 · http://127.0.0.1:8321/studio/runs/manual-lora-3"
    assert " step   train    validation      tokens/s    memory   What does error E07 mean?" in lines
    assert "  240   0.861    0.990 ▼ best      8,120   1.2 GiB   The water tank is empty." in lines
    assert "! step 248: gradient norm 18.2, 9 times its median; clipped to 1.0" in lines
    assert bottom[1].endswith("252/640   39 %  left 1 min 37 s")
    assert bottom[2].startswith("loss     0.789  █")
    assert bottom[2].endswith("best 0.990 at 240 · 8,155 tokens/s")
    assert bottom[3].startswith("Ctrl-C   finishes this step and saves; resume with: tunesmith train --resume")


def test_a_row_without_a_sample_is_still_told() -> None:
    lines, _ = told(80, [Started("train"), Metric("train", {"validation_loss": 2.0}, at=5), Progress("train", 6, 9)])
    assert lines == [" step   validation", "    5   2.000"]


def test_the_end_of_a_training_names_what_to_do_next() -> None:
    lines, bottom = told(100, [*training(), training_end()])
    assert bottom == []
    assert "34 validation rows   before              after" in lines
    assert "exact match          0.00 [0.00, 0.10]   0.71 [0.53, 0.85]" in lines
    assert "next     tunesmith compare recipes/manual_compare.yaml" in lines
    assert "         tunesmith chat runs/manual-lora-3" in lines


def test_a_training_inside_a_demo_is_only_a_bar() -> None:
    lines, bottom = told(100, demo())
    assert not any("never shown" in line for line in lines)
    assert [line[:11].strip() for line in lines if line[:1].isdigit()] == ["1/9 prepare", "2/9 check", "3/9 compare"]
    assert lines[-1].split() == ["LoRA,", "rank", "16", "fact", "match", "0.78", "[0.69,", "0.86]", "✓", "74", "s"]
    assert bottom == ["               full              " + "━" * 34 + "─" * 6 + "   85 %  left 21 s"]


def test_progress_before_the_head_does_not_hide_it() -> None:
    events = [Progress("train", 1, 5, label="scoring the base"), Started("train", lines=(("run", "runs/a-1"),))]
    lines, bottom = told(80, events)
    assert lines == ["run      runs/a-1", ""]
    assert bottom == []


def test_time_left_follows_the_pace() -> None:
    clock = Clock()
    teller = Story(lambda: 80, clock)
    teller.tell(Started("train"))
    teller.tell(Progress("train", 0, 100))
    clock.now += 10
    teller.tell(Progress("train", 20, 100))
    assert "left 40 s" in plain("\n".join(teller.bottom()))


def test_narrow_terminals_get_sentences() -> None:
    lines, bottom = told(40, training())
    assert "step 240 of 640: train 0.861, validation" in lines
    assert bottom[0] == "training: 252 of 640, left 1 min 37 s"


def test_a_notebook_updates_one_display_twice_a_second_at_most() -> None:
    clock, shown = Clock(), []
    reporter = Notebook(lambda data, name, is_update: shown.append((data, name, is_update)), clock)
    for event in training():
        clock.now += 0.05
        reporter(event)
    during = len(shown)
    reporter(training_end())
    assert 2 < during <= 0.05 * len(training()) / 0.5 + 1
    assert len({name for _, name, _ in shown}) == 1
    assert [is_update for _, _, is_update in shown] == [False] + [True] * during
    last = shown[-1][0]
    assert "next     tunesmith chat" in last["text/plain"].replace("         tunesmith chat", "next     tunesmith chat")
    assert last["text/html"].startswith("<table ")
    assert "<script" not in last["text/html"]
    assert "<style" not in last["text/html"]
    assert " id=" not in last["text/html"]
    assert 'stroke="currentColor"' in last["text/html"]
    assert "validation loss from 1.87 at step 80 to 0.99 at step 240" in last["text/html"]


def test_a_notebook_keeps_columns_without_styles() -> None:
    shown: list[dict[str, str]] = []
    play(Notebook(lambda data, name, is_update: shown.append(data), Clock()), [*training(), training_end()])
    bare = re.sub(r' style="[^"]*"', "", shown[-1]["text/html"])
    assert "<tr><td>run</td><td>runs/manual-lora-3 · http" in bare
    assert (
        f"<tr><th>step</th><th>train</th><th>validation</th><th>tokens/s</th><th>{QUESTION}</th><th></th></tr>" in bare
    )
    row = (
        "<tr><td>240</td><td>0.861</td><td>0.990</td><td>8,120</td><td>The water tank is empty.</td><td>best</td></tr>"
    )
    assert row in bare
    assert "<tr><td>loss</td><td>3.41 [3.22, 3.61]</td><td>0.60 [0.51, 0.70]</td></tr>" in bare
    assert "<div>! step 248: gradient norm" in bare


def test_a_notebook_shows_no_heads_of_inner_steps() -> None:
    clock, shown = Clock(), []
    reporter = Notebook(lambda data, name, is_update: shown.append(data), clock)
    for event in demo():
        clock.now += 1
        reporter(event)
    assert "never shown" not in shown[-1]["text/html"]
    assert "fact match 0.78 [0.69, 0.86]" in shown[-1]["text/html"]
    assert "85 %" in shown[-1]["text/html"]


def test_a_notebook_escapes_what_models_say() -> None:
    shown: list[dict[str, str]] = []
    reporter = Notebook(lambda data, name, is_update: shown.append(data), Clock())
    reporter(Started("train", lines=(("run", "<script>alert(1)</script>"),)))
    assert "<script>" not in shown[0]["text/html"]
    assert "&lt;script&gt;" in shown[0]["text/html"]


def test_a_second_step_gets_a_display_of_its_own() -> None:
    names: list[str] = []
    reporter = Notebook(lambda data, name, is_update: names.append(name), Clock())
    play(reporter, [Started("a", title="one"), Finished("a", "ok"), Started("b", title="two"), Finished("b", "ok")])
    assert len(set(names)) == 2


def test_a_curve_goes_from_the_first_point_to_the_last() -> None:
    svg = loss_curve([(0, 2.0), (10, 1.0)], width=108, height=108)
    assert 'points="4.0,4.0 104.0,104.0"' in svg


TERMINAL = {"TERM": "xterm-256color"}


@pytest.mark.parametrize(
    ("options", "environ", "is_terminal", "kind"),
    [
        ({}, TERMINAL, True, Live),
        ({}, TERMINAL, False, Lines),
        ({}, {**TERMINAL, "CI": "true"}, True, Lines),
        ({}, {"TERM": "dumb"}, True, Lines),
        ({}, {**TERMINAL, "TUNESMITH_ACCESSIBLE": "1"}, True, Lines),
        ({"events": "jsonl"}, TERMINAL, True, JsonLines),
        ({"is_quiet": True}, TERMINAL, True, Quiet),
        ({"progress": "none"}, TERMINAL, True, Quiet),
        ({"progress": "lines"}, TERMINAL, True, Lines),
        ({"progress": "live"}, {}, False, Live),
        ({}, {**TERMINAL, "RANK": "1"}, True, Quiet),
        ({}, {**TERMINAL, "RANK": "0"}, True, Live),
    ],
)
def test_the_reporter_fits_the_situation(
    options: dict[str, object], environ: dict[str, str], is_terminal: bool, kind: type
) -> None:
    output = Output(Stream(is_terminal=is_terminal), environ=environ)
    assert type(choose(output, environ=environ, **options)) is kind  # type: ignore[arg-type]


def test_a_kernel_gets_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)  # type: ignore[arg-type]
    assert type(choose(Output(Stream(), environ={}), environ={})) is Notebook
    terminal = types.SimpleNamespace(get_ipython=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "IPython", terminal)  # type: ignore[arg-type]
    assert type(choose(Output(Stream(), environ={}), environ={})) is Lines


def test_only_one_live_draws_at_the_bottom() -> None:
    first, second = (Live(Output(Stream(is_terminal=True), environ=TERMINAL)) for _ in range(2))
    with first, second:
        play(first, [Started("a"), Progress("a", 1, 2)])
        play(second, [Started("b", title="scrolls"), Progress("b", 1, 2)])
        assert first._live is not None
        assert second._live is None
    third = Live(Output(Stream(is_terminal=True), environ=TERMINAL))
    with third:
        play(third, [Started("c"), Progress("c", 1, 2)])
        assert third._live is not None


def test_the_question_heads_the_column_of_answers() -> None:
    assert any(line.endswith(QUESTION) for line in told(80, training())[0])
