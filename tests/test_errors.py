"""How an error is rendered from its parts; all other tests look at the parts."""

import pickle
from pathlib import Path

import pytest

from compresskv.engine.prefill import NonFinitePrefillError
from compresskv.errors import PromptError, UserError, located


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("budget", "choose at least 1", value=0), "budget=0: choose at least 1"),
        (UserError("memory", "give a value", value=None), "memory=null: give a value"),
        (
            UserError("method", "did you mean snapkv?", value="snapkvv", why="not found"),
            "method=snapkvv: not found: did",
        ),
        (UserError("metric", "give one", why="not set", where="a.jsonl, line 2"), "a.jsonl, line 2: metric: not set: "),
        (UserError(None, "check the path", value=Path("x" * 300)), f"{'x' * 300}: check the path"),
        (UserError("eval.name", "choose another", value="x" * 300), f"eval.name={'x' * 79}…: choose another"),
        (UserError(None, "run it again", why="one of two failed"), "one of two failed: run it again"),
    ],
)
def test_a_sentence_has_the_file_the_field_the_value_the_reason_and_the_fix(error, sentence):
    assert str(error).startswith(sentence)


@pytest.mark.parametrize("kind", [UserError, PromptError, NonFinitePrefillError])
def test_an_error_crosses_processes_whole(kind):
    error = kind("budget", "choose at least 1", value=0, why="too small", where=Path("file"))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert pickle.loads(pickle.dumps(UserError("budget", "give one"))).value is ...


def test_a_file_is_named_in_an_error_about_one_of_its_fields():
    with pytest.raises(UserError) as caught, located("file, line 3"):
        raise UserError("id", "give one")
    assert (caught.value.where, caught.value.field) == ("file, line 3", "id")
