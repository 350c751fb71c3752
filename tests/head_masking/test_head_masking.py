"""Head masking from the command line: chosen heads, prompts, results, tables and refusals."""

from dataclasses import replace

import pytest

from compresskv.calibration import best_first, load
from compresskv.protocol import EvaluationProtocol
from evals.head_masking.choices import by_layer, choices, scaled
from evals.head_masking.config import HeadMasking
from evals.head_masking.evaluation import MaskingTask
from evals.head_masking.tables import texts
from tests.support import trees
from tests.support.command import content, folders, run
from tests.support.jobs import job
from tests.support.refusals import assert_refused, refused

GRID = ["eval.lengths=[200,300]", "eval.depths=2", "eval.max_new_tokens=4", "eval.draws=2", "eval.masked=[0,100,500]"]
SCORES = ((0.1, 0.9, 0.0, 0.3), (0.9, 0.2, 0.0, 0.8))


def config(*overrides) -> HeadMasking:
    evaluation = job("eval=head_masking", "method=full", *overrides).eval
    assert isinstance(evaluation, HeadMasking)
    return evaluation


def masked(*overrides):
    """The arguments of `choices` from a configuration."""
    made = config(*overrides)
    return made.masked, made.draws


@pytest.fixture
def command(tiny, calibration_file):
    return ["eval=head_masking", *GRID, *tiny, f"calibration={calibration_file}", "method=full"]


def test_heads_are_ranked_over_all_layers():
    assert best_first(SCORES) == [(0, 1), (1, 0), (1, 3), (0, 3), (1, 1), (0, 0), (0, 2), (1, 2)]
    assert by_layer(best_first(SCORES)[:3], 2) == ((1,), (0, 3))
    assert by_layer([], 3) == ((), (), ())


def test_numbers_of_heads_are_scaled_to_the_model():
    assert [scaled(count, 1024) for count in (0, 10, 20, 30)] == [0, 10, 20, 30]
    assert [scaled(count, 270) for count in (0, 10, 20, 30, 1024)] == [0, 3, 5, 8, 270]
    assert scaled(1, 8) == 1


def test_choices_grow_and_the_control_is_apart_from_the_best():
    table_of = tuple(tuple((7 * layer + 3 * head) % 64 / 64 for head in range(16)) for layer in range(16))
    other = tuple(reversed(table_of))
    made = choices(*masked("eval.draws=3"), {"semantic": table_of, "traditional": other})
    names = ["none-0", "semantic-2", "traditional-2", *(f"random-2-draw{draw}" for draw in range(3))]
    assert [choice.name for choice in made[:6]] == names
    assert len({choice.heads for choice in made if choice.ranking == "random"}) == 9
    best = set(best_first(table_of)[:25]) | set(best_first(other)[:25])
    for choice in made:
        places = {(layer, head) for layer, heads in enumerate(choice.heads) for head in heads}
        assert len(places) == choice.count
        if choice.ranking == "random":
            assert not places & best
        for wider in made:
            if (wider.ranking, wider.draw) == (choice.ranking, choice.draw) and wider.count > choice.count:
                assert all(set(a) <= set(b) for a, b in zip(choice.heads, wider.heads, strict=True))
    assert made == choices(*masked("eval.draws=3"), {"semantic": table_of, "traditional": other})


def test_a_control_without_enough_heads_is_refused():
    with refused("eval.masked", value=8):
        choices(*masked("eval.masked=[1024]"), {"semantic": SCORES})
    assert len(choices(*masked("eval.masked=[1024]", "eval.draws=0"), {"semantic": SCORES})) == 1


def test_needles_are_placed_as_the_protocol_has_it(default_model):
    """Under `released`, needles follow Llama 2's ids of a period, which are other tokens here, or are at the start."""
    choice = choices(*masked(), {"semantic": ((0.5,) * 9,) * 30})[0]

    def sample(protocol: EvaluationProtocol, id: str):
        return MaskingTask(config("eval.lengths=[1000]", "eval.depths=5"), default_model, protocol, choice).sample(id)

    right = sample(EvaluationProtocol(), "L1000-D50-N0")
    assert abs(right.record["actual_depth"] - 50) < 6
    assert right.record["needle_behind"] == "sentence"
    protocol = job("protocol=released").protocol
    released = sample(protocol, "L1000-D50-N0")
    text = default_model.tokenizer.decode(released.ids)
    assert text.endswith(
        "Based on the content of the book, Question: What is the best thing to do in San Francisco?\nAnswer:"
    )
    assert "<book>" not in text
    before = default_model.tokenizer(text.split("\nThe best thing to do in San Francisco is eat")[0]).input_ids
    assert before == [] or before[-1] in (29889, 869)
    assert abs(released.record["actual_depth"] - 50) > 6
    as_niah = sample(replace(protocol, masking_sentence_rule="text"), "L1000-D50-N0")
    assert abs(as_niah.record["actual_depth"] - 50) < 6


