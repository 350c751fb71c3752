"""Check the field of a `UserError`, not its wording."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import CompletedProcess
from typing import Any

import pytest

from compresskv.errors import UserError


@contextmanager
def refused(field: str | None, kind: type[UserError] = UserError, **data: Any) -> Iterator[pytest.ExceptionInfo]:
    """Assert that the block raises an error about `field`. `data`: see `assert_about`."""
    with pytest.raises(kind) as caught:
        yield caught
    assert_about(caught.value, field, **data)


def assert_about(error: UserError, field: str | None, names: str = "", **data: Any) -> None:
    """Assert that an error is about `field`, fits on one line, and has a fix.

    `names`: text that the fix must contain, such as the name of a setting. `data`: the error's `value`, which may be
    given as text, and its `where`.
    """
    assert error.field == field, str(error)
    assert error.fix
    assert names in error.fix
    assert str(error).isprintable()
    for name, wanted in data.items():
        assert getattr(error, name) == wanted or str(getattr(error, name)) == str(wanted), str(error)


def assert_refused(done: CompletedProcess, field: str) -> None:
    """Assert that a command failed with one sentence about `field` and without a traceback."""
    assert done.returncode
    assert "Traceback" not in done.stderr
    assert_sentence(done.stderr.splitlines()[-1], field)


def assert_sentence(said: str, field: str) -> None:
    """Assert that the last output of a process is one sentence about `field`."""
    assert said.isprintable()
    assert re.search(rf"^error: (.*: )?{re.escape(field)}(=|: )", said), said
