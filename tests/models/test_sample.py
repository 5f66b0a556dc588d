"""Generation equals transformers' own, alone and in a batch; streams equal the whole."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.models.sample import Generation, Sampling, choose, end_tokens, generate, stream
from tunesmith.models.tiny import DECODERS, tiny

LENGTHS = (3, 9, 9, 20, 14, 1, 40)
GREEDY = Sampling(max_new_tokens=24)
DRAWN = Sampling(max_new_tokens=24, temperature=1.0, top_p=0.9, seed=5, presence_penalty=0.5, frequency_penalty=0.2)


def sharp(architecture: str) -> tuple[Any, Any]:
    """A tiny model with larger weights, so that its choices depend on what it reads."""
    same_depth = {"num_layers": 3} if architecture == "t5" else {}  # transformers' generate needs it
    model, tokenizer = tiny(architecture, seed=3, **same_depth)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model, tokenizer


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(8, 300, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5", "bart", "mixtral", "gemma"])
def test_greedy_equals_transformers_token_by_token(architecture: str) -> None:
    model, tokenizer = sharp(architecture)
    found = generate(model, tokenizer, prompts(), GREEDY)
    for prompt, generation in zip(prompts(), found, strict=True):
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=sorted(end_tokens(model, tokenizer)),
            pad_token_id=0,
        )[0].tolist()
        start = 1 if architecture in ("t5", "bart") else len(prompt)
        assert list(generation.token_ids) == expected[start:]


@pytest.mark.parametrize("architecture", [*DECODERS, "t5", "bart"])
def test_a_batch_answers_as_each_alone_and_as_a_stream(architecture: str) -> None:
    model, tokenizer = sharp(architecture)
    together = generate(model, tokenizer, prompts(), GREEDY)
    for prompt, one in zip(prompts(), together, strict=True):
        (alone,) = generate(model, tokenizer, [prompt], GREEDY)
        assert alone.token_ids == one.token_ids
        pieces = list(stream(model, tokenizer, prompt, GREEDY))
        assert "".join(piece.text for piece in pieces) == one.text
        assert sum((piece.token_ids for piece in pieces), ()) == one.token_ids
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [one.finish_reason]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_a_seed_gives_the_same_answer_alone_and_among_others(architecture: str) -> None:
    model, tokenizer = sharp(architecture)
    together = generate(model, tokenizer, prompts(), DRAWN)
    alone = [generate(model, tokenizer, [prompt], DRAWN)[0] for prompt in prompts()]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    other = generate(model, tokenizer, prompts(), replace(DRAWN, seed=6))
    assert [one.token_ids for one in together] != [one.token_ids for one in other]


def test_rows_that_finish_leave_without_disturbing_the_others() -> None:
    model, tokenizer = sharp("llama")
    full = generate(model, tokenizer, prompts(), GREEDY)
    ends = {full[0].token_ids[2], full[1].token_ids[5], full[4].token_ids[9]}
    model.generation_config.eos_token_id = sorted(ends)
    for before, after in zip(full, generate(model, tokenizer, prompts(), GREEDY), strict=True):
        cut = next((i + 1 for i, token in enumerate(before.token_ids) if token in ends), len(before.token_ids))
        assert after.token_ids == before.token_ids[:cut]
        assert after.finish_reason == ("stop" if before.token_ids[cut - 1] in ends else "length")


def test_the_end_of_turn_of_the_template_ends_an_answer() -> None:
    model, tokenizer = tiny("llama")
    tokenizer.eos_token = "<eos>"
    model.generation_config.eos_token_id = None
    assert end_tokens(model, tokenizer) == {
        tokenizer.convert_tokens_to_ids("<eos>"),
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }


def test_the_end_token_is_counted_and_not_written() -> None:
    model, tokenizer = sharp("llama")
    (full,) = generate(model, tokenizer, [[20, 21]], GREEDY)
    model.generation_config.eos_token_id = full.token_ids[3]
    (short,) = generate(model, tokenizer, [[20, 21]], GREEDY)
    assert short.token_ids == full.token_ids[:4]
    assert short.text == tokenizer.decode(full.token_ids[:3])


def test_a_stop_string_ends_an_answer_before_it() -> None:
    model, tokenizer = sharp("llama")
    (full,) = generate(model, tokenizer, [[20, 21, 22]], GREEDY)
    stop = full.text[5:8]
    wish = replace(GREEDY, stop=(stop,))
    (found,) = generate(model, tokenizer, [[20, 21, 22]], wish)
    assert found.text == full.text[: full.text.index(stop)]
    assert found.finish_reason == "stop"
    assert "".join(piece.text for piece in stream(model, tokenizer, [20, 21, 22], wish)) == found.text


def test_answers_end_at_the_context() -> None:
    model, tokenizer = sharp("llama")
    model.generation_config.eos_token_id = None
    (found,) = generate(model, tokenizer, [list(range(20, 220)) + [20] * 50], replace(GREEDY, max_new_tokens=100))
    assert len(found.token_ids) == 256 - 250
    assert found.finish_reason == "length"


def test_a_prompt_too_long_is_refused_with_both_counts() -> None:
    model, tokenizer = tiny("llama")
    with pytest.raises(UserError) as caught:
        generate(model, tokenizer, [[20] * 256], GREEDY)
    assert caught.value.code == "context_overflow"
    assert "256 tokens" in caught.value.message
    assert "context of 256" in caught.value.message
    with pytest.raises(UserError, match="no tokens"):
        next(stream(model, tokenizer, [], GREEDY))


def test_logprobs_are_those_of_the_models_distribution() -> None:
    model, tokenizer = sharp("llama")
    prompt = [20, 21, 22]
    pieces = list(stream(model, tokenizer, prompt, replace(GREEDY, max_new_tokens=3, top_logprobs=2)))
    ids = [piece.token_ids[0] for piece in pieces]
    with torch.no_grad():
        expected = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    for step, piece in enumerate(pieces):
        (found,) = piece.logprobs
        assert found.logprob == pytest.approx(expected[len(prompt) - 1 + step, ids[step]].item(), abs=1e-4)
        assert [other.token_id for other in found.top] == expected[len(prompt) - 1 + step].topk(2).indices.tolist()
        assert found.text == tokenizer.decode([ids[step]])


class Row:
    """What `choose` needs of a row: fixed uniform numbers and counts."""

    def __init__(self, *uniform: float, counts: dict[int, int] | None = None) -> None:
        self.numbers, self.counts = list(uniform), counts or {}

    def uniform(self) -> float:
        return self.numbers.pop(0)


def drawn(probabilities: list[float], uniform: float, **settings: Any) -> int:
    logits = torch.tensor([probabilities]).log()
    return choose(logits, [Row(uniform)], Sampling(temperature=1.0, **settings))[0]  # type: ignore[list-item]


def test_a_uniform_number_picks_along_the_sorted_distribution() -> None:
    probabilities = [0.2, 0.5, 0.3]  # sorted: 1 (to 0.5), 2 (to 0.8), 0
    assert [drawn(probabilities, u) for u in (0.0, 0.49, 0.51, 0.79, 0.81, 0.999)] == [1, 1, 2, 2, 0, 0]


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    probabilities = [0.2, 0.5, 0.3]
    assert {drawn(probabilities, u, top_p=0.5) for u in (0.0, 0.5, 0.999)} == {1}
    assert {drawn(probabilities, u, top_p=0.6) for u in (0.0, 0.5, 0.999)} == {1, 2}


def test_temperature_sharpens() -> None:
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    # at temperature 1/2 the probabilities are squared: 0.25 / 0.38 = 0.658
    at = Sampling(temperature=0.5)
    assert choose(logits, [Row(0.65)], at) == [1]  # type: ignore[list-item]
    assert choose(logits, [Row(0.67)], at) == [2]  # type: ignore[list-item]


def test_penalties_come_off_the_logits_of_written_tokens() -> None:
    logits = torch.tensor([[3.0, 2.5, 0.0]])
    row: Any = Row(counts={0: 2})
    assert choose(logits, [row], Sampling(presence_penalty=0.4)) == [0]
    assert choose(logits, [row], Sampling(presence_penalty=0.6)) == [1]
    assert choose(logits, [row], Sampling(frequency_penalty=0.3)) == [1]
    assert logits[0, 0] == 3.0


def test_drawing_follows_the_distribution() -> None:
    """A random Llama's first token, 2,000 draws against its softmax: chi-square over the 20 likeliest and the rest."""
    model, _ = sharp("llama")
    with torch.no_grad():
        logits = model(torch.tensor([[20, 21, 22]])).logits[:, -1].float()
    draws = 2000
    generator = torch.Generator().manual_seed(1)
    rows: Any = [Row(float(torch.rand((), generator=generator))) for _ in range(draws)]
    found = torch.tensor(choose(logits.expand(draws, -1), rows, Sampling(temperature=1.0)))
    expected, tokens = logits.softmax(-1)[0].topk(20)
    counts = torch.stack([(found == token).sum() for token in tokens]).float()
    observed = torch.cat([counts, draws - counts.sum()[None]])
    wanted = torch.cat([expected, 1 - expected.sum()[None]]) * draws
    assert ((observed - wanted) ** 2 / wanted).sum() < 45.3  # the 99.9 % point with 20 degrees of freedom


