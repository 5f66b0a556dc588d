"""Which tokens of a conversation are learnt, for templates of every style in use."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.records import Message
from tunesmith.data.template import PLAIN_TEMPLATE, encode_chat, locate_answers, render_chat

SHARED = Path(__file__).parents[2].parent / "shared" / "models"

LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set sys = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set sys = '' %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}<s>[INST] "
    "{% if loop.first and sys %}<<SYS>>\n{{ sys }}\n<</SYS>>\n\n{% endif %}{{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ ('<|begin|>' if loop.first else '') + '<|start_header_id|>' + m.role "
    "+ '<|end_header_id|>\n\n' + (m.content | trim) + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}<s>"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.index0 == ns.last %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ first if loop.index0 < 2 else '' }}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' and m.tool_calls %}"
    "{% if loop.nextitem is not defined or loop.nextitem.role != 'tool' %}{% if not loop.last %}"
    "{{ raise_exception('a call needs its result') }}{% endif %}{% endif %}"
    "[TOOL_CALLS] [{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}]</s>"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>"
    "{% elif m.role == 'tool' %}"
    "{% if not loop.previtem.tool_calls %}{{ raise_exception('a result needs its call') }}{% endif %}"
    "[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]{% endif %}{% endfor %}"
)
QWEN = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "<tools>{{ tools | tojson }}</tools><|im_end|>\n"
    "{% elif messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set content = m.content %}"
    "{% if m.role == 'system' and tools %}{% continue %}{% endif %}"
    "{% if m.role == 'assistant' %}{% set think = '' %}"
    "{% if '</think>' in content %}{% set think = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or think) %}<think>\n{{ think }}\n</think>\n\n{% endif %}{{ content }}"
    "{% for c in m.tool_calls or [] %}{% if content or not loop.first %}\n{% endif %}"
    "<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "<bos>{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ first if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)
NO_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
FORCED_THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
TALK = (
    Message("system", "Be kind."),
    Message("user", "Hello there"),
    Message("assistant", " Hi you. "),
    Message("user", "Hi you."),
    Message("assistant", "No."),
)
THINKING = (
    Message("user", "One?"),
    Message("assistant", "<think>\nshort\n</think>\n\nFirst."),
    Message("user", "Two?"),
    Message("assistant", "<think>\nlong\n</think>\n\nSecond."),
)
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": {}}}
TOOL_TALK = (
    Message("user", "Rain in Ulm?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "dry", tool_call_id="abcdefghi"),
    Message("assistant", "It is dry."),
)


@pytest.fixture(scope="module")
def base() -> Any:
    from transformers import AutoTokenizer

    from tunesmith.models.source import resolve

    return AutoTokenizer.from_pretrained(resolve("tunesmith/base"))


def styled(tokenizer: Any, template: str | None) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def marked(tokenizer: Any, messages: Any, **options: Any) -> list[str]:
    text, spans, _ = locate_answers(tokenizer, messages, **options)
    assert text == render_chat(tokenizer, messages, **options)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (LLAMA2, [" Hi you. </s>", " No. </s>"]),
        (LLAMA3, ["Hi you.<|eot_id|>", "No.<|eot_id|>"]),
        (MISTRAL, ["  Hi you. </s>", " No.</s>"]),
        (QWEN, [" Hi you. <|im_end|>", "<think>\n\n</think>\n\nNo.<|im_end|>"]),
        (GEMMA, ["Hi you.<end_of_turn>", "No.<end_of_turn>"]),
        (PHI3, [" Hi you. <|end|>", "No.<|end|>\n<|endoftext|>"]),
        (NO_PROMPT, [" Hi you. <|im_end|>", "No.<|im_end|>"]),
        (FORCED_THINKING, [" Hi you. <|end|>", "No.<|end|>"]),
        (None, [" Hi you. <|im_end|>", "No.<|im_end|>"]),
    ],
    ids=["llama2", "llama3", "mistral", "qwen", "gemma", "phi3", "no-prompt", "forced-thinking", "plain"],
)
def test_the_answers_and_their_end_are_learnt_but_not_the_header(base: Any, template: str, answers: list[str]) -> None:
    assert marked(styled(base, template), TALK) == answers


def test_the_built_in_template_learns_the_end_token_but_not_the_line_break_after_it(base: Any) -> None:
    assert marked(base, TALK) == [" Hi you. <|im_end|>", "No.<|im_end|>"]


def test_tokens_learnt_decode_to_the_answer_and_its_end(base: Any) -> None:
    chat = encode_chat(base, TALK, max_length=512)
    text = base.decode([token for token, is_trained in zip(chat.input_ids, chat.is_trained, strict=True) if is_trained])
    assert text.split() == ["Hi", "you.", "<|im_end|>No.<|im_end|>"]
    assert chat.num_cut == 0
    assert list(chat.input_ids) == base(render_chat(base, TALK), add_special_tokens=False)["input_ids"]


def test_reasoning_that_a_template_drops_is_not_learnt_and_what_it_keeps_is(base: Any) -> None:
    assert marked(styled(base, QWEN), THINKING) == [
        "First.<|im_end|>",
        "<think>\nlong\n</think>\n\nSecond.<|im_end|>",
    ]


def test_a_template_that_drops_all_reasoning_learns_the_answers(base: Any) -> None:
    assert [text.strip() for text in marked(styled(base, FORCED_THINKING), THINKING)] == [
        "First.<|end|>",
        "Second.<|end|>",
    ]


def test_tool_calls_are_learnt_where_the_template_writes_them(base: Any) -> None:
    answers = marked(styled(base, QWEN), TOOL_TALK, tools=(TOOL,))
    assert answers[0].endswith('"city": "Ulm"}}\n</tool_call><|im_end|>')
    assert "weather" in answers[0] and "assistant" not in answers[0]
    assert answers[1].endswith("It is dry.<|im_end|>")


def test_a_call_that_must_have_its_result_is_found(base: Any) -> None:
    answers = marked(styled(base, MISTRAL), TOOL_TALK, tools=(TOOL,))
    assert answers[0].startswith("[TOOL_CALLS] [") and answers[0].endswith("]</s>") and "Ulm" in answers[0]
    assert answers[1] == " It is dry.</s>"


def test_a_call_in_an_earlier_turn_is_found_where_tools_stand_before_the_last_question(base: Any) -> None:
    talk = (*TOOL_TALK, Message("user", "Thanks."), Message("assistant", "Welcome."))
    answers = marked(styled(base, MISTRAL), talk, tools=(TOOL,))
    assert answers[0].startswith("[TOOL_CALLS] [") and answers[0].endswith("]</s>")
    assert [answer.strip() for answer in answers[1:]] == ["It is dry.</s>", "Welcome.</s>"]


def test_calls_and_tools_become_words_where_the_template_has_no_place_for_them(base: Any) -> None:
    text = render_chat(base, TOOL_TALK, tools=(TOOL,))
    assert '"description": "The weather"' in text
    assert marked(base, TOOL_TALK, tools=(TOOL,)) == [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call><|im_end|>',
        "It is dry.<|im_end|>",
    ]


def test_a_turn_with_weight_0_is_not_learnt(base: Any) -> None:
    talk = (*TALK[:2], Message("assistant", "Hi you.", weight=0.0), *TALK[3:])
    assert marked(base, talk) == ["No.<|im_end|>"]


def test_a_conversation_without_an_answer_has_nothing_to_learn(base: Any) -> None:
    assert not any(encode_chat(base, TALK[:2], max_length=512).is_trained)


def test_equal_texts_of_user_and_assistant_are_told_apart(base: Any) -> None:
    talk = (
        Message("user", "same"),
        Message("assistant", "same"),
        Message("user", "same"),
        Message("assistant", "same"),
    )
    text, spans, _ = locate_answers(base, talk)
    assert [text[start - len("assistant\n") : end] for start, end in spans] == ["assistant\nsame<|im_end|>"] * 2


def test_what_is_longer_than_the_limit_is_cut_from_the_right_and_counted(base: Any) -> None:
    whole = encode_chat(base, TALK, max_length=512)
    cut = encode_chat(base, TALK, max_length=10)
    assert cut.input_ids == whole.input_ids[:10]
    assert cut.is_trained == whole.is_trained[:10]
    assert cut.num_cut == len(whole.input_ids) - 10


def test_nothing_is_learnt_when_the_whole_answer_was_cut(base: Any) -> None:
    assert not any(encode_chat(base, TALK[:3], max_length=8).is_trained)


def test_the_generation_prompt_of_the_plain_template_precedes_the_answer(base: Any) -> None:
    plain = styled(base, None)
    prompt = render_chat(plain, TALK[:2], add_generation_prompt=True)
    assert prompt == "### System:\nBe kind.\n\n### User:\nHello there\n\n### Assistant:\n"
    assert render_chat(plain, TALK[:3]).startswith(prompt)
    assert "eos_token" in PLAIN_TEMPLATE


@pytest.mark.parametrize("name", ["stories260k", "babyllama-1m"])
def test_a_tokenizer_with_byte_fallback_learns_the_same_words(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs ../shared/models/{name}")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHARED / name)
    talk = (Message("user", "Grüße?"), Message("assistant", "Ja, 你好."))
    chat = encode_chat(tokenizer, talk, max_length=512)
    learnt = [token for token, is_trained in zip(chat.input_ids, chat.is_trained, strict=True) if is_trained]
    assert tokenizer.decode(learnt).replace(" ", "") == "Ja,你好.</s>"


def test_a_template_that_hides_the_answer_is_refused(base: Any) -> None:
    hiding = styled(base, "{% for m in messages %}{{ m.content | length }}{% endfor %}")
    with pytest.raises(UserError, match="cannot be found") as fault:
        encode_chat(hiding, TALK, max_length=64)
    assert fault.value.code == "nothing_trained"


def test_a_template_that_refuses_a_role_says_why(base: Any) -> None:
    with pytest.raises(UserError, match="roles must alternate") as fault:
        render_chat(styled(base, LLAMA2), (TALK[1], TALK[1]))
    assert fault.value.code == "bad_template"


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"],
)
def test_a_template_that_reaches_for_internals_is_stopped(base: Any, template: str) -> None:
    with pytest.raises(UserError) as fault:
        render_chat(styled(base, template), TALK)
    assert fault.value.code == "bad_template"


def test_a_template_that_never_ends_is_stopped(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.render.RENDER_SECONDS", 0.5)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% if j < 0 %}x{% endif %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    with pytest.raises(UserError, match="did not end") as fault:
        render_chat(styled(base, endless), TALK)
    assert fault.value.code == "bad_template"
    assert time.monotonic() - began < 10


def test_a_template_that_writes_far_too_much_is_stopped(base: Any) -> None:
    with pytest.raises(UserError, match="far more"):
        render_chat(styled(base, "{{ 'x' * 9000000 }}"), TALK)
