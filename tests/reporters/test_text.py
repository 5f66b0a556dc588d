"""The toolkit: numbers, drawings and tables against values worked by hand."""

from __future__ import annotations

import math

import pytest
from streams import Stream

from tunesmith.reporters.text import (
    Column,
    Output,
    cell_width,
    count,
    duration,
    facts,
    fold,
    gib,
    interval,
    interval_bar,
    millions,
    number,
    pad,
    paint,
    plain,
    progress_bar,
    shorten,
    signed,
    sparkline,
    spoken,
    table,
    to_ascii,
)

COLUMNS = (
    Column("", 9),
    Column("", 5, is_drawing=True),
    Column("fact match", 8),
    Column("s/answer", 7, "right"),
    Column("train", 4, "right"),
    Column("memory", 2, "right"),
    Column("forgets", 3, "right"),
)
ROWS = (
    ("zero-shot", interval_bar(0.02, 0.0, 0.06, 22, 0, 1), "0.02 [0.00, 0.06]", "0.08", "–", "0.3 GiB", "–"),
    (
        "LoRA, rank 16",
        interval_bar(0.78, 0.69, 0.86, 22, 0, 1),
        "0.78 [0.69, 0.86]",
        "0.09",
        "74 s",
        "1.2 GiB",
        "+5.7 %",
    ),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.598, "0.598"),
        (1.82, "1.82"),
        (30.3, "30.3"),
        (113.4, "113"),
        (1204.4, "1,204"),
        (-0.14, "−0.140"),
        (None, "–"),
    ],
)
def test_a_score_has_three_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_number_that_is_none_says_so() -> None:
    assert number(math.nan) == "nan"
    assert number(0.0002) == "0.0002"


def test_an_interval_has_the_same_decimals_everywhere() -> None:
    assert interval(0.78, 0.69, 0.86) == "0.78 [0.69, 0.86]"
    assert interval(30.3, 25, 37) == "30.3 [25.0, 37.0]"
    assert interval(0, 0, 0) == "0.00 [0.00, 0.00]"
    assert interval(0.03, -0.014, 0.08) == "0.03 [−0.01, 0.08]"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.005, "5 ms"), (0.42, "0.4 s"), (14.2, "14 s"), (160, "2 min 40 s"), (2280, "38 min"), (3720, "1 h 2 min")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_quantities_are_written_for_people() -> None:
    assert (count(18412), gib(1.2 * 2**30), gib(2**20), millions(6_200_000)) == (
        "18,412",
        "1.2 GiB",
        "1.0 MiB",
        "6.2 M",
    )
    assert (signed(0.53), signed(-0.14), signed(-0.001)) == ("+0.53", "−0.14", "0.00")


def test_a_sparkline_falls_as_its_values_do() -> None:
    assert sparkline([7, 6, 5, 4, 3, 2, 1, 0]) == "█▇▆▅▄▃▂▁"
    assert sparkline([1, 1, 5, 5], width=2) == "▁█"
    assert sparkline([2, 2]) == "▁▁"
    assert sparkline([]) == sparkline([math.nan]) == ""


def test_an_interval_bar_lies_where_its_numbers_lie() -> None:
    assert interval_bar(0.5, 0.25, 0.75, 9, 0, 1) == "  ├─●─┤  "
    assert interval_bar(0.0, 0.0, 0.25, 9, 0, 1) == "●─┤      "
    assert interval_bar(9, 8, 10, 5, 0, 1) == "    ●", "what is off the axis stays at its end"
    assert interval_bar(math.nan, 0, 1, 5, 0, 1) == "     "


def test_a_progress_bar_is_full_only_at_the_end() -> None:
    assert progress_bar(1, 4, 8) == "━━──────"
    assert progress_bar(999, 1000, 8) == "━━━━━━━─"
    assert progress_bar(4, 4, 8) == "━━━━━━━━"
    assert progress_bar(4, 0, 4) == "────"


@pytest.mark.parametrize("width", [120, 100, 80, 70, 60])
def test_a_table_never_exceeds_its_width_nor_breaks_a_number(width: int) -> None:
    lines = table(COLUMNS, ROWS, width).split("\n")
    assert len(lines) == 3
    assert max(map(cell_width, lines)) <= width
    assert "0.78 [0.69, 0.86]" in lines[2]


def test_the_least_important_columns_go_first() -> None:
    titles = [table(COLUMNS, ROWS, width).split("\n")[0].split() for width in (100, 80, 60)]
    assert titles[0] == ["fact", "match", "s/answer", "train", "memory", "forgets"]
    assert titles[1] == ["fact", "match", "s/answer", "train"]
    assert titles[2] == ["fact", "match", "s/answer"]