def test_a_run_its_results_and_its_table(command, tmp_path, calibration_file):
    done = run(*command, env={"COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    assert "tiny-llama · head_masking · corrected" in done.stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    rankings = [[ranking, count] for ranking in ("traditional", "semantic", "random") for count in ("2", "9")]
    assert [row[:2] for row in rows] == [["none", "0"], *rankings]
    assert {row[4] for row in rows} == {"4"}
    left = content(tmp_path)
    assert {folder.parts[-4] for folder in folders(tmp_path)} == {
        "none-0",
        *(f"{ranking}-{count}" for ranking in ("semantic", "traditional") for count in (2, 9)),
        *(f"random-{count}-draw{draw}" for count in (2, 9) for draw in (0, 1)),
    }
    best = best_first(load(calibration_file).head_scores["semantic"])[:2]
    for key, (lines, order, summary) in left.items():
        assert order == ["L200-D0-N0", "L200-D100-N0", "L300-D0-N0", "L300-D100-N0"]
        assert all(line["realised_budget"] == line["prompt_tokens"] for line in lines.values())
        assert summary["n"] == 4
        if "/semantic-2/" in key:
            masked = summary["prompt"]["masked_heads"]
            assert sorted((layer, head) for layer, heads in enumerate(masked) for head in heads) == sorted(best)
    planned = run(*command, "+plan=true", "eval.masked=[0,100,500,600]", env={"COLUMNS": "160"})
    row = next(line for line in planned.stdout.splitlines() if "head_masking" in line)
    assert [cell.strip() for cell in row.strip("│┃ ").split("│")][3:5] == ["4", "4"]  # what 600 of 1,024 adds
    for folder in folders(tmp_path)[:3]:
        (folder / "samples.jsonl").write_text("".join((folder / "samples.jsonl").open().readlines()[:2]))
    assert run(*command).returncode == 0
    assert content(tmp_path) == left


def test_no_masked_head_answers_as_eval_niah(command, tmp_path):
    assert run(*command, "eval.masked=[0]").returncode == 0
    niah = [setting for setting in command if not setting.startswith(("eval=", "eval.draws", "eval.masked"))]
    assert run("eval=niah", *niah).returncode == 0
    masked, plain = sorted(content(tmp_path).items())
    assert "/head_masking/" in masked[0]
    for id, line in plain[1][0].items():
        assert masked[1][0][id]["prediction"] == line["prediction"]
        assert masked[1][0][id]["prompt_sha256"] == line["prompt_sha256"]


@pytest.mark.parametrize(("overrides", "field"), [(["method=snapkv"], "method"), (["calibration=auto"], "calibration")])
def test_a_mistake_is_answered_in_a_sentence(command, overrides, field):
    assert_refused(run(*command, *overrides), field)


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("eval.rankings=[best]", "eval.rankings[0]", "best"),
        ("eval.masked=[2000]", "eval.masked[0]", 2000),
        ("fidelity=true", "fidelity", True),
    ],
)
def test_a_setting_that_cannot_be_is_a_sentence(override, field, value):
    with refused(field, value=value):
        config(override)


def test_draws_are_averaged_within_a_prompt(tmp_path):
    made = choices(*masked("eval.masked=[200]", "eval.draws=2"), {"semantic": ((0.5, 0.1, 0.2, 0.3),) * 8})
    records = []
    for choice in made:
        of_choice = {"ranking": choice.ranking, "masked": choice.count, "score_keywords": 10.0}
        lines = [
            trees.line(str(number), 50.0 * (number + (choice.draw or 0)), None, **of_choice) for number in range(2)
        ]
        records.append(trees.setting(tmp_path, lines, "full", eval="head_masking", task=choice.name))
    [table] = texts(records)
    assert table.body[0][:6] == ["semantic", "6", "25.0", "0.0 – 50.0", "2", ""]
    assert table.body[1][:6] == ["random", "6", "50.0", "25.0 – 75.0", "2", "2 (25.0 – 75.0)"]
