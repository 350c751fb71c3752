"""`import compresskv`: cheap, and with every name that it promises."""

import subprocess
import sys

import pytest

import compresskv


def test_importing_the_package_does_not_import_torch():
    code = "import sys, compresskv; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("name", compresskv.__all__)
def test_every_public_name_is_there(name):
    assert getattr(compresskv, name).__name__ == name


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="no_such_name"):
        compresskv.no_such_name  # noqa: B018
