"""From a LongBench record to prompt ids: template, truncation from the middle, chat wrapper."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from compresskv.chat import chat_ids, chat_prompt
from compresskv.detokenise import text_of
from compresskv.errors import UserError
from evals.longbench.records import Row
from evals.longbench.tasks import Task

ChatWrapper = Literal["template", "released"]

_LLAMA_3_WRAPPER = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


_QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

RELEASED_LONGEST = {
    "llama-3.1-8b-instruct": 127_500,
    "mistral-7b-instruct-v0.3": 31_500,
    "qwen2.5-7b-instruct": 127_500,
}
"""Tokens of the longest prompt before its chat format, by the model's name in small letters.

Source: longbench/config/model2maxlen.json of TUDa-HWAI/CompressKV, commit 6919c45. Qwen2.5-7B's is beyond its window.
"""


@dataclass(frozen=True)
class Prompt:
    """What the model is given. `tokens` counts `ids`; `sha256` is that of `text` in UTF-8."""

    text: str
    ids: tuple[int, ...]
    tokens: int
    truncated: bool
    sha256: str


def render(
    task: Task,
    record: Row,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    chat_wrapper: ChatWrapper | None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    longest: int | None = None,
    cleanup: bool = False,
    model: str = "",
) -> Prompt:
    """The prompt of a record, cut to a model `window` of that many tokens and put into the chat format.

    The templated prompt may have `longest` tokens; None: `window` - max_new_tokens - wrapper. A longer one is cut as
    in the official pred.py: text of the first half of that many ids, then text of the last half. Tokenising this text
    again can give a few tokens more or fewer; `Prompt.tokens` is what the model gets. `cleanup`: whether that text is
    cleaned up (`compresskv.detokenise`). `model` is the name by which the
    released chat format knows Qwen2.5. Raises `UserError` if the window leaves no room, or if the tokenizer has no chat
    template and the chat format needs one.
    """
    wrapper = chat_wrapper if task.chat_wrapper else None

    def wrapped(prompt: str) -> tuple[str, list[int]]:
        return _wrap(prompt, tokenizer, wrapper, chat_template_kwargs, model)

    prompt = template(task, record)
    shortened = truncate_middle(prompt, tokenizer, longest or _room(task, tokenizer, window, wrapped), cleanup)
    text, ids = wrapped(prompt if shortened is None else shortened)
    return Prompt(text, tuple(ids), len(ids), shortened is not None, hashlib.sha256(text.encode("utf-8")).hexdigest())


def _room(
    task: Task, tokenizer: PreTrainedTokenizerBase, window: int, wrapped: Callable[[str], tuple[str, list[int]]]
) -> int:
    """Tokens of a templated prompt that leave room in `window` for its chat format and the answer."""
    probe = "x"
    added = len(wrapped(probe)[1]) - len(_tokenize(probe, tokenizer))
    room = window - task.max_new_tokens - added
    if room < 2:
        raise UserError(
            "model.window",
            "choose a larger one",
            value=window,
            why=f"it has no room for a {task.name} prompt beside {task.max_new_tokens} new tokens and {added} tokens "
            "of chat format",
        )
    return room


def template(task: Task, record: Row) -> str:
    """The task's template filled with the record, not truncated and not wrapped."""
    return task.prompt.format(input=record.input, context=record.context)


def truncate_middle(
    prompt: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int, cleanup: bool = False
) -> str | None:
    """`prompt` without its middle if it has more than `max_tokens` tokens (special ones included), else None.

    `cleanup` as in `render`. Source: pred.py of THUDM/LongBench, commit 2e00731. An odd `max_tokens` is rounded down.
    """
    ids = _tokenize(prompt, tokenizer)
    if len(ids) <= max_tokens:
        return None
    half = max_tokens // 2
    return text_of(ids[:half], tokenizer, cleanup) + text_of(ids[-half:], tokenizer, cleanup)


def stop_ids(task: Task, tokenizer: PreTrainedTokenizerBase, model_stop_ids: Iterable[int]) -> frozenset[int]:
    """Ids that end a generation: the model's own, or for samsum the tokenizer's end token and the newline's last id.

    `Task.min_new_tokens` tokens come first, whatever they are.
    """
    if task.stop == "eos":
        return frozenset(model_stop_ids)
    newline = tokenizer("\n", add_special_tokens=False).input_ids[-1]
    return frozenset({newline} if tokenizer.eos_token_id is None else {newline, tokenizer.eos_token_id})


def _wrap(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    wrapper: ChatWrapper | None,
    chat_template_kwargs: Mapping[str, Any] | None,
    model: str,
) -> tuple[str, list[int]]:
    """Text and ids of a prompt in the chat format; None is no chat format."""
    qwen = wrapper == "released" and "qwen2.5" in model.casefold()
    if (wrapper == "template" or qwen) and not tokenizer.chat_template:
        raise UserError(
            "model.chat_template",
            "use an instruction-tuned model or model.chat_template=false",
            value=True,
            why="the tokenizer has no chat template",
        )
    if qwen:
        prompt = chat_prompt(prompt, tokenizer, chat_template_kwargs, system=_QWEN_SYSTEM)
        return prompt, _tokenize(prompt, tokenizer)
    if wrapper == "template":
        text = chat_prompt(prompt, tokenizer, chat_template_kwargs)
        return text, chat_ids(text, tokenizer)
    if wrapper == "released" and _is_llama_3(tokenizer):
        # The tokenizer puts its own BOS before the one of this text: the released prompts start with two.
        prompt = _LLAMA_3_WRAPPER.replace("{prompt}", prompt)
    return prompt, _tokenize(prompt, tokenizer)


def _is_llama_3(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Llama 3 to 3.3 share the header tokens; the released code asks for "Llama-3" in the model's name."""
    return tokenizer.bos_token == "<|begin_of_text|>" and "<|start_header_id|>" in tokenizer.get_vocab()


def _tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(text, verbose=False).input_ids
