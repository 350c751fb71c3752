"""Select the results of an experiment: the settings that it would run, on any model and at any budget."""

from collections.abc import Iterable, Mapping, Sequence
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
from evals.compose import axes, composed, sweep
from evals.experiments import ITEMS, calibration_of, selecting_heads, usual_heads
from evals.kinds import kind_of
from evals.results.record import Record, records
from evals.results.schema import experiments_of
from evals.results.shows import hook, sound
from evals.tables.methods import place_of

VARYING = ("method", "observation", "eviction", "calibration", "eval.")
"""Swept settings that a result must share with the experiment. Models, budgets and protocols may differ."""


def chosen(experiment: str, results: Path) -> tuple[list[Record], str, list[str]]:
    """Return the records of an experiment, the evaluation that it names, and the faults of files.

    Records are grouped by model, in the order of the experiment's sweep. If the evaluation has no results, its results
    at size=smoke are used. Raises `UserError` if there are no results.
    """
    usable: dict[Record, list[str]] = {}
    for whole in records(results):
        record, left_out = sound(whole) if whole.summary else (whole, [])
        if record.covered and record.summary:
            usable[record] = left_out
    found: list[Record] = []
    if experiment in ITEMS:
        swept = axes(f"experiment={experiment}").get("eval")
        evaluation = swept[0] if swept else composed(f"experiment={experiment}")["eval"]["name"]
        for name in (evaluation, *axes(f"experiment={experiment}", "+size=smoke").get("eval", [])):
            of_evaluation = [record for record in usable if record.eval == name]
            standing_in = [f"eval={name}"] if name != evaluation else []
            for model in sorted({record.model for record in of_evaluation}):
                of_model = [record for record in of_evaluation if record.model == model]
                found += _of_experiment(experiment, of_model, settings_of(experiment, model, *standing_in))
            if found:
                break
        else:
            raise nothing(experiment, results / "runs")
    else:
        found = [record for record in usable if experiment in experiments_of(record.config)]
        found.sort(key=lambda record: (record.model, place_of(record.method)))
        if not found:
            raise UserError(
                "experiment",
                f"choose one of {', '.join(ITEMS)}, or an experiment that was run",
                value=experiment,
                why="it has no artefacts made from results",
            )
        evaluation = found[0].eval
    return found, evaluation, [fault for record in found for fault in usable[record]]


def nothing(experiment: str, place: Path) -> UserError:
    """Return the error for an experiment without results at `place`."""
    return UserError(
        "experiment",
        f"run `python run.py -m experiment={experiment}` first, or name the tree with results=",
        value=experiment,
        why=f"{place} has no results of this experiment",
    )


def settings_of(experiment: str, model: str | None, *overrides: str) -> list[dict[str, Any]]:
    """Return the `VARYING` parts of all configurations of an experiment's sweep, for a model of `conf/model`."""
    known = model is not None and (CONF / "model" / f"{model}.yaml").exists()
    of_model = [f"model={model}"] if known else []
    return sweep(f"experiment={experiment}", *of_model, *overrides, only=VARYING)


def _of_experiment(experiment: str, of_model: Sequence[Record], configs: Sequence[dict[str, Any]]) -> list[Record]:
    """Return the records of a model that belong to an experiment, in the order of its sweep, `configs`.

    Runs store the name of their experiment. Other records belong to the experiment if their method and swept settings
    equal one of `configs`, and their other settings equal a run that stores the name. If no run does, as in trees of
    older versions, the values of settings that are not swept narrow the records only if some record has them, since the
    command line may have set others. If the experiment sweeps the number of heads, any number matches.
    """
    of_configs = [_traits(config) for config in configs]
    swept = [name for name in of_configs[0] if len({repr(traits[name]) for traits in of_configs}) > 1]
    heads = {scorer["heads"] for config in configs if "heads" in (scorer := config["method"].get("scorer") or {})}
    same = same_but_heads if len(heads) > 1 else same_method
    places: dict[Record, int] = {}
    for record in of_model:
        for place, config in enumerate(configs):
            if same(record, config["method"]) and _agree(record, config, (*swept, "eviction")):
                places.setdefault(record, place)
    found = sorted(places, key=lambda record: (places[record], selecting_heads(record) or 0))
    if named := [record for record in of_model if experiment in experiments_of(record.config)]:
        budgets = {None, *(record.budget for record in named)}
        alike = [_rest(record, swept) for record in named]
        found = [r for r in found if r in named or (r.budget in budgets and _rest(r, swept) in alike)]
        return found + [record for record in named if record not in found]
    for name in of_configs[0]:
        found = [record for record in found if _agree(record, configs[places[record]], [name])] or found
    return found


def _traits(config: Mapping[str, Any], record: Record | None = None) -> dict[str, Any]:
    """Return the values that distinguish settings of the same method; for a `record`, as its model and budget use
    them."""
    eviction, calibrated = config.get("eviction") or {}, config.get("calibration", "auto")
    when = eviction.get("when", "prompt")
    if record:
        when = once(when) if record.budget is None else when
        calibrated = calibration_of(record, calibrated)
    of_eval = config.get("eval") or {}
    kind = record.kind if record else kind_of(of_eval["_target_"])
    return {
        "observation": config.get("observation"),
        "calibration": calibrated,
        "eviction": (when, eviction.get("interval"), eviction.get("protect")) if when != once(when) else when,
        **hook(kind, "traits", lambda of_eval: {})(of_eval),
    }


def _agree(record: Record, config: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Return whether a record has these traits of a configuration."""
    mine, asked = _traits(record.config, record), _traits(config, record)
    return all(mine[name] == asked[name] for name in names)


def _rest(record: Record, swept: Iterable[str]) -> dict[str, Any]:
    """Return the parts of a record's configuration that an experiment sets without sweeping over them."""
    traits = {name if name in record.config else "eval" for name in swept}
    apart = {"experiment", "method", "budget", "eviction", *traits}
    return {name: value for name, value in record.config.items() if name not in apart}


def same_method(record: Record, node: Mapping[str, Any]) -> bool:
    """Return whether a result's method equals a `method` node, including its parameters and its number of heads."""
    if not same_but_heads(record, node):
        return False
    wanted, own = ((of.get("scorer") or {}).get("heads") for of in (node, record.config["method"]))
    selected = selecting_heads(record)
    number = None if selected is None else number_of_heads(record, wanted)
    return wanted == own if number is None else selected == number


def same_but_heads(record: Record, node: Mapping[str, Any]) -> bool:
    """Return whether a result's method equals a `method` node, ignoring how many heads of a layer select."""
    mine = record.config.get("method")
    alike = isinstance(mine, dict) and _without_heads(mine) == _without_heads(node)
    return alike and method_config(node).name == record.method


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
