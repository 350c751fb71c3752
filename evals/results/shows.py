"""What the evaluation of a record shows of it: the module `tables` beside the module of its class.

A plug-in of a single module may have the same functions beside its class. All of them are optional:

- `tables(records, asked) -> list[Table]`: of one model, the score first; default: `evals.results.means.tables`.
- `texts(records) -> list[Texts]`: what the terminal and the page show instead of these tables.
- `appendix(records, asked) -> list[Texts]`: tables that follow them; default: `evals.results.tails.tails`.
- `figure(table)`: what a run ends with, beside its tables; `notes(records, tables)`: sentences below them.
- `FIELDS`: a `TypedDict` of what these functions read of a sample's line; a line with another type is left out.
- `reduced(task, line)`: the fields that they need, for a reader of many settings; default: those of `FIELDS`.
- `traits(eval)`: what of its configuration tells apart the runs of different experiments.
- `browsed(line, prompt)`: what the page shows of a sample beside what every sample has.
- `SECTION`: where the page shows it (`Section`), and `panels(table)`: its heatmaps there.
- `shown(results, methods) -> Shown`, `sections(results, models)`, `files(results)`: of an evaluation that measures by
  itself, from the files that it left in a results tree.
"""

import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from evals.kinds import targets
from evals.results import means
from evals.results.record import Record
from evals.results.schema import Line, SampleLine, misfit


def hook(kind: str, name: str, default: Any = None) -> Any:
    """What the evaluation `kind` (`Record.kind`) has by that name; else what every evaluation has; else `default`."""
    for module in (*_modules(kind), means):
        if hasattr(module, name):
            return getattr(module, name)
    return default


def hooks(name: str) -> Iterator[tuple[str, Any]]:
    """The evaluations of `conf/eval` that have this, with what they have."""
    for kind in targets():
        if (found := hook(kind, name)) is not None:
            yield kind, found


@cache
def _modules(kind: str) -> list[ModuleType]:
    module = targets().get(kind, kind).rpartition(".")[0]
    package = module.rpartition(".")[0]
    if not all(part.isidentifier() for part in module.split(".")) or not _installed(module.partition(".")[0]):
        return []
    for name in filter(None, (package and f"{package}.tables", module)):
        try:
            return [import_module(name)]
        except (Exception, SystemExit):  # an evaluation that is not installed here, or does not run here
            continue
    return []


def _installed(name: str) -> bool:
    """Whether a name in results may be imported. A folder without code of its own may be a results tree of others."""
    if not name or name in sys.stdlib_module_names:
        return False
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def sound(record: Record) -> tuple[Record, list[str]]:
    """The setting on its sound samples, and a phrase for whatever of its files is left out."""
    faults = [f"samples.jsonl:{number}: {fault}" for number, fault in record.line_faults.items()]
    if record.config_fault:
        faults.append(f"its configuration is not one ({record.config_fault})")
    fields = hook(record.kind, "FIELDS")
    wrong = {line["id"]: fault for line in record.covered if (fault := misfit(fields, line))} if fields else {}
    wrong |= {line["id"]: "no score" for line in record.covered if "score" not in line and record.scored}
    faults += [f"sample {id}: {fault}" for id, fault in wrong.items()]
    if wrong:
        record = record.only([line["id"] for line in record.covered if line["id"] not in wrong])
    return record, [f"{record.name}: {fault}" for fault in faults]


def own_fields(line: Line) -> Line:
    """What a line has beside the fields of every evaluation, and beside its scores."""
    known = SampleLine.__annotations__
    return {name: value for name, value in line.items() if name not in known and not name.startswith("score")}
