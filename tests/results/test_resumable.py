"""The resumable loop of calibration and other measurements."""

import pytest

from evals.progress import Progress
from evals.results.resumable import complete


def test_only_what_is_missing_is_computed(tmp_path):
    computed = []

    def line_of(item):
        computed.append(item)
        if item == 3:
            raise RuntimeError
        return {"square": item * item}

    with pytest.raises(RuntimeError):
        complete(tmp_path, "squares", {"a": 1, "b": 3, "c": 2}, line_of, Progress())
    lines = complete(tmp_path, "squares", {"c": 2, "a": 1}, line_of, Progress())
    assert computed == [1, 3, 2]
    assert [(id, line["square"]) for id, line in lines.items()] == [("c", 4), ("a", 1)]
