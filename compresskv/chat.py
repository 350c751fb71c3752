"""Prompts in a model's own chat template."""

import inspect
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerBase

from compresskv.errors import UserError

TODAY = date(2024, 7, 26)
"""The date that Llama 3.1's template names unless it is given another."""

_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_TEMPLATE_ARGUMENTS = {"tools", "documents"}
"""Arguments of `apply_chat_template` that go into the template as they are."""


def chat_prompt(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    kwargs: Mapping[str, Any] | None = None,
    system: str | None = None,
) -> str:
    """`text` as one user turn in the model's template, behind a `system` message if given, up to the answer's opening.

    `kwargs` are the template's own variables, such as `enable_thinking`. Templates that name today's date, by a literal
    format as all known ones do, get `TODAY`: a prompt must not change from one day to the next. Raises `UserError` for
    a template that fails, or that leaves out the text.
    """
    kwargs = dict(kwargs or {})
    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) - _TEMPLATE_ARGUMENTS
    if wrong := sorted(taken & set(kwargs)):
        raise UserError(f"model.chat_template_kwargs.{wrong[0]}: is set by the harness: give variables of the template")
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        template = _DATE_CALL.sub(lambda call: repr(TODAY.strftime(call[2])), tokenizer.get_chat_template())
        prompt = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True, **kwargs
        )
    except Exception as error:  # a template is a program of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"model.chat_template=true: the chat template of {tokenizer.name_or_path} fails ({reason}): "
            "set model.chat_template_kwargs to what it asks for, or model.chat_template=false"
        ) from error
    if text.strip() not in prompt:
        raise UserError(
            f"model.chat_template=true: the chat template of {tokenizer.name_or_path} leaves out or changes the text "
            "of a user's turn: repair the template, or set model.chat_template=false"
        )
    return prompt


def chat_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a rendered chat template, with exactly one BOS where the tokenizer uses one.

    Templates of models with a BOS usually write it themselves; never let there be two, nor none.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos] and tokenizer("x").input_ids[0] == bos:
        ids = [bos, *ids]
    return ids
