"""Results trees of experiments, as their runs leave them, without a model."""

from compresskv.methods import method_config
from evals.compose import sweep
from evals.results.finish import finish
from evals.results.schema import NAMED
from evals.results.store import SampleStore
from tests.results.trees import about, line


def nodes(experiment):
    """The method nodes of an experiment by the name that results have."""
    configs = sweep(f"experiment={experiment}", only="method")
    return {method_config(config["method"]).name: config["method"] for config in configs}


def needles(scores, **fields):
    """Lines of two prompt lengths: ids with the scores, in turn."""
    lines = []
    for place, score in enumerate(scores):
        length, depth = (1000, 2000)[place % 2], 50.0 * (place // 2)
        lines.append(line(f"L{length}-D{depth:g}-N0", score, length=length, depth=depth, **fields))
    return lines


def setting(
    results,
    experiment,
    method,
    lines,
    budget=64,
    model="tiny",
    protocol="corrected",
    node=None,
    digest="abcd1234",
    of_config=None,
    **fields,
):
    """A finished setting of a method of an experiment, as its run leaves it."""
    budget = None if method == "full" else budget
    content = about(method, budget, model=model, protocol=protocol, **fields)
    content["config"] |= {"model": {"name": model}, "protocol": {"name": protocol}}
    content["config"]["method"] = nodes(experiment)[method] if node is None else node
    content["config"]["eval"] = {"name": content["eval"], **content.pop("of_eval", {})}
    content["config"] |= of_config or {}
    runs = results / "runs"
    parts = [content[name] for name in NAMED[:-1]]
    store = SampleStore(runs.joinpath(*parts, f"{'none' if budget is None else budget}-{digest}"))
    for of_sample in lines:
        store.append(of_sample)
    record = finish(store, [of_sample["id"] for of_sample in lines], content, runs)
    store.close()
    return record
