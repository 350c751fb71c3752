"""Prompts in a model's own chat template."""

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
"""The date that Llama 3.1's template names unless it is given another."""

SECONDS, MEMORY, CHARACTERS = 2, 1 << 30, 1 << 20
"""Limits of rendering: CPU seconds, bytes, and characters in addition to four times those of the input."""

_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_OTHER_DATE = (
    "{% macro strftime_now() %}{{ raise_exception('it formats the date with something other than a literal') }}"
)
_OTHER_DATE += "{{ varargs, kwargs }}{% endmacro %}\n"
"""Put before a template that still names the function, so that a call does not return today's date."""

_TEMPLATE_ARGUMENTS = {"tools", "documents"}
"""Arguments of `apply_chat_template` that go into the template as they are."""

_ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}>")

_tried: dict[tuple[str, str], int] = {}
"""The most characters that a template, with its variables, was tried with within limits."""


def chat_prompt(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    kwargs: Mapping[str, Any] | None = None,
    system: str | None = None,
) -> str:
    """`text` as one user turn in the model's template, behind a `system` message if given, up to the answer's opening.

    Raises `UserError` as `rendered` does, and for a template that leaves out the text.
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
    """`messages` in the model's template, up to the next answer's opening; `continued`: the last of them left open.

    `kwargs` are the template's own variables, such as `enable_thinking`. Templates that print today's date (all known
    ones use a literal format) get `TODAY`, so that prompts do not change from day to day. Raises `UserError` for a
    template that fails, exceeds the limits, or is not deterministic.
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
            raise ValueError("it writes the address of an object, which changes from run to run")
        return prompt
    except Exception as error:  # a template is a program and can raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            "model.chat_template",
            "set model.chat_template_kwargs to what it asks for, or model.chat_template=false",
            value=True,
            why=f"the chat template of {tokenizer.name_or_path} fails ({reason})",
        ) from error


def _without_chance(render: Callable[[], str]) -> str:
    """The result of `render`. Raises `ValueError` if it draws random numbers in each of three tries."""
    for _ in range(3):  # other threads may take some meanwhile
        before = random.getstate()
        prompt = render()
        if random.getstate() == before:
            return prompt
    raise ValueError("it draws random numbers, so its text differs from run to run")


def _try(render: Callable[[], str], longest: int) -> None:
    """Render once in a child process. Raises `ValueError` if it exceeds the limits.

    Python cannot interrupt a single long operation, such as one on large numbers, so the process is killed instead.
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
        with suppress(OSError, ValueError):  # where the system tells and limits it
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
        code = int(len(render()) > longest)
    except MemoryError:
        pass
    except Exception:  # which the rendering proper says
        code = 0
    finally:
        os._exit(code)


def chat_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a rendered chat template, with exactly one BOS where the tokenizer uses one.

    Templates of models with a BOS usually write it themselves; it is added if missing and never doubled.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos] and tokenizer("x").input_ids[0] == bos:
        ids = [bos, *ids]
    return ids


def question_start(
    text: str, question: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, answer_prefix: str = ""
) -> int:
    """How many of `ids`, the tokens of a prompt's `text`, come before the last occurrence of `question` in it.

    `text` ends with the `answer_prefix`, where the question is not looked for.
    A token that has characters of both counts as the question's. 0 where the text lacks the question, or where there is
    none. White space at its end does not count, since chat templates remove it.
    """
    character = text.rfind(question.rstrip(), 0, len(text) - len(answer_prefix))
    if not question.strip() or character < 0:
        return 0
    for special in (False, True):
        encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        before = len(ids) - len(encoded.input_ids)  # a BOS that was added
        if before >= 0 and list(ids[before:]) == encoded.input_ids:
            return before + next(place for place, (_, end) in enumerate(encoded.offset_mapping) if end > character)
    return 0
