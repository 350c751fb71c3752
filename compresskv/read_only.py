"""Detect writes of a method to its tensors, which all settings of a prompt share.

PyTorch counts the writes to a tensor, with one counter for the tensor and all its views. Writes through NumPy or
`.data` are not counted; `python -m evals conformance` finds such writes by comparing copies.
"""

from torch import Tensor

from compresskv.errors import UserError, part_name


class ReadOnly:
    """Tensors that a method may read, each with its write count at the time it was registered."""

    def __init__(self) -> None:
        self._shown: list[tuple[str, Tensor, int]] = []

    def show(self, what: str, *tensors: Tensor) -> None:
        """Register these tensors. Error messages call them `what`."""
        self._shown += [(what, tensor, _writes(tensor)) for tensor in tensors]

    def refuse_writes(self, part: str, *called: object) -> None:
        """Raise `UserError` if a registered tensor was written to. `called`: the parts that ran since."""
        for what, tensor, writes in self._shown:
            if _writes(tensor) != writes:
                names = dict.fromkeys(map(part_name, called))
                raise UserError(
                    part,
                    "compute a new tensor, as in x = x / 2 instead of x /= 2",
                    value=" or ".join(names),
                    why=f"it changes {what} in place, but all settings of a prompt share this tensor",
                )


def _writes(tensor: Tensor) -> int:
    # Writes to a tensor made under `torch.inference_mode` are not counted; outside of that mode, they raise.
    return 0 if tensor.is_inference() else tensor._version
