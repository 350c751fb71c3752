"""A second implementation of the released code's prompts, which shares nothing with the tested code.

Sources: longbench/pred_compresskv.py and needle/run_needle_in_haystack.py of TUDa-HWAI/CompressKV, commits 6919c45 and
e8af510, with transformers 4.45. There, the file system determines the order of the essays; here, the caller passes the
haystack.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

NO_CHAT_FORMAT = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}

LONGEST = {"llama-3.1-8b-instruct": 127_500, "mistral-7b-instruct-v0.3": 31_500, "qwen2.5-7b-instruct": 127_500}

CHAT = {
    "llama-3.1-8b-instruct": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral-7b-instruct-v0.3": ("", ""),
    "qwen2.5-7b-instruct": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
}
"""The text before and after a LongBench prompt."""

NEEDLE = "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n"
QUESTION = "What is the best thing to do in San Francisco?"


class Authors:
    """Makes the prompts of one model, from its tokenizer files only."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        self.cleans = config["clean_up_tokenization_spaces"]

    def encode(self, text: str) -> list[int]:
        """Encode a text, with the special tokens that the tokenizer adds."""
        return self.tokenizer.encode(text).ids

    def decode(self, ids: list[int], special: bool) -> str:
        """Decode as transformers 4.45, with clean-up if the configuration sets it. `special`: keep special tokens."""
        text = self.tokenizer.decode(ids, skip_special_tokens=not special)
        return PreTrainedTokenizerBase.clean_up_tokenization(None, text) if self.cleans else text

    def longbench(self, task: str, template: str, row: dict) -> list[int]:
        """Return the ids of the prompt for a row of LongBench's file."""
        text = template.format(**row)
        ids = self.encode(text)
        half = LONGEST[self.name] // 2
        if len(ids) > 2 * half:
            text = self.decode(ids[:half], special=False) + self.decode(ids[len(ids) - half :], special=False)
        before, behind = ("", "") if task in NO_CHAT_FORMAT else CHAT[self.name]
        return self.encode(before + text + behind)

    def needle(self, haystack: str, length: int, depth: int) -> list[int]:
        """Return prompt ids with the needle at `depth` per cent of the haystack, which must be longer than `length`."""
        # encode_and_trim, then insert_needle: decoded text is encoded again, each time with a BOS if one is defined
        context = self.encode(self.decode(self.encode(haystack)[:length], special=True))
        needle = self.encode(NEEDLE)
        context = context[: length - 200 - len(needle)]
        place = len(context)
        if depth < 100:
            place = int(place * (depth / 100))
            periods = self.encode(".")
            while place > 0 and context[place - 1] not in periods:
                place -= 1
        book = self.decode(context[:place] + needle + context[place:], special=True)
        asked = f"Based on the content of the book, Question: {QUESTION}\nAnswer:"
        return self.encode(f"<|im_start|> This is a very long story book: <book> {book} </book>.\n {asked}")
