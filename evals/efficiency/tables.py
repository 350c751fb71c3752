"""Tables from efficiency.json: latency and memory by prompt length, and sequences in memory pools."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Required

from typing_extensions import TypedDict

from compresskv.budget import budget_from, largest_first
from compresskv.checking import Ge, Gt, Le, MinLen
from evals.files import loads
from evals.results.means import Cells, filled
from evals.results.provenance import shown_environment
from evals.results.schema import LARGEST, Bounds, Budget, Count, Label, Number, Size, exactly, misfit
from evals.tables import text
from evals.tables.methods import METHODS, Name, named
from evals.tables.table import Block, Cell, Metric, Section, Shown, Table, Texts
from evals.tables.table import Row as TableRow


@dataclass(frozen=True)
class Measured(Metric):
    """A field of a row. `title`: of its table; `head`: of its text column; "" if it has no table or column."""

    better: Literal["higher", "lower"] | None = "lower"
    head: str = ""
    of: Callable[[float], float] = float


def megabytes(size: float) -> float:
    return size / 1e6


def per_second(milliseconds: float) -> float:
    return 1000 / milliseconds


MEASURED = (
    Measured("total_s", "latency, end to end (s)", 3, head="total s"),
    Measured("first_token_s", "prefill latency, to the first token (s)", 3, head="first token s"),
    Measured("decode_ms", "decode (ms a token)", head="decode ms"),
    Measured("decode_ms", "decode throughput (tokens a second)", better="higher", of=per_second),
    Measured("cache_bytes", "KV cache (MB)", head="cache MB", of=megabytes),
    Measured("total_cache_bytes", head="with sliding layers", of=megabytes),
    Measured("realised_budget"),
    Measured("peak_bytes", "peak memory (MB)", 1, head="peak MB", of=megabytes),
)
"""All fields with medians, ratios to the full cache, and values by round."""

FIELDS = tuple(dict.fromkeys(measured.field for measured in MEASURED))

POOL = (
    *("setting", "length", "new tokens", "pool MB", "sequences", "MB each", "tokens/s", "95 % of steps"),
    *("tokens/s, one sequence", "first token s", "all first tokens s", "peak MB"),
)

POOLS = (
    "A pool of KV memory is filled with sequences that decode as one batch. Their prompts are distinct and have about "
    "the given length; "
    "× is the ratio to the full cache in the same pool, and 95 % of the decode steps are within the bounds."
)

LAUNCHES = "* bound by launches: the GPU waits for the host"

MASKED = (
    "sdpa on CUDA decodes a single row of the full cache on few of the GPU's processors, so ratios to the full cache "
    "make eviction look better than it is: use model.backend=varlen"
)

Run = Mapping[str, Any]
"""The content of efficiency.json."""


@exactly
class Place(TypedDict, total=False):
    """A setting at a prompt length."""

    setting: Required[Label]
    length: Required[Annotated[int, Ge(1), Le(LARGEST)]]
    method: Label
    budget: Budget
    protocol: Label
    variant: str  # absent in older versions, where `setting` includes it
    when: Label  # when it evicts; absent in older versions, which evict after the prompt


@exactly
class Row(Place, total=False):
    """Medians over the rounds, and their ratios to the full cache."""

    first_token_s: Size | None
    decode_ms: Size | None
    total_s: Size | None
    cache_bytes: Size | None
    peak_bytes: Size | None
    total_cache_bytes: Size | None
    realised_budget: Size | None
    first_token_s_ratio: Size | None
    decode_ms_ratio: Size | None
    total_s_ratio: Size | None
    cache_bytes_ratio: Size | None
    peak_bytes_ratio: Size | None
    launch_bound: bool | None
    by_round: dict[str, list[Number | None]]


@exactly
class Pool(Place, total=False):
    """The sequences of a memory pool. With 0 `sequences`, the setting does not fit."""

    new_tokens: Count  # of each sequence; absent in older versions, where all sequences have the file's `new_tokens`
    pool_mb: Required[Annotated[float, Gt(0), Le(LARGEST)]]
    sequences: Required[Count]
    sequence_bytes: Required[Annotated[float, Gt(0), Le(LARGEST)]]
    tokens_per_s_alone: Required[Size]
    tokens_per_s: Required[Size | None]
    tokens_per_s_spread: Required[Bounds]
    tokens_per_s_ratio: Size | None
    first_token_s: Required[Size | None]
    all_first_tokens_s: Required[Size | None]
    peak_bytes: Required[Size | None]
    launch_bound: Required[bool | None]


@exactly
class FilledPool(Pool, total=False):
    """A pool that holds at least one sequence."""

    tokens_per_s: Required[Size]  # type: ignore[misc]
    tokens_per_s_spread: Required[Annotated[list[Size], MinLen(2)]]  # type: ignore[misc]


@exactly
class Efficiency(TypedDict, total=False):
    """The content of efficiency.json. The items of `rows` and `concurrency` are checked one by one."""

    model: Required[Label]
    dtype: Required[str]
    backend: Required[str]
    device: str  # "cpu" or "cuda"; absent in files of older versions, as `graphs` is
    graphs: bool  # whether decode steps were replayed as CUDA graphs if the cache allowed it
    new_tokens: Required[Count]
    rounds: Required[Count]
    environment: dict[str, Any]
    rows: Required[list[Any]]
    concurrency: list[Any]


def files(results: Path) -> list[tuple[Path, str]]:
    """Return the measurements under `results` with their models, from old to new for each model."""
    return [(path, path.parents[1].name) for path in sorted(results.glob("efficiency/*/*/efficiency.json"))]


def runs(results: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """Return the measurements under `results` with their valid rows, and a phrase for each row or file left out."""
    found, faults = [], []
    for path, _ in files(results):
        place = path.relative_to(results)
        try:
            content = loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            faults.append(f"{place}: cannot be read ({error})")
            continue
        if fault := misfit(Efficiency, content):
            faults.append(f"{place}: not a measurement ({fault})")
            continue
        for name, wrong_with in (("rows", partial(misfit, Row)), ("concurrency", _misfit_pool)):
            wrong = list(map(wrong_with, rows := content.get(name, [])))
            faults += [f"{place}: {name}.{number} is left out ({fault})" for number, fault in enumerate(wrong) if fault]
            content[name] = [row for row, fault in zip(rows, wrong, strict=True) if not fault]
        found.append((path, content))
    return found, faults


def _misfit_pool(row: Any) -> str:
    return misfit(Pool, row) or (misfit(FilledPool, row) if row["sequences"] else "")


def method_of(row: Mapping[str, Any]) -> str:
    """Return the method's name in configurations."""
    return str(row.get("method") or row["setting"].split(",")[0].split(" ")[0])