def test_an_output_that_is_not_a_number_stops() -> None:
    model, tokenizer = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    with pytest.raises(UserError, match="output is not a number"):
        generate(model, tokenizer, [[20]], GREEDY)


def test_modules_get_their_own_mode_back() -> None:
    model, tokenizer = tiny("gpt2")
    model.transformer.h[2].train()
    before = [module.training for module in model.modules()]
    generate(model, tokenizer, [[20]], replace(GREEDY, max_new_tokens=2))
    assert [module.training for module in model.modules()] == before
    assert any(before)


def test_progress_counts_answers() -> None:
    model, tokenizer = tiny("llama")
    seen: list[tuple[int, int]] = []
    found = generate(
        model,
        tokenizer,
        [[20]] * 5,
        replace(GREEDY, max_new_tokens=2),
        batch_size=2,
        on_progress=lambda *at: seen.append(at),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert all(isinstance(one, Generation) and one.seconds > 0 for one in found)


def test_two_streams_can_take_turns() -> None:
    model, tokenizer = sharp("llama")
    expected = [one.text for one in generate(model, tokenizer, [[20, 21], [30]], GREEDY)]
    streams = [stream(model, tokenizer, prompt, GREEDY) for prompt in ([20, 21], [30])]
    texts = ["", ""]
    for pair in zip(*streams, strict=False):
        for index, piece in enumerate(pair):
            texts[index] += piece.text
    assert texts == expected


def test_training_goes_on_after_an_answer() -> None:
    model, tokenizer = tiny("llama")
    generate(model, tokenizer, [[20, 21]], GREEDY)
    model(input_ids=torch.tensor([[20, 21]]), labels=torch.tensor([[20, 21]])).loss.backward()
    assert model.lm_head.weight.grad.any() and model.model.layers[0].self_attn.q_proj.weight.grad.any()


def test_an_adapted_model_answers_as_its_merged_twin() -> None:
    from tunesmith.methods.lora import LoRA

    model, tokenizer = sharp("llama")
    attached: Any = LoRA().attach(model)
    with torch.no_grad():
        for name, parameter in attached.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
    with attached.disable_adapter():
        base = [one.token_ids for one in generate(attached, tokenizer, prompts(), GREEDY)]
    adapted = [one.token_ids for one in generate(attached, tokenizer, prompts(), GREEDY)]
    merged = [one.token_ids for one in generate(LoRA().merge(attached), tokenizer, prompts(), GREEDY)]
    assert adapted == merged
    assert adapted != base
