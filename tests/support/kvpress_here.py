"""Import kvpress, or skip the tests of its presses if it is not installed."""

from types import ModuleType

import pytest

from compresskv.errors import UserError


def kvpress_or_skip() -> ModuleType:
    """Return the package, or skip the calling module with the reason if it is missing."""
    from baselines.kvpress.installed import kvpress

    try:
        return kvpress()
    except UserError as error:
        pytest.skip(str(error), allow_module_level=True)
