"""kvpress where it is installed; the tests of its presses are skipped where it is not."""

from types import ModuleType

import pytest

from compresskv.errors import UserError


def kvpress_or_skip() -> ModuleType:
    """The package; skips the module that calls this where it is missing, with the reason."""
    from baselines.kvpress.installed import kvpress

    try:
        return kvpress()
    except UserError as error:
        pytest.skip(str(error), allow_module_level=True)
