"""Read the keys and tensors of a GGUF file from its header alone, and check them before anything large is allocated."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from compresskv.errors import UserError

_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_FIRST_READ = 1 << 24
_LARGEST_HEADER = 1 << 28
"""Maximum header size in bytes. A vocabulary of 300,000 tokens takes a twentieth of this size."""


@dataclass(frozen=True)
class Tensor:
    """The location and type of a tensor. `shape` is in ggml's order, the fastest dimension first."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """The content of one GGUF file, of one or more parts: `keys` by name, as Python values, and `tensors`."""

    parts: tuple[Path, ...]
    keys: dict[str, Any]
    tensors: dict[str, Tensor]

    def values(self, name: str) -> list[float]:
        """Return the values of a small float32 tensor. Raises `UserError` if it is stored in another type."""
        tensor = self.tensors[name]
        if tensor.type != GGMLQuantizationType.F32:
            raise UserError(name, "convert the model again", why="not stored as F32", where=self.parts[0])
        return np.frombuffer(_bytes(self.parts, tensor.start, tensor.bytes), "<f4").tolist()


class _Broken(Exception):
    """Raised if the header is invalid. The message says why."""


class _TooShort(Exception):
    """Raised if the header is longer than the part that was read."""


def read(parts: Sequence[Path]) -> GgufFile:
    """Read the header of the GGUF file made up of these parts.

    Raises `UserError` if it is not a GGUF file, is cut off, or has an invalid header.
    """
    size = sum(part.stat().st_size for part in parts)
    amount = _FIRST_READ
    while True:
        head = _bytes(parts, 0, min(amount, size))
        try:
            keys, tensors = _Header(head, size).parse()
            return GgufFile(tuple(parts), keys, tensors)
        except _TooShort as error:
            if amount < min(size, _LARGEST_HEADER):
                amount *= 4
                continue
            reason = "it ends within its header" if amount >= size else "its header is too large"
            raise UserError("model.path", "download the file again", value=parts[0], why=reason) from error
        except _Broken as error:
            raise UserError(
                "model.path", "download the file again, or convert the model again", value=parts[0], why=str(error)
            ) from None


def _bytes(parts: Sequence[Path], start: int, count: int) -> bytes:
    """Return at most `count` bytes from `start` on of the concatenation of these files."""
    found = b""
    for part in parts:
        size = part.stat().st_size
        if start < size and len(found) < count:
            with part.open("rb") as file:
                file.seek(start)
                found += file.read(count - len(found))
        start = max(start - size, 0)
    return found


class _Header:
    """A cursor over the first bytes of a file of `size` bytes."""

    def __init__(self, head: bytes, size: int):
        self.head = head
        self.size = size
        self.at = 0

    def parse(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self.head[:4] != b"GGUF":
            raise _Broken("this is not a GGUF file")
        self.at = 4
        version = self.number("<u4")
        if version and version & 0xFFFF == 0:
            raise _Broken("its numbers are in big-endian order, which is not supported")
        if version not in (2, 3):
            raise _Broken(f"its GGUF version is {version}, and only 2 and 3 are supported")
        tensor_count, key_count = self.count("<u8", smallest=24), self.count("<u8", smallest=13)
        keys: dict[str, Any] = {}
        for _ in range(key_count):
            name = self.name()
            if name in keys:
                raise _Broken(f"it has the key {name} twice")
            keys[name] = self.value(self.number("<u4"))
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensor_count):
            name = self.name()
            if name in infos:
                raise _Broken(f"it has the tensor {name} twice")
            dimensions = self.number("<u4")
            if not 1 <= dimensions <= 4:
                raise _Broken(f"its tensor {name} has {dimensions} dimensions")
            shape = tuple(self.number("<u8") for _ in range(dimensions))
            infos[name] = (shape, self.number("<u4"), self.number("<u8"))
        return keys, self.tensors(infos, keys.get("general.alignment", 32))

    def tensors(self, infos: dict[str, tuple[tuple[int, ...], int, int]], alignment: Any) -> dict[str, Tensor]:
        """Return the tensors. Each tensor must be within the file, and tensors must not overlap."""
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise _Broken(f"general.alignment={alignment} is not a power of two")
        data = -(-self.at // alignment) * alignment
        tensors = {}
        for name, (shape, number, offset) in infos.items():
            try:
                kind = GGMLQuantizationType(number)
                block, block_bytes = GGML_QUANT_SIZES[kind]
            except (ValueError, KeyError):
                raise _Broken(f"its tensor {name} has an unknown type ({number})") from None
            if min(shape) < 1 or shape[0] % block:
                raise _Broken(f"its tensor {name} cannot have the shape {list(shape)}")
            length = math.prod(shape) // block * block_bytes
            if offset % alignment or data + offset + length > self.size:
                raise _Broken(f"its tensor {name} is not within the file, which may be cut off")
            tensors[name] = Tensor(shape, kind, data + offset, length)
        if data + sum(tensor.bytes for tensor in tensors.values()) > self.size:
            raise _Broken("its tensors overlap")
        return tensors

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise _Broken("one of its elements is larger than the file, which may be cut off")
        if self.at + count > len(self.head):
            raise _TooShort
        self.at += count
        return self.head[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        return np.frombuffer(self.take(np.dtype(kind).itemsize), kind)[0].item()

    def count(self, kind: str, smallest: int) -> int:
        """Read a count of elements that take at least `smallest` bytes each."""
        count = self.number(kind)
        if count * smallest > self.size:
            raise _Broken(f"it declares {count} keys, tensors or elements, which is more than the file can hold")
        return count

    def name(self) -> str:
        try:
            return self.text().decode()
        except UnicodeDecodeError:
            raise _Broken("one of its names is not text") from None

    def text(self) -> bytes:
        if self.at + 8 > len(self.head):
            self.take(8)
        (length,) = struct.unpack_from("<Q", self.head, self.at)
        self.at += 8
        return self.take(length)

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.text().decode(errors="replace")
        if kind != _ARRAY:
            raise _Broken(f"one of its keys has an unknown type ({kind})")
        of = self.number("<u4")
        if of in _NUMBERS:
            width = np.dtype(_NUMBERS[of]).itemsize
            return np.frombuffer(self.take(self.count("<u8", width) * width), _NUMBERS[of]).tolist()
        if of != _STRING:
            raise _Broken("one of its keys is an array of arrays")
        return [self.text().decode(errors="replace") for _ in range(self.count("<u8", 8))]
