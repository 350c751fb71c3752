"""What every command says to a flag, a value or a path that cannot be: a sentence, and an exit code that is not 0."""

import pytest

from evals.audit.__main__ import main as audit
from evals.conformance.__main__ import main as conformance
from evals.console import one_sentence_endings
from evals.lm_eval.__main__ import main as lm_eval
from evals.longbench.score import main as score
from evals.reference.__main__ import main as reference
from evals.report.__main__ import main as report
from evals.results.__main__ import main as results

NOWHERE = "/nowhere/at/all"
LONG = "1" * 5000

COMMANDS = {
    "report": report,
    "results": results,
    "conformance": conformance,
    "reference": reference,
    "lm_eval": lm_eval,
    "score": score,
    "audit": audit,
}

WRONG = {
    "report": ["", "--nope", "nope", f"{NOWHERE} --out {NOWHERE}/x", "--out", "experiment=nope", "experiment=", "x=5"],
    "results": ["", "nope", f"list --results {NOWHERE}", f"show --results {NOWHERE}", "list --nope", "compare x"],
    "conformance": [
        *("", "--nope", "budget=5", "method=", "method=nope", "method=5", "method=[1]", "method=full", "nope"),
        *("method=snapkv budget=x", f"method=snapkv budget={LONG}", "method=snapkv nope=1", "method=snapkv model=5"),
        *("method=snapkv budget=0", f"--config-dir={NOWHERE} method=snapkv", "method=snapkv protocol=null"),
    ],
    "reference": ["nope", "--nope", "--data"],
    "lm_eval": ["", "--nope", "--tasks x nope=1", "--tasks x model=5", "--tasks x method=null", "--tasks x --limit y"],
    "score": ["", "--nope", NOWHERE, "/dev/null"],
    "audit": ["--nope", "nope", "model=5", "eval=null", "budget=x"],
}


@pytest.mark.parametrize(("command", "line"), [(name, line) for name, lines in WRONG.items() for line in lines])
def test_a_mistake_ends_in_a_sentence(command, line, capsys, monkeypatch):
    if command == "audit":  # which takes hours
        monkeypatch.setattr("evals.audit.__main__.measure", lambda *given: pytest.fail("the audit has begun"))
    with pytest.raises(SystemExit) as ended, one_sentence_endings():
        raise SystemExit(COMMANDS[command](line.split()))
    said = capsys.readouterr()
    last = ended.value.code if isinstance(ended.value.code, str) else (said.err or said.out).splitlines()[-1]
    assert ended.value.code not in (0, None)
    assert last
    assert last.isprintable()
    assert "Traceback" not in said.err