def name_of(row: Mapping[str, Any], marked: bool = False) -> Name:
    """Return the name of a row's setting. Older versions stored only a text, such as `compresskv 256`."""
    method, protocol = method_of(row), str(row.get("protocol", "corrected"))
    number = row["setting"].split(",")[0].partition(" ")[2].partition(" ")[0]
    budget = row["budget"] if "budget" in row else int(number) if number.isdecimal() else None
    budget = None if budget is None else budget_from(budget)
    if (variant := row.get("variant")) is None:
        rest = row["setting"].removeprefix(f"{method} {budget}" if budget else method).strip(" ,")
        variant = rest.removeprefix(f"({protocol})").strip(" ,")
    return Name(named(method), budget, protocol, variant, marked, row.get("when", "prompt"))


def names(rows: Sequence[Mapping[str, Any]]) -> list[Name]:
    marked = len({row.get("protocol") for row in rows}) > 1
    return [name_of(row, marked) for row in rows]


def latency(run: Run) -> Texts:
    """Return a table with a row for every setting and prompt length; × is the ratio to the full cache."""
    rows = run["rows"]
    hybrid = any(row.get("total_cache_bytes") != row.get("cache_bytes") for row in rows if "total_cache_bytes" in row)
    shown = [each for each in MEASURED if each.head and (hybrid or each.field != "total_cache_bytes")]
    body = []
    for row, name in zip(rows, names(rows), strict=True):
        cells = []
        for measured in shown:
            value, ratio = row.get(measured.field), row.get(f"{measured.field}_ratio")
            mark = "*" if measured.field == "decode_ms" and row.get("launch_bound") else ""
            cell = text.NONE if value is None else f"{measured.of(value):.2f}{mark}"
            cells.append(f"{cell} ×{ratio:.2f}" if ratio else cell)
        body.append([str(name), str(row["length"]), *cells])
    title = f"{run['model']} · {run['new_tokens']} new tokens · {run['dtype']} · {_kernel(run)}"
    return Texts(title, ["setting", "length", *(each.head for each in shown)], body, _caption(run, rows))


def pools(run: Run) -> Texts:
    """Return a table with a row for every setting, prompt length, output length and pool; × is as in `latency`."""
    rows = [{"new_tokens": run["new_tokens"], **row} for row in run.get("concurrency", [])]
    body = [_pool(row, name) for row, name in zip(rows, names(rows), strict=True)]
    return Texts(f"{run['model']}, sequences that decode together", POOL, body, _caption(run, rows))


