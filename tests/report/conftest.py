"""Keep the tests of reports from reading the user's calibrations."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _no_calibrations_of_the_user(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSKV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
