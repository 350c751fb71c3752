"""Look up how an evaluation shows its results: functions in the module `tables` next to the module of its class.

A plug-in that is a single module may define these functions next to its class. All functions are optional:

- `tables(records, asked) -> list[Table]`: tables of one model, score first; default: `evals.results.means.tables`.
- `texts(records) -> list[Texts]`: tables of text that the terminal and the page show instead of `tables`.
- `appendix(records, asked) -> list[Texts]`: tables that follow them; default: `evals.results.tails.tails`.
- `figure(table)`: the figure drawn at the end of a run; `notes(records, tables)`: sentences below the tables.
- `FIELDS`: a `TypedDict` of the fields of a line that these functions read; a line with another type is left out.
- `reduced(task, line)`: the fields of a line to keep when many settings are read; default: the fields in `FIELDS`.
- `traits(eval)`: the parts of its configuration that distinguish the runs of different experiments.
- `browsed(line, prompt)`: additional fields of a sample that the page shows.
- `SECTION`: its `Section` of the page; `panels(table)`: the heatmaps there.
- `shown(results, methods) -> Shown`, `sections(results, models)`, `files(results)`: for an evaluation without samples,
  made from the files that it wrote to a results tree.
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
    """Return the object `name` of the evaluation `kind` (`Record.kind`), else the object in `means`, else `default`."""
    for module in (*_modules(kind), means):
        if hasattr(module, name):
            return getattr(module, name)
    return default


def hooks(name: str) -> Iterator[tuple[str, Any]]:
    """Yield each evaluation of `conf/eval` that has the hook `name`, with the hook."""
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
        except (Exception, SystemExit):  # the evaluation is not installed here or cannot be imported
            continue
    return []


def _installed(name: str) -> bool:
    """Return whether a module name found in results may be imported.

    Modules of the standard library and folders without `__init__.py` may not: such a folder can be a results tree.
    """
    if not name or name in sys.stdlib_module_names:
        return False
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def sound(record: Record) -> tuple[Record, list[str]]:
    """Return the setting restricted to its valid samples, and descriptions of what is left out of its files."""
    faults = [f"samples.jsonl:{number}: {fault}" for number, fault in record.line_faults.items()]
    if record.config_fault:
        faults.append(f"its configuration is not valid ({record.config_fault})")
    fields = hook(record.kind, "FIELDS")
    wrong = {line["id"]: fault for line in record.covered if (fault := misfit(fields, line))} if fields else {}
    wrong |= {line["id"]: "no score" for line in record.covered if "score" not in line and record.scored}
    faults += [f"sample {id}: {fault}" for id, fault in wrong.items()]
    if wrong:
        record = record.only([line["id"] for line in record.covered if line["id"] not in wrong])
    return record, [f"{record.name}: {fault}" for fault in faults]


def own_fields(line: Line) -> Line:
    """Return the fields of a line that only its evaluation has, without its scores."""
    known = SampleLine.__annotations__
    return {name: value for name, value in line.items() if name not in known and not name.startswith("score")}
