"""Chat templates: one rendering for every day, and programs that are ended."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from compresskv import chat
from compresskv.chat import chat_prompt, rendered
from tests.support.refusals import refused

BODY = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
LOOP = "{% for i in range(99999) %}"


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(unk_token="u")), unk_token="u")
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("\n" + BODY, "\n<user>hello"),
        ("{{ strftime_now('%d %b %Y') }}" + BODY, "26 Jul 2024<user>hello"),
        (
            "  {% if strftime_now is defined %}{% set d = strftime_now('%d') %}{{ d }}{% endif %}" + BODY,
            "26<user>hello",
        ),
        ("\n  {% if strftime_now is defined %}\n  y{% endif %}" + BODY, "\n  y<user>hello"),
        (BODY + "{% if loud %}!{% endif %}", "<user>hello!"),
    ],
)
def test_what_a_template_renders(template, expected):
    assert chat_prompt("hello", tokenizer(template), {"loud": True}) == expected


@pytest.mark.parametrize(
    "program",
    [
        "{% set now = strftime_now %}{{ now('%d') }}",
        "{% set form = '%d' %}{{ strftime_now(form) }}",
        "{{ strftime_now(format='%d') }}",
        "{% macro day() %}{{ strftime_now(form) }}{% endmacro %}{{ day() }}",
        "{{ range(1000) | random }}",
        "{% if range(99999) | random == 7 %}x{% endif %}",
        "{{ lipsum(1) }}",
        "{{ joiner() }}",
    ],
)
def test_a_template_that_renders_differently_another_time_is_refused(program):
    with refused("model.chat_template"):
        chat_prompt("hello", tokenizer(BODY + program))


@pytest.mark.parametrize(
    "program",
    [
        f"{LOOP}{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}xxxxxxxxxxxxxxx{{% endfor %}}",
        "{{ 'x' * 10**11 }}",
        "{{ (9 ** (9 ** 9)) % 7 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_without_an_end_is_refused(program, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 1)
    with refused("model.chat_template"):
        chat_prompt("hello", tokenizer(BODY + program))


def test_a_template_is_tried_again_with_much_longer_texts():
    """What it does with a short one says nothing of a long one."""
    made = tokenizer(BODY + "{% if messages[0].content | length > 100 %}" + LOOP + BODY + "{% endfor %}{% endif %}")
    assert chat_prompt("hello", made) == "<user>hello"
    with refused("model.chat_template"):
        chat_prompt("hello " * 100, made)


def test_several_turns_and_an_open_end():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    made = tokenizer(BODY + "{% if add_generation_prompt %}<answer>{% endif %}")
    assert rendered(turns, made) == "<user>a<assistant>b<answer>"
    assert rendered(turns, made, continued=True) == "<user>a<assistant>b"


def test_a_tokenizer_without_places_of_tokens_finds_no_question():
    """So evictions after the prompt work, and those before the question are refused like any prompt without one."""
    python = SimpleNamespace(is_fast=False)
    assert chat.question_start("a context and a question", "question", [1, 2, 3], python) == 0
