"""The baselines a sceptic would run: logistic regression on words and characters, or on a frozen model's states.

Both train on the same rows as every method, and the strength of their regularisation is chosen as a method's learning
rate is: by the lowest loss on the validation rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.core.records import LabelExample, Outcome

if TYPE_CHECKING:
    from tunesmith.models.load import Loaded

STRENGTHS = {"tfidf": (10.0, 100.0, 1000.0), "frozen_features": (0.03, 0.1, 0.3, 1.0)}
"""Values of scikit-learn's C (the inverse strength) that are tried, in rising order."""
MOST_ITERATIONS = 1000
Features = Callable[[Sequence[LabelExample]], Any]


class FittedBaseline:
    """A logistic regression on fixed features; answers as a `Predictor` does, with labels only."""

    def __init__(self, features: Features, classifier: Any, notes: dict[str, Any]) -> None:
        self.features, self.classifier = features, classifier
        self.notes = notes
        """`C`, the strengths tried with their validation loss, and whether C lies at their edge."""

    @property
    def num_parameters(self) -> int:
        """The regression's weights."""
        return int(self.classifier.coef_.size + self.classifier.intercept_.size)

    def classify(self, examples: Sequence[LabelExample], on_progress: Callable[[int, int], None]) -> list[Outcome]:
        """The likeliest label of each example with the probabilities of all."""
        started = time.perf_counter()
        labels = [str(label) for label in self.classifier.classes_]
        rows = self.classifier.predict_proba(self.features(examples)).tolist()
        seconds = (time.perf_counter() - started) / max(1, len(examples))
        on_progress(len(examples), len(examples))
        return [
            Outcome(
                origin=str(example.origin),
                prompt=example.text,
                answer=labels[max(range(len(row)), key=row.__getitem__)],
                reference=example.label,
                fields=example.fields,
                probabilities=dict(zip(labels, row, strict=True)),
                seconds=seconds,
            )
            for example, row in zip(examples, rows, strict=True)
        ]


def fit_tfidf(train: Sequence[LabelExample], validation: Sequence[LabelExample]) -> FittedBaseline:
    """Logistic regression on TF-IDF of words, pairs of words, and 2 to 5 characters within words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    vectors = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2),
    )
    vectors.fit([_text(example) for example in train])

    def features(examples: Sequence[LabelExample]) -> Any:
        return vectors.transform([_text(example) for example in examples])

    return _fit(features, train, validation, STRENGTHS["tfidf"])


def fit_frozen(loaded: Loaded, train: Sequence[LabelExample], validation: Sequence[LabelExample]) -> FittedBaseline:
    """Logistic regression on the frozen model's mean states, each dimension scaled to unit variance."""
    from sklearn.preprocessing import StandardScaler

    from tunesmith.models.pooled import mean_states

    def states(examples: Sequence[LabelExample]) -> Any:
        texts = [(example.text, example.text_pair or None) for example in examples]
        return mean_states(loaded, texts, lambda done, total: None)

    scale = StandardScaler().fit(states(train))

    def features(examples: Sequence[LabelExample]) -> Any:
        return scale.transform(states(examples))

    return _fit(features, train, validation, STRENGTHS["frozen_features"])


def _fit(
    features: Features,
    train: Sequence[LabelExample],
    validation: Sequence[LabelExample],
    strengths: Sequence[float],
) -> FittedBaseline:
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    inputs, labels = features(train), [example.label for example in train]
    held, expected = features(validation), [example.label for example in validation]
    fitted: list[tuple[float, float, Any]] = []
    start: Any = None
    for strength in strengths:
        classifier = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS, tol=1e-5, warm_start=True)
        if start is not None:  # the weaker regularisation begins where the stronger one ended
            classifier.coef_, classifier.intercept_, classifier.classes_ = start
        classifier.fit(inputs, labels)
        start = (classifier.coef_.copy(), classifier.intercept_.copy(), classifier.classes_)
        known = np.asarray([label in set(classifier.classes_) for label in expected])
        found = classifier.predict_proba(held)[known]
        loss = log_loss(np.asarray(expected)[known], found, labels=classifier.classes_)
        fitted.append((float(loss), strength, classifier))
    loss, strength, best = min(fitted, key=lambda one: one[0])
    notes = {
        "C": strength,
        "validation_loss": loss,
        "tried": {f"{one:g}": value for value, one, _ in fitted},
        "is_at_edge": strength in (strengths[0], strengths[-1]),
    }
    return FittedBaseline(features, best, notes)


def _text(example: LabelExample) -> str:
    return f"{example.text} {example.text_pair}".strip()
