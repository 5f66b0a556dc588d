"""The page stands alone, escapes what users wrote, and says everything in words too."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_report import made

from tunesmith.reports.compare_page import compare_page, percent
from tunesmith.reports.drawings import curve_plot, interval_plot, nice
from tunesmith.reports.plots import quality_plot

VOID = {"meta", "input", "br", "line", "circle", "rect", "polyline"}


class Tags(HTMLParser):
    """Checks that every tag is closed in order, and collects them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    return compare_page(*made())


def test_every_tag_is_closed_in_order(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert {"main", "table", "svg", "article", "h1"} <= {tag for tag, _ in tags.seen}


def test_nothing_is_fetched(page: str) -> None:
    bare = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http" not in bare
    assert not re.search(r"\b(src|href)=|@import|url\(", bare)


def test_what_users_and_models_wrote_is_escaped(page: str) -> None:
    assert "What does &lt;E00&gt; mean &amp; why?" in page
    assert "Once upon a &lt;b&gt;time&lt;/b&gt;" in page
    assert "<b>time" not in page


def test_the_verdict_and_every_row_and_answer_are_there(page: str) -> None:
    report, answers = made()
    head, _, rest = report["verdict"]["sentence"].partition(": ")
    assert f"<h1>{head}</h1>" in page
    assert rest.replace(" %", "&nbsp;%") in page
    assert page.count("<article") == len(answers)
    for row in report["rows"]:
        assert page.count(f'<th scope="row">{row["name"]}</th>') == len(answers)


def test_it_reads_without_script_and_filters_with_it(page: str) -> None:
    assert 'class="filter" role="group" aria-label="Which answers" hidden' in page
    assert "<article hidden" not in page
    best = next(row for row in made()[0]["rows"] if row["kind"] == "fine-tuning")
    assert len(re.findall(r'data-tags="[^"]*fixed', page)) == len(best["fixed"])
    assert len(re.findall(r'data-tags="[^"]*broken', page)) == len(best["broken"])
    assert f"broken by lora, rank 16 · {len(best['broken'])}" in page


def test_drawings_have_their_numbers_in_words() -> None:
    report, _ = made()
    drawing = interval_plot(report)
    assert "<title>fact match of each row with its 95 % interval</title>" in drawing
    assert re.search(r"<desc>zero-shot 0\.\d\d \[0\.\d\d, 0\.\d\d\]; retrieval, 3 ", drawing)
    curve = curve_plot("lora", report["rows"][2]["curve"])
    assert "best validation loss 0.605 at step 640" in curve


def test_marks_lie_in_order_of_their_scores() -> None:
    report, _ = made()
    drawing = interval_plot(report)
    circle = float(re.search(r'<circle cx="([\d.]+)"', drawing)[1])
    diamond, square = (float(x) + 6.5 for x in re.findall(r'<rect x="([\d.]+)"', drawing))
    values = [row["scores"]["fact_match"]["value"] for row in report["rows"]]
    left, width = 220, 960 - 220 - 190
    assert [circle, diamond, square] == pytest.approx([left + width * value for value in values], abs=0.06)


def test_a_metric_without_right_and_wrong_shows_numbers() -> None:
    page = compare_page(*made(24, "bleu"))
    assert "✓ right" not in page
    assert "BLEU on 24 held-out questions; further right is better." in page


def test_the_method_says_what_was_run_where(page: str) -> None:
    for words in (
        "Base model",
        "tunesmith/base",
        "Wilson",
        "a processor, 2 cores",
        "ab" * 32,
        "took 4 min 1 s",
        "train cdcd",
    ):
        assert words in page


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    quality_plot(made()[0], tmp_path / "q.png")
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 41.2, 5, [0, 10, 20, 30, 40, 50]),
        (0.6, 3.4, 4, [0, 1, 2, 3, 4]),
        (5, 5, 5, [5.0, 6.0]),
        (-0.2, 0.25, 5, [-0.2, -0.1, 0, 0.1, 0.2, 0.3]),
    ],
)
def test_ticks_are_round_and_enclose_the_range(low: float, high: float, count: int, expected: list[float]) -> None:
    lowest, highest, ticks = nice(low, high, count)
    assert ticks == pytest.approx(expected)
    assert lowest <= low <= high <= highest


def test_changes_have_a_sign() -> None:
    assert [percent(x) for x in (0.057, -0.012, None)] == ["+5.7 %", "−1.2 %", "–"]
