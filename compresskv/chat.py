"""Render prompts with a model's own chat template."""

import inspect
import os
import random
import re
import resource
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from compresskv.errors import UserError

TODAY = date(2024, 7, 26)
"""Default date of Llama 3.1's chat template."""

SECONDS, MEMORY, CHARACTERS = 2, 1 << 30, 1 << 20
"""Limits for rendering: CPU seconds, bytes, and characters in addition to four times the input's length."""

_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_OTHER_DATE = (
    "{% macro strftime_now() %}{{ raise_exception('it formats the date with a format that is not a literal') }}"
)
_OTHER_DATE += "{{ varargs, kwargs }}{% endmacro %}\n"
"""Macro put before a template that still names `strftime_now`, so that a call does not return today's date."""

_TEMPLATE_ARGUMENTS = {"tools", "documents"}
"""Arguments of `apply_chat_template` that are passed to the template unchanged."""

_ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}>")

_tried: dict[tuple[str, str], int] = {}
"""Largest number of characters for which each template, with its variables, was tested within the limits."""


def chat_prompt(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    kwargs: Mapping[str, Any] | None = None,
    system: str | None = None,
) -> str:
    """Render `text` as one user turn of the model's template, up to the opening of the answer.

    `system`, if given, is put first as the system message. Raises `UserError` as `rendered` does, and if the template
    drops the text.
    """
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    prompt = rendered(messages, tokenizer, kwargs)
    if text.strip() not in prompt:
        raise UserError(
            "model.chat_template",
            "repair the template, or set model.chat_template=false",
            value=True,
            why=f"the chat template of {tokenizer.name_or_path} leaves out or changes the text of a user's turn",
        )
    return prompt


def rendered(
    messages: Sequence[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    kwargs: Mapping[str, Any] | None = None,
    continued: bool = False,
) -> str:
    """Render `messages` with the model's template, up to the opening of the next answer.

    `continued` leaves the last message open. `kwargs` are the template's own variables, such as `enable_thinking`.
    Templates that print today's date (all known templates use a literal format) get `TODAY`, so that prompts do not
    change from day to day. Raises `UserError` if the template fails, exceeds the limits, or is not deterministic.
    """
    kwargs = dict(kwargs or {})
    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) - _TEMPLATE_ARGUMENTS
    if wrong := sorted(taken & set(kwargs)):
        raise UserError(f"model.chat_template_kwargs.{wrong[0]}", "leave it out", why="set by the harness")
    try:
        template = _DATE_CALL.sub(lambda call: repr(TODAY.strftime(call[2])), tokenizer.get_chat_template())
        if "strftime_now" in template:
            template = _OTHER_DATE + template

        def render() -> str:
            options = {"add_generation_prompt": not continued, "continue_final_message": continued}
            return tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, **options, **kwargs
            )

        variables = repr(kwargs)
        size = len(variables) + sum(len(str(message)) for message in messages)
        if size > 2 * _tried.get((template, variables), 0):
            _try(render, CHARACTERS + 4 * size)
            _tried[template, variables] = size
        prompt = _without_chance(render)
        if _ADDRESS.search(prompt) and not _ADDRESS.search(f"{messages} {variables}"):
            raise ValueError("it writes the address of an object, which differs between runs")
        return prompt
    except Exception as error:  # a template is a program and can raise any exception
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            "model.chat_template",
            "set the variables that it needs in model.chat_template_kwargs, or set model.chat_template=false",
            value=True,
            why=f"the chat template of {tokenizer.name_or_path} fails ({reason})",
        ) from error


def _without_chance(render: Callable[[], str]) -> str:
    """Return the result of `render`. Raises `ValueError` if it draws random numbers in each of three tries."""
    for _ in range(3):  # other threads may draw random numbers in the meantime
        before = random.getstate()
        prompt = render()
        if random.getstate() == before:
            return prompt
    raise ValueError("it draws random numbers, so its output differs between runs")


def _try(render: Callable[[], str], longest: int) -> None:
    """Render once in a child process. Raises `ValueError` if it exceeds the limits.

    Python cannot interrupt a single long operation, such as arithmetic on huge numbers, so the child process is killed
    instead.
    """
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            raise ValueError(f"it takes more than {SECONDS} seconds, {MEMORY >> 30} GiB or {longest} characters")
        return
    code = 1
    try:
        for number in (signal.SIGXCPU, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        signal.alarm(30 * SECONDS)
        with suppress(OSError, ValueError):  # if the operating system reports and limits memory
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
        code = int(len(render()) > longest)
    except MemoryError:
        pass
    except Exception:  # the actual rendering will raise the same error
        code = 0
    finally:
        os._exit(code)


def chat_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenize a rendered chat template, with exactly one BOS if the tokenizer uses one.

    Templates of models with a BOS usually contain it. It is added if it is missing, and never doubled.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos] and tokenizer("x").input_ids[0] == bos:
        ids = [bos, *ids]
    return ids


def question_start(
    text: str, question: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, answer_prefix: str = ""
) -> int:
    """Return how many of `ids`, the tokens of the prompt `text`, come before the last occurrence of `question`.

    `text` ends with `answer_prefix`, which is not searched. A token that spans the boundary counts as part of the
    question. Returns 0 if `question` is empty or does not occur in the text, or if the tokenizer is a Python one, which
    does not give the places of its tokens. White space at the end of the question is ignored, because chat templates
    remove it.
    """
    if not tokenizer.is_fast:
        return 0
    character = text.rfind(question.rstrip(), 0, len(text) - len(answer_prefix))
    if not question.strip() or character < 0:
        return 0
    for special in (False, True):
        encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        before = len(ids) - len(encoded.input_ids)  # a BOS was added
        if before >= 0 and list(ids[before:]) == encoded.input_ids:
            return before + next(place for place, (_, end) in enumerate(encoded.offset_mapping) if end > character)
    return 0
