"""Parity: the served model is the trained one, shown by replaying a dozen probes.

Stored with each model: what was put to it as text, the token ids, the first logits and the greedy answer.
Replayed in that order, so a mismatch says what changed: the template, the numbers, or only the words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch

from tunesmith.core.records import (
    ChatExample,
    Example,
    LabelExample,
    Message,
    MultiLabelExample,
    NumberExample,
    PairExample,
    TagExample,
    TextExample,
)
from tunesmith.data.template import encode_prompt
from tunesmith.models.heads import problem_of, set_above_half
from tunesmith.models.load import Loaded
from tunesmith.models.machine import Precision
from tunesmith.models.sample import Sampling, stream

NUM_LOGITS = 8
"""The likeliest first tokens whose logits are kept."""
TOLERANCE = {"fp32": 1e-3, "bf16": 0.15}
"""How far a logit may be off: rounding of another processor or batch, as a share of the largest logit at least 1."""
MAX_NEW_TOKENS = 48
MAX_PROMPT_CHARACTERS = 2000
Stage = Literal["", "prompt", "logits", "text"]


@dataclass(frozen=True)
class ParityReport:
    """Whether the probes came out as recorded, and otherwise where the first difference is and how large."""

    is_equal: bool
    stage: Stage = ""
    message: str = ""


def record(loaded: Loaded, examples: Sequence[Example], count: int = 12) -> dict[str, Any]:
    """Probes of a model: at most `count` of the examples, as JSON values.

    An example that leaves no room for an answer is passed over.

    Take the model as it will be loaded, not as it stands in training: the two may differ in precision.
    """
    fitting = (one for one in examples if _has_room(loaded, one))
    probes = [_probe(loaded, one) for one in islice(fitting, count)]
    return {"format": 1, "precision": loaded.precision, "probes": probes}


def replay(loaded: Loaded, probes: Mapping[str, Any], *, recorded_in: Precision = "fp32") -> ParityReport:
    """Put the recorded probes to a model again; bytes of the prompt first, then logits, then text.

    Where they were recorded in another precision than the model's, the wider tolerance holds.
    """
    allowed = max(TOLERANCE[loaded.precision], TOLERANCE[recorded_in])
    for number, probe in enumerate(probes["probes"], 1):
        report = _compare(loaded, probe, number, allowed)
        if not report.is_equal:
            return report
    return ParityReport(True)


def record_again(loaded: Loaded, probes: Mapping[str, Any]) -> dict[str, Any]:
    """The same questions as in `probes`, with the answers of this model."""
    made = [_probe_of(loaded, probe["question"]) for probe in probes["probes"]]
    return {"format": 1, "precision": loaded.precision, "probes": made}


def questions_of(loaded: Loaded, probes: Mapping[str, Any]) -> list[list[int]]:
    """Token ids of the questions of probes; of 8 rows of 16 random tokens where there are none."""
    if probes.get("probes"):
        return [_encode(loaded, probe["question"])[1] for probe in probes["probes"]]
    generator = torch.Generator().manual_seed(0)
    size = loaded.model.get_input_embeddings().num_embeddings
    return [torch.randint(size, (16,), generator=generator).tolist() for _ in range(8)]


@torch.inference_mode()
def logits_of(loaded: Loaded, ids: Sequence[int]) -> torch.Tensor:
    """Every logit over a row, in fp32: [T, V] or [classes]; of an encoder-decoder those of its first token."""
    logits: torch.Tensor = loaded.model(**_inputs(loaded, ids)).logits[0]
    return logits.float().cpu()


def _has_room(loaded: Loaded, example: Example) -> bool:
    _, ids = _encode(loaded, _question(example))
    longest = loaded.context - (1 if loaded.task == "causal" else 0)
    return 0 < len(ids) <= longest


def _probe(loaded: Loaded, example: Example) -> dict[str, Any]:
    return _probe_of(loaded, _question(example))


def _probe_of(loaded: Loaded, question: Mapping[str, Any]) -> dict[str, Any]:
    prompt, ids = _encode(loaded, question)
    logits = _first_logits(loaded, ids)
    top = logits.topk(min(NUM_LOGITS, len(logits)))
    return {
        "question": question,
        "prompt": prompt,
        "token_ids": ids,
        "logits": {str(token): value for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)},
        "answer": _answer(loaded, ids, logits),
    }


def _compare(loaded: Loaded, probe: Mapping[str, Any], number: int, allowed: float) -> ParityReport:
    prompt, ids = _encode(loaded, probe["question"])
    if prompt != probe["prompt"]:
        at = next((i for i, (a, b) in enumerate(zip(prompt, probe["prompt"], strict=False)) if a != b), len(prompt))
        shown = f"{prompt[at : at + 20]!r} instead of {probe['prompt'][at : at + 20]!r}"
        return ParityReport(False, "prompt", f"probe {number}: character {at} is {shown}")
    if ids != probe["token_ids"]:
        return ParityReport(False, "prompt", f"probe {number}: the same text became other tokens")
    logits = _first_logits(loaded, ids)
    recorded = {int(token): value for token, value in probe["logits"].items()}
    if max(recorded) >= len(logits):
        return ParityReport(False, "logits", f"probe {number}: the model has only {len(logits)} outputs")
    off = max(abs(float(logits[token]) - value) for token, value in recorded.items())
    scale = max(1.0, *(abs(value) for value in recorded.values()))
    if not off <= allowed * scale:  # also where it is not a number
        return ParityReport(
            False,
            "logits",
            f"probe {number}: a first logit is off by {off:.3g} ({allowed * scale:.2g} is allowed)",
        )
    answer = _answer(loaded, ids, logits)
    if answer != probe["answer"]:
        return ParityReport(False, "text", f"probe {number}: it answers {answer[:60]!r}, not {probe['answer'][:60]!r}")
    return ParityReport(True)


def _question(example: Example) -> Any:
    """What a probe keeps of an example: messages, a text, or a pair of texts."""
    if isinstance(example, ChatExample):
        return {
            "messages": [message.to_dict() for message in example.prompt],
            "tools": [dict(t) for t in example.tools],
        }
    if isinstance(example, TagExample):
        return {"text": example.text}
    if isinstance(example, LabelExample | MultiLabelExample | NumberExample):
        return {"text": example.text, "text_pair": example.text_pair}
    if isinstance(example, PairExample):
        return {"text": example.source}
    assert isinstance(example, TextExample), type(example)
    return {"text": example.text[:MAX_PROMPT_CHARACTERS]}


def _encode(loaded: Loaded, question: Mapping[str, Any]) -> tuple[str, list[int]]:
    tokenizer = loaded.tokenizer
    if "messages" in question:
        messages = [Message(**{**m, "tool_calls": tuple(m.get("tool_calls", ()))}) for m in question["messages"]]
        if loaded.task == "seq2seq":
            prompt = "\n".join(message.content for message in messages)
            return prompt, list(tokenizer(prompt, verbose=False)["input_ids"])
        return encode_prompt(tokenizer, messages, tools=question["tools"])
    prompt, pair = question["text"], question.get("text_pair") or None
    is_causal = loaded.task == "causal"
    limit = loaded.context - (1 if is_causal else 0)
    encoded = tokenizer(
        prompt, pair, add_special_tokens=not is_causal, truncation=True, max_length=limit, verbose=False
    )
    return prompt, list(encoded["input_ids"])


@torch.inference_mode()
def _first_logits(loaded: Loaded, ids: Sequence[int]) -> torch.Tensor:
    """Logits of the first token of the answer, or of the classes, in fp32."""
    logits = logits_of(loaded, ids)
    return logits if loaded.task == "classify" else logits[-1]  # a tagger's: of the last token


def _inputs(loaded: Loaded, ids: Sequence[int]) -> dict[str, torch.Tensor]:
    model = loaded.model
    inputs = {"input_ids": torch.tensor([list(ids)], device=model.device)}
    if loaded.task == "seq2seq":
        inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id]], device=model.device)
    return inputs


def _answer(loaded: Loaded, ids: Sequence[int], logits: torch.Tensor) -> str:
    if loaded.task == "classify":
        return _class_answer(loaded, logits)
    if loaded.task == "tag":
        return loaded.labels[int(logits.argmax())]
    if loaded.task == "mask":
        return str(loaded.tokenizer.convert_ids_to_tokens(int(logits.argmax())))
    pieces = stream(loaded.model, loaded.tokenizer, ids, Sampling(max_new_tokens=MAX_NEW_TOKENS))
    return "".join(piece.text for piece in pieces)


def _class_answer(loaded: Loaded, logits: torch.Tensor) -> str:
    """The class, the set of classes, or "" for a number, which its logit says already."""
    problem = problem_of(loaded)
    if problem == "multi_label_classification":
        return ", ".join(set_above_half(loaded.labels, logits))
    return "" if problem == "regression" else loaded.labels[int(logits.argmax())]
