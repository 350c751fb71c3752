"""Detect writes of a method to its tensors, which all settings of a prompt share.

PyTorch counts the writes to a tensor, with one counter for it and all its views. Writes through NumPy or `.data` are
not counted; `python -m evals conformance` finds those by comparing copies.
"""

from torch import Tensor

from compresskv.errors import UserError, part_name


class ReadOnly:
    """Tensors, each with the number of writes that it had seen when it was shown."""

    def __init__(self) -> None:
        self._shown: list[tuple[str, Tensor, int]] = []

    def show(self, what: str, *tensors: Tensor) -> None:
        """Show these tensors; a message calls them `what`."""
        self._shown += [(what, tensor, _writes(tensor)) for tensor in tensors]

    def refuse_writes(self, part: str, *called: object) -> None:
        """Raise `UserError` if a tensor was written to since it was shown; the parts in `called` were called since."""
        for what, tensor, writes in self._shown:
            if _writes(tensor) != writes:
                names = dict.fromkeys(map(part_name, called))
                raise UserError(
                    part,
                    "compute a new tensor, as in x = x / 2 instead of x /= 2",
                    value=" or ".join(names),
                    why=f"it changes {what} in place, which all settings of a prompt read",
                )


def _writes(tensor: Tensor) -> int:
    # Writes to a tensor made under `torch.inference_mode` are not counted; outside of that mode, they raise.
    return 0 if tensor.is_inference() else tensor._version