def _pool(row: Mapping[str, Any], name: Name) -> list[str]:
    place = [str(name), *(str(row[field]) for field in ("length", "new_tokens", "pool_mb"))]
    each, alone = text.megabytes(row["sequence_bytes"], 1), text.number(row["tokens_per_s_alone"], 1)
    if not row["sequences"]:
        return [*place, "0: does not fit", each, text.NONE, text.NONE, alone, *[text.NONE] * 3]
    ratio = row.get("tokens_per_s_ratio")
    mark = ("*" if row["launch_bound"] else "") + (f" ×{ratio:.2f}" if ratio else "")
    speed = [text.number(row["tokens_per_s"], 1) + mark, text.bounds(row["tokens_per_s_spread"], 2, "{} to {}"), alone]
    seconds = [text.number(row["first_token_s"]), text.number(row["all_first_tokens_s"])]
    return [*place, str(row["sequences"]), each, *speed, *seconds, text.megabytes(row["peak_bytes"] or None, 1)]


def _kernel(run: Run) -> str:
    return run["backend"] + (" with CUDA graphs" if run.get("graphs") else "")


def _caption(run: Run, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what a reader must know about the times: steps bound by launches, and a slow kernel for the full cache."""
    bound = any(row.get("launch_bound") for row in rows)
    masked = run.get("device") == "cuda" and run["backend"] == "sdpa"
    return ". ".join(([LAUNCHES] if bound else []) + ([MASKED] if masked else []))


def tables(run: Run, methods: Sequence[str] = ()) -> list[Table]:
    """Return a table for each of `MEASURED` with a title, of these `methods` (empty: all): means by prompt length."""
    order = ["full", *(methods or METHODS)]
    by_name: dict[Name, list[Mapping[str, Any]]] = {}
    for row, name in zip(run["rows"], names(run["rows"]), strict=True):
        if not methods or method_of(row) in order:
            by_name.setdefault(name, []).append(row)
    order += [method for (row, *_) in by_name.values() if (method := method_of(row)) not in order]
    found = sorted(by_name, key=lambda name: (largest_first(name.budget), order.index(method_of(by_name[name][0]))))
    xs = {text.tokens(length): float(length) for length in sorted({row["length"] for row in run["rows"]})}
    shown = []
    for measured in MEASURED:
        by_column = [_cells(by_name[name], measured) for name in found]
        columns = [column for column in xs if any(column in cells for cells in by_column)]
        if measured.title and columns:
            rows = filled([TableRow(name) for name in found], by_column, measured)
            about: dict[str, Any] = {"average": "", "xs": xs, "axis": "prompt (tokens)"}
            shown.append(Table(run["model"], "efficiency", columns, rows, measured, **about))
    return shown


def _cells(rows: Sequence[Mapping[str, Any]], measured: Measured) -> Cells:
    """Return a cell with the values of all rounds per prompt length. Older versions stored only medians."""
    cells: Cells = {}
    for row in rows:
        values = row.get("by_round", {}).get(measured.field, [row.get(measured.field)])
        there = {(f"round {place}", ""): measured.of(value) for place, value in enumerate(values) if value}
        if there:
            cells[text.tokens(row["length"])] = Cell({"rounds": there})
    return cells


def speeds(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, list[tuple[float, float]]]]:
    """Return sorted (MB of the pool, tokens/s) by prompt length and setting; the first pool holds one sequence."""
    points: dict[int, dict[str, dict[float, float]]] = {}
    for row, name in zip(rows, names(rows), strict=True):
        alone = {row["sequence_bytes"] / 1e6: row["tokens_per_s_alone"]}
        of_setting = points.setdefault(row["length"], {}).setdefault(str(name), alone)
        if row["sequences"]:
            of_setting[row["pool_mb"]] = row["tokens_per_s"]
    return {
        length: {setting: sorted(of.items()) for setting, of in points[length].items()} for length in sorted(points)
    }


def shown(results: Path, methods: Sequence[str]) -> Shown:
    """Return each model's latest measurement that has all `methods`, else its latest measurement with any of
    `methods`."""
    found, faults = runs(results)
    by_model: dict[str, list[Run]] = {}
    for _, run in reversed(found):
        by_model.setdefault(run["model"], []).extend([run] if run["rows"] else [])
    of_models: list[Table] = []
    texts: list[Texts] = []
    notes: list[str] = []
    figures: dict[str, Callable[[], Any]] = {}
    for model in sorted(by_model):
        there = [(run, {method_of(row) for row in run["rows"]} & set(methods)) for run in by_model[model]]
        whole = [run for run, names in there if names == set(methods)] + [run for run, names in there if names]
        for run in whole[:1]:  # times of different runs are never mixed
            of_model = tables(run, methods)
            of_models += of_model
            figures[f"figure-{text.file_part(model)}"] = partial(draw, of_model)
            notes.append(_note(run))
            filled = [row for row in run.get("concurrency", []) if method_of(row) in ("full", *methods)]
            if filled:
                texts.append(pools({**run, "concurrency": filled}))
                figures[f"figure-pools-{text.file_part(model)}"] = partial(draw_pools, filled, texts[-1].title)
    notes += ([POOLS] if texts else []) + text.left_out(faults)
    return Shown(of_models, texts, notes, figures=figures)


def _note(run: Run) -> str:
    where = text.hardware(shown_environment(run.get("environment")))
    return (
        f"{run['model']}: {run['new_tokens']} new tokens of one sequence, {run['dtype']}, {_kernel(run)}, on "
        f"{where}; n is the number of rounds; each round measures all settings. The memory of a process counts the "
        f"model too." + (f" {caption}." if (caption := _caption(run, [])) else "")
    )


def draw(tables: Sequence[Table]) -> Any:
    """Draw a panel for each table of a model."""
    from evals.tables.figures import over_columns

    return over_columns(tables, f"{tables[0].model}, latency and memory")


def draw_pools(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Draw pools over their size, or over the output length if there are several output lengths."""
    from evals.efficiency.figure import draw
    from evals.tables.figures import over_columns

    if several_outputs(rows):
        return over_columns(list(pool_charts(rows)), title)
    return draw(rows, [str(name) for name in names(rows)], speeds(rows), title)


def sections(results: Path, models: Sequence[str]) -> tuple[Section, list[str]]:
    """Return the section with all measurements (each model's newest first), and a phrase for each fault."""
    found, faults = runs(results)
    blocks = [_block(run, path.parent.name) for path, run in reversed(found)]
    return Section(
        "efficiency", "Efficiency", blocks=sorted(blocks, key=lambda block: block.title.split(",")[0])
    ), faults


def _block(run: Run, folder: str) -> Block:
    about = f"{run['new_tokens']} new tokens, {run['rounds']} rounds, {run['dtype']}, {_kernel(run)}"
    caption = _caption(run, (*run["rows"], *run.get("concurrency", [])))
    notes = [f"{about}. × is the ratio to the full cache."]
    notes += [POOLS] if run.get("concurrency") else []
    notes += [f"{caption}."] if caption else []
    texts = [latency(run), *([pools(run)] if run.get("concurrency") else [])]
    charts = [*tables(run), *pool_charts(run.get("concurrency", []), run["model"])]
    return Block(
        f"{run['model']}, {_date(folder)}", " ".join(notes), shown_environment(run.get("environment")), texts, charts
    )


def several_outputs(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether pools were filled with sequences of several output lengths."""
    return len({row.get("new_tokens") for row in rows}) > 1


def pool_charts(rows: Sequence[Mapping[str, Any]], model: str = "") -> Iterator[Table]:
    """Yield tokens per second over the size of the pool, for each prompt length.

    With `several_outputs`: for each pool, the number of sequences that fit and their speed, over the output length.
    """
    if not several_outputs(rows):
        for length, lines in speeds(rows).items():
            xs = {f"{x:g}": x for x in sorted({x for points in lines.values() for x, _ in points})}
            values = {Name(setting): {f"{x:g}": y for x, y in points} for setting, points in lines.items()}
            metric = Metric("tokens_per_s", f"tokens per second together, prompts of {length} tokens", 1)
            yield _chart(model, metric, values, xs, "KV memory pool (MB)")
        return
    xs = {text.tokens(output): float(output) for output in sorted({row["new_tokens"] for row in rows})}
    for length, pool in dict.fromkeys((row["length"], row["pool_mb"]) for row in rows):
        of_pool = [row for row in rows if (row["length"], row["pool_mb"]) == (length, pool)]
        where = f"prompts of {length} tokens, {pool:g} MB"
        for metric in (
            Metric("sequences", f"sequences that fit, {where}", 0),
            Metric("tokens_per_s", f"tokens per second together, {where}", 1),
        ):
            values = {name: {} for name in names(of_pool)}
            for row, name in zip(of_pool, names(of_pool), strict=True):
                if row[metric.field] is not None:
                    values[name][text.tokens(row["new_tokens"])] = row[metric.field]
            yield _chart(model, metric, values, xs, "new tokens of each sequence")


def _chart(
    model: str, metric: Metric, values: Mapping[Name, Mapping[str, float]], xs: Mapping[str, float], axis: str
) -> Table:
    rows = [
        TableRow(name, {column: Cell({"": {("", ""): value}}, 1, 1) for column, value in of_setting.items()})
        for name, of_setting in values.items()
    ]
    return Table(model, "efficiency", list(xs), rows, metric, average="", xs=xs, axis=axis)


def _date(folder: str) -> str:
    """Return the date and time in the name of a measurement's folder; without a date, return the name."""
    try:
        return f"{datetime.strptime(folder[:15], '%Y%m%d-%H%M%S'):%Y-%m-%d %H:%M}"
    except ValueError:
        return folder
