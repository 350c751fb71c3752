"""Which settings of a results tree an experiment is about: those that it would run, on whatever model and budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from compresskv import calibration
from compresskv.checking import checked
from compresskv.errors import UserError
from compresskv.folders import CONF
from compresskv.methods import method_config, named_method
from compresskv.protocol import EvaluationProtocol
from compresskv.selecting_heads import Heads, count_heads
from evals.compose import sweep
from evals.report.labels import calibration_of, selecting_heads
from evals.report.sound import sound
from evals.results.record import Record, records

VARYING = ("method", "observation", "calibration", "eval.")
"""Swept settings that a result must have as an experiment has them. Models, budgets and protocols may be any."""

STAND_IN = {"longbench": "niah"}
"""What an evaluation runs as where it cannot be had, at size=smoke."""


@dataclass(frozen=True)
class Trait:
    """A `setting` of a configuration, and how to see whether a record `has` that value."""

    setting: Callable[[Mapping[str, Any]], Any]
    has: Callable[[Record, Any], bool]

    def shared(self, record: Record, config: Mapping[str, Any]) -> bool:
        return self.has(record, self.setting(config))


def _of_eval(record: Record, name: str, default: Any = None) -> Any:
    return record.config.get("eval", {}).get(name, default)


TRAITS = (
    Trait(lambda config: config["observation"], lambda record, value: record.config.get("observation") == value),
    Trait(
        lambda config: config["calibration"],
        lambda record, value: calibration_of(record) == calibration_of(record, value),
    ),
    Trait(lambda config: config["eval"].get("haystack"), lambda record, value: _of_eval(record, "haystack") == value),
    # Runs of one needle and of several are settings apart.
    Trait(
        lambda config: config["eval"].get("needles", 1) > 1,
        lambda record, value: (_of_eval(record, "needles", 1) > 1) == value,
    ),
)


def chosen(experiment: str, results: Path) -> tuple[list[Record], str, list[str]]:
    """The records of an experiment by model, in the order of its sweep; the evaluation that it names; what is left out.

    Where it has none of its evaluation, what stands in for it does. Raises `UserError` where there is nothing.
    """
    evaluation = settings_of(experiment, None)[0]["eval"]["name"]
    usable: list[Record] = []
    faults: dict[Record, list[str]] = {}
    for whole in records(results):
        record, left_out = sound(whole) if whole.summary else (whole, [])
        if record.covered and record.summary:
            usable.append(record)
            faults[record] = left_out
    for name in dict.fromkeys([evaluation, STAND_IN.get(evaluation, evaluation)]):
        found: list[Record] = []
        of_evaluation = [record for record in usable if record.eval == name]
        for model in sorted({record.model for record in of_evaluation}):
            of_model = [record for record in of_evaluation if record.model == model]
            standing_in = [f"eval={name}"] if name != evaluation else []
            found += _of_experiment(of_model, settings_of(experiment, model, *standing_in))
        if found:
            return found, evaluation, [fault for record in found for fault in faults[record]]
    raise nothing(experiment, results / "runs")


def nothing(experiment: str, place: Path) -> UserError:
    """That an experiment has no results at `place`."""
    return UserError(
        "experiment",
        f"run `python run.py -m experiment={experiment}` first, or name the tree with results=",
        value=experiment,
        why=f"{place} has none of its results",
    )


def settings_of(experiment: str, model: str | None, *overrides: str) -> list[dict[str, Any]]:
    """The configurations that an experiment sweeps over, as far as they matter, for a model of `conf/model`."""
    known = model is not None and (CONF / "model" / f"{model}.yaml").exists()
    of_model = [f"model={model}"] if known else []
    return sweep(f"experiment={experiment}", *of_model, *overrides, only=VARYING)


def _of_experiment(of_model: Sequence[Record], configs: Sequence[dict[str, Any]]) -> list[Record]:
    """The records of a model that agree with one of `configs`, in their order.

    They have its method and whatever else is swept; where that is the number of heads, any number. What is not swept,
    such as the observation, singles out those that have it as the experiment does, where there are any: the command
    line may have set another.
    """
    swept = [trait for trait in TRAITS if len({repr(trait.setting(config)) for config in configs}) > 1]
    scorers = [config["method"].get("scorer") or {} for config in configs]
    heads = {scorer["heads"] for scorer in scorers if "heads" in scorer}
    same = same_but_heads if len(heads) > 1 else same_method
    places: dict[Record, int] = {}
    for record in of_model:
        for place, config in enumerate(configs):
            if same(record, config["method"]) and all(trait.shared(record, config) for trait in swept):
                places.setdefault(record, place)
    found = sorted(places, key=lambda record: (places[record], selecting_heads(record) or 0))
    for trait in TRAITS:
        usual = [record for record in found if trait.shared(record, configs[places[record]])]
        found = usual or found
    return found


def same_method(record: Record, node: Mapping[str, Any]) -> bool:
    """Whether a result's method is that of a `method` node, parameters and all, with as many heads as it stands for."""
    if not same_but_heads(record, node):
        return False
    wanted, selected = _heads(node), selecting_heads(record)
    number = None if selected is None else number_of_heads(record, wanted)
    return wanted == _heads(record.config["method"]) if number is None else selected == number


def same_but_heads(record: Record, node: Mapping[str, Any]) -> bool:
    """Whether a result's method is that of a `method` node, however many heads of a layer select."""
    mine = record.config.get("method")
    alike = isinstance(mine, dict) and _without_heads(mine) == _without_heads(node)
    return alike and method_config(node).name == record.method


def _heads(node: Mapping[str, Any]) -> Heads:
    return (node.get("scorer") or {}).get("heads")


def _without_heads(node: Mapping[str, Any]) -> dict[str, Any]:
    parts = {key: value for key, value in node.items() if key != "plain"}
    if isinstance(parts.get("scorer"), Mapping):
        parts["scorer"] = {key: value for key, value in parts["scorer"].items() if key != "heads"}
    return parts


def number_of_heads(record: Record, setting: Heads) -> int | None:
    """How many heads of a layer this `setting` stands for, by the calibration that the record names, if it is there."""
    if isinstance(setting, int):
        return setting
    try:
        protocol = checked("protocol", EvaluationProtocol, record.config["protocol"])
        made = calibration.choose(record.model, record.config["calibration"], protocol)
    except (UserError, KeyError):
        return None
    return count_heads(setting, made, made.q_heads) if made else None


def default_setting() -> Heads:
    """The setting of heads that method=compresskv has."""
    scorer = named_method("compresskv").scorer
    assert scorer is not None
    return cast(Heads, scorer.parameters["heads"])


def default_heads(records: Sequence[Record]) -> list[str]:
    """A sentence for each protocol of a model's records: how many heads of a layer select where none are set."""
    defaults = {record.protocol: heads for record in records if (heads := number_of_heads(record, default_setting()))}
    return [
        f"{records[0].model}, protocol={protocol}: by default, top-{heads} heads select."
        for protocol, heads in defaults.items()
    ]
