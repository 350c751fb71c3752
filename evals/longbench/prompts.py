"""Turn a LongBench record into prompt ids: fill the template, truncate the middle, apply the chat wrapper."""

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
"""Maximum tokens of a prompt without its chat format, by the model's name in lower case.

Source: longbench/config/model2maxlen.json of TUDa-HWAI/CompressKV, commit 6919c45. Qwen2.5-7B's exceeds its window.
"""


@dataclass(frozen=True)
class Prompt:
    """The prompt that the model receives. `tokens` is the length of `ids`; `sha256` is the hash of `text` in UTF-8."""

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
    """Return the prompt of a record, truncated to a model `window` (tokens) and put into the chat format.

    The templated prompt may have `longest` tokens; None: `window` - max_new_tokens - wrapper. A longer prompt is
    truncated as in the official pred.py: the first and the last half of that many ids are decoded and joined. This text
    may have a few more or fewer tokens when tokenised again. `cleanup`: whether the decoded text is cleaned up
    (`compresskv.detokenise`). `model`: the model's name, by which the released chat format recognises Qwen2.5.
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
    """Return how many tokens of `window` remain for a templated prompt after its chat format and the answer."""
    probe = "x"
    added = len(wrapped(probe)[1]) - len(_tokenize(probe, tokenizer))
    room = window - task.max_new_tokens - added
    if room < 2:
        raise UserError(
            "model.window",
            "choose a larger value",
            value=window,
            why=f"it has no room for a {task.name} prompt with {task.max_new_tokens} new tokens and {added} tokens of "
            f"chat format",
        )
    return room


def template(task: Task, record: Row) -> str:
    """Fill the task's template with the record, without truncation or chat wrapper."""
    return task.prompt.format(input=record.input, context=record.context)


def truncate_middle(
    prompt: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int, cleanup: bool = False
) -> str | None:
    """Remove the middle of `prompt` if it has more than `max_tokens` tokens, including special tokens; else return
    None.

    `cleanup` as in `render`. Source: pred.py of THUDM/LongBench, commit 2e00731. An odd `max_tokens` is rounded down.
    """
    ids = _tokenize(prompt, tokenizer)
    if len(ids) <= max_tokens:
        return None
    half = max_tokens // 2
    return text_of(ids[:half], tokenizer, cleanup) + text_of(ids[-half:], tokenizer, cleanup)


def stop_ids(task: Task, tokenizer: PreTrainedTokenizerBase, model_stop_ids: Iterable[int]) -> frozenset[int]:
    """Return the ids that end a generation: the model's own, or for samsum the tokenizer's end token and the newline.

    Of the newline's ids, only the last one counts. The first `Task.min_new_tokens` tokens never end a generation.
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
    """Return text and ids of a prompt in the chat format; `wrapper` None applies no chat format."""
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
    # The released code looks for "Llama-3" in the model's name. Llama 3 to 3.3 have these header tokens.
    llama_3 = tokenizer.bos_token == "<|begin_of_text|>" and "<|start_header_id|>" in tokenizer.get_vocab()
    if wrapper == "released" and llama_3:
        # The tokenizer adds another BOS before the BOS in this text: the released prompts start with two BOS.
        prompt = _LLAMA_3_WRAPPER.replace("{prompt}", prompt)
    return prompt, _tokenize(prompt, tokenizer)


def _tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(text, verbose=False).input_ids
