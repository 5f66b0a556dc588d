"""Metrics equal sacreBLEU, rouge-score and scikit-learn, and values worked by hand."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sklearn import metrics as sk

from tunesmith.core.errors import UserError
from tunesmith.core.intervals import score
from tunesmith.core.plugins import build
from tunesmith.core.records import Outcome

WORDS = ["the", "tank", "is", "empty", "fill", "it", "to", "line", "press", "start", "hold", "steam", "wait"]


def texts(count: int = 40, seed: int = 1) -> list[Outcome]:
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        reference = " ".join(draw.choices(WORDS, k=draw.randint(3, 14)))
        answer = " ".join(w for w in reference.split() if draw.random() < 0.8) + draw.choice([".", "", " again"])
        rows.append(Outcome(origin=f"rows:{i}", answer=answer, reference=reference))
    return rows


def labelled(count: int = 200, seed: int = 3) -> list[Outcome]:
    draw = random.Random(seed)
    names = ["card", "cash", "loan", "rare"]
    rows = []
    for i in range(count):
        reference = draw.choices(names, [5, 3, 2, 0.2])[0]
        answer = reference if draw.random() < 0.7 else draw.choice(names[:3])
        rows.append(Outcome(origin=f"rows:{i}", answer=answer, reference=reference))
    return rows


@pytest.mark.parametrize("settings", [{}, {"lowercase": True}, {"tokenize": "char"}, {"tokenize": "intl"}])
def test_bleu_equals_sacrebleu_with_its_signature(settings: dict[str, object]) -> None:
    rows = texts()
    ours = score(build("metrics", {"name": "bleu", **settings}), rows, 1)
    library = sacrebleu.BLEU(**settings)
    theirs = library.corpus_score([r.answer for r in rows], [[r.reference for r in rows]])
    assert ours.value == pytest.approx(theirs.score, abs=1e-9)
    assert ours.signature == str(library.get_signature())
    assert ours.signature.startswith("nrefs:1|case:")
    assert ours.low < ours.value < ours.high


def test_bleu_of_empty_answers_is_zero() -> None:
    rows = [Outcome(origin="r:1", answer="", reference="the tank is empty")]
    assert score(build("metrics", "bleu"), rows, 1).value == 0


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_equals_rouge_score(variant: str, stemmer: bool) -> None:
    rows = texts()
    ours = score(build("metrics", {"name": "rouge", "variant": variant, "use_stemmer": stemmer}), rows, 1)
    scorer = RougeScorer([variant], use_stemmer=stemmer)
    theirs = [scorer.score(r.reference, r.answer)[variant] for r in rows]
    assert ours.value == pytest.approx(np.mean([t.fmeasure for t in theirs]))
    assert ours.details["precision"] == pytest.approx(np.mean([t.precision for t in theirs]))
    assert ours.details["recall"] == pytest.approx(np.mean([t.recall for t in theirs]))
    assert variant in ours.signature


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL"])
@pytest.mark.parametrize("stemmer", [False, True])
def test_each_row_of_rouge_is_that_of_rouge_score(variant: str, stemmer: bool) -> None:
    draw = random.Random(5)
    words = ["a", "b", "Running", "runs", "naïve", "12.5", "—", "\n", "the"]
    pairs = [("", ""), ("", "a b"), ("a b", ""), ("a", "a"), ("...", "a"), ("a b a b", "b a b a b")]
    pairs += [
        (" ".join(draw.choices(words, k=draw.randint(0, 90))), " ".join(draw.choices(words, k=70))) for _ in "0" * 40
    ]
    rows = [Outcome(origin=f"r:{i}", reference=a, answer=b) for i, (a, b) in enumerate(pairs)]
    ours = build("metrics", {"name": "rouge", "variant": variant, "use_stemmer": stemmer}).statistics(rows)
    theirs = [RougeScorer([variant], use_stemmer=stemmer).score(a, b)[variant] for a, b in pairs]
    assert ours[:, :3].tolist() == [[t.fmeasure, t.precision, t.recall] for t in theirs]


def test_rouge_without_stems_does_not_wait_for_nltk() -> None:
    code = (
        "import sys; from tunesmith.core.plugins import build; from tunesmith.core.records import Outcome;"
        "rows = [Outcome(origin='r:1', reference='a b', answer='a c')];"
        "assert build('metrics', 'rouge').statistics(rows)[0, 0] == 0.5; print('nltk' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_class_metrics_equal_scikit_learn(name: str, average: str) -> None:
    rows = labelled()
    ours = score(build("metrics", {"name": name, "average": average}), rows, 1)
    function = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}[name]
    true, given = [r.reference for r in rows], [r.answer for r in rows]
    assert ours.value == pytest.approx(function(true, given, average=average, zero_division=0))
    labels = sorted(set(true) | set(given))
    each = function(true, given, average=None, labels=labels, zero_division=0)
    assert [ours.details["per_class"][label]["value"] for label in labels] == pytest.approx(list(each))
    assert ours.low <= ours.value <= ours.high


def test_a_class_that_is_only_predicted_counts_as_scikit_learn_counts_it() -> None:
    rows = [Outcome(origin=f"r:{i}", reference=a, answer=b) for i, (a, b) in enumerate(["xx", "xy", "xx"])]
    ours = score(build("metrics", "f1"), rows, 1).value
    assert ours == pytest.approx(sk.f1_score(list("xxx"), list("xyx"), average="macro", zero_division=0))


def test_accuracy_and_confusion_equal_scikit_learn() -> None:
    rows = labelled()
    ours = score(build("metrics", "accuracy"), rows, 1)
    true, given = [r.reference for r in rows], [r.answer for r in rows]
    assert ours.value == pytest.approx(sk.accuracy_score(true, given))
    matrix = sk.confusion_matrix(true, given, labels=ours.details["labels"])
    assert ours.details["confusion"] == matrix.tolist()


def test_the_models_own_order_of_classes_is_kept() -> None:
    rows = [Outcome(origin="r:1", reference="a", answer="b", probabilities={"b": 0.7, "a": 0.2, "c": 0.1})]
    assert score(build("metrics", "accuracy"), rows, 1).details["labels"] == ["b", "a", "c"]


def test_perplexity_is_exp_of_nats_per_token_over_all_tokens() -> None:
    rows = [
        Outcome(origin="r:1", nll_nats=2.0, num_scored_tokens=1),
        Outcome(origin="r:2", nll_nats=4.0, num_scored_tokens=5),
    ]
    found = score(build("metrics", "perplexity"), rows, 1)
    assert found.value == pytest.approx(math.exp(1.0))  # 6 nats over 6 tokens, not the mean of two means
    assert found.details == {"nats_per_token": 1.0, "num_tokens": 6, "interval": "bca"}
    assert not found.higher_is_better
    assert score(build("metrics", "loss"), rows, 1).value == pytest.approx(1.0)


def test_a_uniform_model_over_v_tokens_has_perplexity_v() -> None:
    rows = [Outcome(origin=f"r:{i}", nll_nats=t * math.log(50), num_scored_tokens=t) for i, t in enumerate([1, 7, 30])]
    assert score(build("metrics", "perplexity"), rows, 1).value == pytest.approx(50)


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (Outcome(origin="a.jsonl:3"), "a.jsonl:3: the reference has no likelihood"),
        (Outcome(origin="a.jsonl:4", nll_nats=1.0), "a.jsonl:4: the reference has no likelihood"),
        (Outcome(origin="a.jsonl:5", nll_nats=math.nan, num_scored_tokens=2), "a.jsonl:5: .* a loss of nan"),
    ],
)
def test_a_row_without_likelihood_is_named(outcome: Outcome, message: str) -> None:
    with pytest.raises(UserError) as fault:
        score(build("metrics", "perplexity"), [outcome], 1)
    assert re.match(message, fault.value.line())


def test_latency_is_the_mean_and_names_rows_without_a_clock() -> None:
    rows = [Outcome(origin=f"r:{i}", seconds=s) for i, s in enumerate([0.1, 0.2, 0.6])]
    found = score(build("metrics", "latency"), rows, 1)
    assert found.value == pytest.approx(0.3)
    assert found.details["median"] == pytest.approx(0.2)
    with pytest.raises(UserError, match="not timed"):
        score(build("metrics", "latency"), [Outcome(origin="r:1")], 1)
