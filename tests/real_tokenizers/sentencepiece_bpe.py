"""A SentencePiece BPE model as the fast Llama tokenizer that transformers makes of it, without `sentencepiece`."""

from pathlib import Path

from tokenizers import AddedToken
from transformers import LlamaTokenizer
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

CONTROL = 3
"""The type of pieces that stand for no text, such as <s> and [INST]."""


def converted(path: Path) -> LlamaTokenizer:
    """The tokenizer of a `.model` file, with `legacy=false`: no space is added behind special tokens in the text."""
    model = import_protobuf().ModelProto()
    model.ParseFromString(path.read_bytes())
    vocabulary = {piece.piece: id for id, piece in enumerate(model.pieces)}
    merges = generate_merges(vocabulary, {piece.piece: piece.score for piece in model.pieces})
    names = [piece.piece for piece in model.pieces if piece.type == CONTROL]
    control = [AddedToken(name, special=True, normalized=False) for name in names]
    return LlamaTokenizer(vocabulary, merges, extra_special_tokens=control, add_bos_token=True)
