"""A tokenizer with one id per byte."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(bos: str = "", specials: tuple[str, ...] = (), chat_template: str | None = None):
    """Make a tokenizer that puts `bos`, if given, before every text, like Llama's and Mistral's.

    The last of `specials` is the EOS.
    """
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.add_special_tokens([bos, *specials])
        special = [(bos, backend.token_to_id(bos))]
        backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    ends = {"bos_token": bos or None, "eos_token": specials[-1] if specials else None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ends, chat_template=chat_template)
