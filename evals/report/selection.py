"""Select the results of an experiment: the settings that it would run, on any model and at any budget."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compresskv import calibration
from compresskv.checking import checked
from compresskv.errors import UserError
from compresskv.folders import CONF
from compresskv.methods import method_config
from compresskv.protocol import EvaluationProtocol
from compresskv.schedule import once
from compresskv.selecting_heads import Heads, count_heads
from evals.compose import axes, sweep
from evals.experiments import ITEMS, calibration_of, selecting_heads, usual_heads
from evals.kinds import kind_of
from evals.results.record import Record, records
from evals.results.schema import experiments_of
from evals.results.shows import hook, sound
from evals.tables.methods import place_of

VARYING = ("method", "observation", "eviction", "calibration", "eval.")
"""Swept settings that a result must share with the experiment. Models, budgets and protocols may differ."""

Traits = Mapping[str, Any]
"""Values by name that distinguish results of the same method."""


def chosen(experiment: str, results: Path) -> tuple[list[Record], str, list[str]]:
    """Return the records of an experiment, the evaluation that it names, and the faults of files.

    Records are grouped by model, in the order of the experiment's sweep. If the evaluation has no results, its results
    at size=smoke are used. A result belongs to the experiment if its configuration names the experiment, or, since
    experiments share settings, if the experiment would run the same setting. Raises `UserError` if there are no
    results.
    """
    usable: dict[Record, list[str]] = {}
    for whole in records(results):
        record, left_out = sound(whole) if whole.summary else (whole, [])
        if record.covered and record.summary:
            usable[record] = left_out
    if experiment not in ITEMS:
        found = [record for record in usable if experiment in experiments_of(record.config)]
        found.sort(key=lambda record: (record.model, place_of(record.method)))
        if found:
            return found, found[0].eval, [fault for record in found for fault in usable[record]]
        raise UserError(
            "experiment",
            f"choose one of {', '.join(ITEMS)}, or one that was run",
            value=experiment,
            why="it has no artefacts made from results",
        )
    evaluation = settings_of(experiment, None)[0]["eval"]["name"]
    for name in _evaluations(experiment, evaluation):
        found = []
        of_evaluation = [record for record in usable if record.eval == name]
        for model in sorted({record.model for record in of_evaluation}):
            of_model = [record for record in of_evaluation if record.model == model]
            standing_in = [f"eval={name}"] if name != evaluation else []
            found += _of_experiment(experiment, of_model, settings_of(experiment, model, *standing_in))
        if found:
            return found, evaluation, [fault for record in found for fault in usable[record]]
    raise nothing(experiment, results / "runs")


def _evaluations(experiment: str, evaluation: str) -> Iterator[str]:
    """Yield the evaluation of an experiment, then its evaluations at size=smoke."""
    yield evaluation
    yield from axes(f"experiment={experiment}", "+size=smoke").get("eval", [])


def nothing(experiment: str, place: Path) -> UserError:
    """Return the error for an experiment without results at `place`."""
    return UserError(
        "experiment",
        f"run `python run.py -m experiment={experiment}` first, or name the tree with results=",
        value=experiment,
        why=f"{place} has none of its results",
    )


def settings_of(experiment: str, model: str | None, *overrides: str) -> list[dict[str, Any]]:
    """Return the `VARYING` parts of all configurations of an experiment's sweep, for a model of `conf/model`."""
    known = model is not None and (CONF / "model" / f"{model}.yaml").exists()
    of_model = [f"model={model}"] if known else []
    return sweep(f"experiment={experiment}", *of_model, *overrides, only=VARYING)


def _of_experiment(experiment: str, of_model: Sequence[Record], configs: Sequence[dict[str, Any]]) -> list[Record]:
    """Return the records of a model that match one of `configs`, in their order, then others that name the experiment.

    A match has the same method and the same swept settings. If the experiment sweeps the number of heads, any number
    matches. Settings that are not swept, such as the observation, narrow the matches only if some record has the
    experiment's value, since the command line may have set another one.
    """
    of_configs = [_traits_of(config) for config in configs]
    swept = [name for name in of_configs[0] if len({repr(traits[name]) for traits in of_configs}) > 1]
    scorers = [config["method"].get("scorer") or {} for config in configs]
    heads = {scorer["heads"] for scorer in scorers if "heads" in scorer}
    same = same_but_heads if len(heads) > 1 else same_method
    places: dict[Record, int] = {}
    for record in of_model:
        for place, (config, traits) in enumerate(zip(configs, of_configs, strict=True)):
            if same(record, config["method"]) and all(_shared(record, name, traits[name]) for name in (*swept, "when")):
                places.setdefault(record, place)
    found = sorted(places, key=lambda record: (places[record], selecting_heads(record) or 0))
    for name in of_configs[0]:
        usual = [record for record in found if _shared(record, name, of_configs[places[record]][name])]
        found = usual or found
    named = [record for record in of_model if experiment in experiments_of(record.config) and record not in found]
    return found + named


def _traits_of(config: Mapping[str, Any]) -> Traits:
    """Return the traits of a configuration."""
    of_eval = hook(kind_of(config["eval"]["_target_"]), "traits", lambda of_eval: {})(config["eval"])
    settings = {"observation": config["observation"], "calibration": config["calibration"]}
    return {**settings, "when": config["eviction"]["when"], **of_eval}


def _shared(record: Record, name: str, value: Any) -> bool:
    """Return whether a record has this trait."""
    if name == "observation":
        return record.config.get("observation") == value
    if name == "when":
        return record.when == (once(value) if record.budget is None else value)
    if name == "calibration":
        return calibration_of(record) == calibration_of(record, value)
    return hook(record.kind, "traits", lambda of_eval: {})(record.config.get("eval", {})).get(name) == value


def same_method(record: Record, node: Mapping[str, Any]) -> bool:
    """Return whether a result's method equals a `method` node, including its parameters and its number of heads."""
    if not same_but_heads(record, node):
        return False
    wanted, selected = _heads(node), selecting_heads(record)
    number = None if selected is None else number_of_heads(record, wanted)
    return wanted == _heads(record.config["method"]) if number is None else selected == number


def same_but_heads(record: Record, node: Mapping[str, Any]) -> bool:
    """Return whether a result's method equals a `method` node, ignoring how many heads of a layer select."""
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
    """Return how many heads of a layer `setting` selects; None if that needs a calibration that is not found."""
    if isinstance(setting, int):
        return setting
    try:
        protocol = checked("protocol", EvaluationProtocol, record.config["protocol"])
        made = calibration.choose(record.model, record.config["calibration"], protocol)
    except (UserError, KeyError):
        return None
    return count_heads(setting, made, made.q_heads) if made else None


def default_heads(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each protocol of a model's records: how many heads of a layer select by default."""
    usual = usual_heads()
    defaults = {record.protocol: heads for record in records if (heads := number_of_heads(record, usual))}
    return [
        f"{records[0].model}, protocol={protocol}: by default, top-{heads} heads select."
        for protocol, heads in defaults.items()
    ]
