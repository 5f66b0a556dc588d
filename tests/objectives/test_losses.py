"""loss(A) + loss(B) = loss(A and B); masked positions do not matter; equal to transformers' own loss."""

import pytest
import torch

from tunesmith.core.records import ChatExample, LabelExample, Message, Origin, PairExample, TextExample
from tunesmith.methods.full import Full
from tunesmith.models.load import Loaded
from tunesmith.models.tiny import tiny
from tunesmith.objectives.base import IGNORED
from tunesmith.objectives.classification import Classification
from tunesmith.objectives.clm import CLM
from tunesmith.objectives.seq2seq import Seq2Seq
from tunesmith.objectives.sft import SFT
from tunesmith.training.learner import Learner

AT = Origin("rows.jsonl", 1)
CHATS = [
    ChatExample(origin=AT, messages=(Message("user", question), Message("assistant", answer)))
    for question, answer in (("What is it?", "A tank."), ("How often?", "Every three months, or sooner."))
]
CASES = {
    "clm": (CLM(), "llama", [TextExample(origin=AT, text=text) for text in ("one two", "a longer text of words")]),
    "sft": (SFT(), "llama", CHATS),
    "sft, padded": (SFT(), "llama", CHATS),
    "seq2seq": (Seq2Seq(), "t5", [PairExample(origin=AT, source=s, target=t) for s, t in (("ab", "c d"), ("e", "f"))]),
    "classification": (
        Classification(),
        "bert",
        [LabelExample(origin=AT, text=t, label=label) for t, label in (("good", "yes"), ("a bad one", "no"))],
    ),
}
LABELS = ("no", "yes")


def _learner(case: str) -> tuple[Learner, list]:
    objective, architecture, examples = CASES[case]
    model, tokenizer = tiny(architecture, objective.task)
    loaded = Loaded(model.eval(), tokenizer, objective.task, LABELS, "tiny")
    learner = Learner.make(
        loaded,
        model,
        method=Full(),
        objective=objective,
        precision="fp32",
        packing="off" if "padded" in case else "auto",
    )
    model.eval()
    features = [f for e in examples for f in objective.encode(e, tokenizer, max_length=64, labels=LABELS)]
    return learner, features


@pytest.mark.parametrize("case", CASES)
def test_sums_add_up(case):
    learner, features = _learner(case)
    together = learner.batch(features)
    apart = [learner.batch([feature]) for feature in features]
    whole = learner.loss(together)[0]
    torch.testing.assert_close(sum(learner.loss(batch)[0] for batch in apart), whole, rtol=1e-4, atol=1e-4)
    assert sum(batch.weight for batch in apart) == together.weight == sum(feature.weight for feature in features)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_transformers_own(case):
    learner, features = _learner(case)
    for feature in features:
        batch = learner.batch([feature])
        inputs = {name: tensor for name, tensor in batch.tensors.items() if not name.startswith("decoder")}
        mean = learner.model(**inputs).loss
        torch.testing.assert_close(learner.loss(batch)[0] / batch.weight, mean, rtol=1e-4, atol=1e-5)


def test_packed_and_padded_rows_cost_the_same():
    packed, features = _learner("sft")
    padded, _ = _learner("sft, padded")
    assert packed.layout.is_packed and not padded.layout.is_packed
    torch.testing.assert_close(
        packed.loss(packed.batch(features))[0], padded.loss(padded.batch(features))[0], rtol=1e-4, atol=1e-4
    )


def test_context_is_not_scored_and_every_token_of_a_text_is():
    _, features = _learner("sft")
    tokenizer = tiny("llama", "causal")[1]
    for feature, example in zip(features, CHATS, strict=True):
        learnt = [token for token, label in zip(feature.input_ids, feature.labels, strict=True) if label != IGNORED]
        text = tokenizer.decode(learnt)
        assert example.answer in text and example.messages[0].content not in text
    _, texts = _learner("clm")
    assert all(IGNORED not in feature.labels[1:] for feature in texts)


def test_a_long_text_goes_on_in_the_next_piece_and_no_token_is_lost_or_scored_twice():
    _, tokenizer = tiny("llama", "causal")
    example = TextExample(origin=AT, text="abcdefghij " * 30)
    (whole,) = CLM().encode(example, tokenizer, max_length=10**6)
    pieces = CLM().encode(example, tokenizer, max_length=50)
    assert len(pieces) > 3 and all(len(piece.input_ids) <= 50 for piece in pieces)
    assert sum(piece.weight for piece in pieces) == whole.weight
    scored = [label for piece in pieces for label in piece.labels if label != IGNORED]
    assert scored == [label for label in whole.labels if label != IGNORED]


def test_an_unknown_label_is_named_with_its_place():
    from tunesmith.core.errors import UserError

    example = LabelExample(origin=Origin("x.csv", 7), text="a", label="maybe")
    with pytest.raises(UserError, match='the label "maybe" is not among the 2 trained ones') as caught:
        Classification().encode(example, tiny("bert", "classify")[1], max_length=9, labels=LABELS)
    assert caught.value.where == "x.csv:7"


@pytest.mark.parametrize("case", ["clm", "sft", "seq2seq"])
def test_a_z_loss_changes_what_is_learnt_and_not_what_is_reported(case):
    learner, features = _learner(case)
    batch = learner.batch(features)
    with_it = learner.objective.model_copy(update={"z_loss": 0.1})
    losses, gradients = [], []
    for objective in (learner.objective, with_it):
        loss, _ = objective.loss(learner, batch)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, learner.model.get_output_embeddings().weight)[0])
    torch.testing.assert_close(*losses)
    assert not torch.allclose(*gradients)
