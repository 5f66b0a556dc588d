"""Documents become passages, and the nearest are found by their words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.data.documents import MAX_WORDS, read_passages
from tunesmith.data.search import Index, words

PAGE = """# Errors

See **below**
for `codes`.

## Tank

| Code | Cause |
| --- | --- |
| E07 | The tank is empty. |
| E08 | No tank |

- First item
  goes on.
- Second item.

```
# not a heading
```
"""


def test_passages_have_titles_lines_and_sentences_for_table_rows(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    first, second = read_passages(tmp_path / "page.md")
    assert (first.title, first.text, first.origin.line) == ("Errors", "See below for codes.", 3)
    assert (second.title, second.origin.line) == ("Errors > Tank", 10)
    assert second.text == (
        "Code: E07. Cause: The tank is empty.\nCode: E08. Cause: No tank.\n"
        "- First item goes on.\n- Second item.\n# not a heading"
    )


def test_no_passage_is_long_and_no_word_is_lost(tmp_path: Path) -> None:
    text = " ".join(f"Sentence {i} has a few words in it." for i in range(200)) + "\n\n" + "word " * 500
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    passages = read_passages(tmp_path)
    assert all(len(passage.text.split()) <= MAX_WORDS for passage in passages)
    assert " ".join(passage.text for passage in passages).split() == text.split()
    assert passages[0].title == "long"


def test_other_files_and_empty_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n", encoding="utf-8")
    with pytest.raises(UserError) as fault:
        read_passages(tmp_path)
    assert fault.value.code == "unknown_type"
    (tmp_path / "empty.md").write_text("# Only a title\n", encoding="utf-8")
    with pytest.raises(UserError) as fault:
        read_passages(tmp_path / "empty.md")
    assert fault.value.code == "empty_file"


def test_the_nearest_text_shares_the_rarest_words() -> None:
    index = Index(["What to do when what happens", "Code E07: the tank is empty", "The tank holds two litres"])
    assert index.nearest("What does error E07 mean?", 1) == [1]
    assert index.nearest("the tanks", 3)[2] == 0


def test_equal_scores_keep_the_order_of_the_texts() -> None:
    index = Index(["cup one", "cup two", "cup three"])
    assert index.nearest("cup", 3) == [0, 1, 2]
    assert index.nearest("nothing known", 2) == [0, 1]


def test_more_than_there_is_gives_what_there_is() -> None:
    assert Index(["a"]).nearest("a", 5) == [0]
    assert Index([]).nearest("a", 5) == []
    assert Index(["", ""]).nearest("a", 5) == [0, 1]


def test_function_words_count_only_where_there_is_nothing_else() -> None:
    assert words("What are the errors?") == ["error"]
    assert words("What is it?") == ["what", "is", "it"]