def test_a_narrow_table_is_said_line_by_line() -> None:
    text = table(COLUMNS, ROWS, 59)
    assert text.split("\n\n")[1].split("\n") == [
        "Row 2 of 2: LoRA, rank 16",
        "fact match: 0.78, interval 0.69 to 0.86",
        "s/answer: 0.09",
        "train: 74 s",
        "memory: 1.2 GiB",
        "forgets: +5.7 percent",
    ]
    assert "●" not in text


def test_accessible_output_is_flat_at_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_ACCESSIBLE", "1")
    assert table(COLUMNS, ROWS, 200).startswith("Row 1 of 2: zero-shot\n")


def test_one_wide_column_is_cut_after_a_word() -> None:
    text = table((Column("name", 2), Column("text", 2)), [("a", "one two three four five six seven " * 3)], 60)
    assert max(map(cell_width, text.split("\n"))) <= 60
    assert text.endswith("…")


def test_widths_count_what_is_seen() -> None:
    assert cell_width(paint("ab", "bold", "red")) == 2
    assert cell_width("日本") == 4
    assert cell_width("e\u0301") == 1
    assert pad("日", 4) == "日  "
    assert shorten("日本語の文章", 5) == "日本…"


def test_long_lines_break_at_dots_before_spaces() -> None:
    assert fold("one two · three four · five", 18) == "one two\nthree four · five"
    assert fold("one two three", 8, 2) == "one two\n  three"


def test_facts_have_one_edge() -> None:
    assert facts([("run", "runs/a-1"), ("model", "tiny · 1 M")], 80) == "run      runs/a-1\nmodel    tiny · 1 M"
    assert facts([("run", "a · b")], 50) == "run: a, b"


def test_intervals_are_spoken() -> None:
    assert spoken("0.78 [0.69, 0.86] · 84 %") == "0.78, interval 0.69 to 0.86, 84 percent"


def test_ascii_keeps_columns_in_line() -> None:
    text = "✓ a → b   | 1\n· plain   | 2"
    assert to_ascii("a → b      ✓ 1\nplain      ✓ 2") == "a -> b     ok 1\nplain      ok 2"
    assert to_ascii(text).isascii()
    assert to_ascii("├─●─┤ ▁█ ± ×") == "|-o-| .# +/- x"


def test_a_stream_that_cannot_encode_glyphs_gets_ascii() -> None:
    stream = Stream("ascii")
    Output(stream, environ={}).write("✓ 日 ├●┤")
    assert stream.text() == "ok \\u65e5 |o|\n"


def test_latin_1_keeps_letters_it_has() -> None:
    stream = Stream("latin-1")
    Output(stream, environ={}).write("→ für")
    assert stream.text() == "-> für\n"


RED = paint("x", "bold", "red")


@pytest.mark.parametrize(
    ("color", "environ", "is_terminal", "shown"),
    [
        ("auto", {"TERM": "xterm"}, True, RED),
        ("auto", {"TERM": "xterm", "NO_COLOR": "1"}, True, "\x1b[1mx\x1b[0m"),
        ("auto", {"TERM": "xterm", "NO_COLOR": ""}, True, RED),
        ("auto", {"TERM": "dumb"}, True, "x"),
        ("auto", {"TERM": "xterm"}, False, "x"),
        ("auto", {"FORCE_COLOR": "1"}, False, RED),
        ("always", {"NO_COLOR": "1"}, False, RED),
        ("never", {"TERM": "xterm"}, True, "x"),
    ],
)
def test_colour_follows_flag_environment_and_terminal(
    color: str, environ: dict[str, str], is_terminal: bool, shown: str
) -> None:
    assert Output(Stream(is_terminal=is_terminal), color=color, environ=environ).fit(RED) == shown  # type: ignore[arg-type]


def test_control_characters_of_user_text_are_shown_not_obeyed() -> None:
    hostile = "\x1b]0;title\x07 \x1b[2J \rgone\x9b1m"
    shown = Output(Stream(is_terminal=True), environ={"TERM": "xterm"}).fit(hostile)
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert "\x9b" not in shown
    assert "\\x1b]0;title\\x07" in shown
    assert plain(hostile) == shown


def test_width_is_columns_else_80() -> None:
    assert Output(Stream(), environ={"COLUMNS": "123"}).width == 123
    assert Output(Stream(), environ={}).width in (80, Output(Stream(), environ={}).width)


def test_each_sources_validation_loss_stands_below_the_row() -> None:
    from tunesmith.core.events import Metric
    from tunesmith.reporters.rows import TrainingTable

    rows = TrainingTable()
    values = {"train_loss": 2.0, "validation_loss": 1.5, "validation_loss.kinds": 0.41, "validation_loss.texts": 2.93}
    rows.add(Metric("train", values, at=10, of=20))
    *_, last = rows.flush(100)
    assert plain(last) == "        validation loss of kinds 0.410 · texts 2.93"
    rows.add(Metric("train", {"validation_loss": 1.5}, at=20, of=20))
    assert not any("validation loss of" in line for line in rows.flush(100))
