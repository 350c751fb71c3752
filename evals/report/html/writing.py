"""The page itself: `python -m evals.report <results> --out <directory>`."""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compresskv.errors import UserError
from evals.console import visible
from evals.kinds import TITLES
from evals.report.html import efficiency, heads, masking, needles, scores
from evals.report.html.embedded import settings_and_samples
from evals.report.html.reading import Tree, read
from evals.report.items import ALL
from evals.report.page import budget_text, published_column
from evals.report.verdicts import family_of
from evals.results.provenance import environments
from evals.results.published import Published, published
from evals.results.store import write_text

TEMPLATES = Path(__file__).parent


def write(results: Path, out: Path) -> Path:
    """Write `out`/index.html of the tree `results`; returns its path.

    Raises `UserError` where there is nothing to show, and where the page cannot be written.
    """
    path = out / "index.html"
    write_text(path, page(results))
    return path


def page(results: Path) -> str:
    """The page as text. Raises `UserError` where there is nothing to show."""
    tree = read(results)
    measured, faulty = efficiency.measurements(results)
    if not tree.settings and not tree.unfinished and not measured:
        raise UserError(
            "results",
            "run something first",
            value=results,
            why="there are no results in it (no runs/ and no efficiency/)",
        )
    shown, heatmaps = [], []
    for board, grid in scores.boards(tree):
        shown.append(board)
        if board.kind == "niah":
            heatmaps.append(needles.boards(grid))
    models = sorted({setting.record.model for setting in tree.settings})
    maps, unreadable = heads.maps(models, results)
    embedded = {**settings_and_samples(tree), "needles": heatmaps, "heads": maps}
    return render(
        tree=tree,
        title=f"Results of {', '.join(models)}" if 0 < len(models) <= 3 else "Results",
        models=models,
        evals=[TITLES.get(name, name) for name in sorted({setting.record.eval for setting in tree.settings})],
        boards=shown,
        family=family_of(ALL),
        published=_published(scores.PAPER),
        masked=masking.masked(tree),
        measured=measured,
        heads=maps,
        needles=heatmaps,
        problems=[*tree.faults, *faulty, *unreadable],
        origins=_origins(tree),
        data=embedded,
    )


def render(data: Mapping[str, Any], **shown: Any) -> str:
    """Fill the templates; `data` is embedded for the script."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        **shown,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=embeddable(data),
    )


def _shown(value: Any) -> Any:
    """Text with its control characters visible; markup that is ours as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def embeddable(value: Any) -> Markup:
    """JSON that is safe inside a script element: without `<`, `>` and `&`, nothing in it can end or open one."""
    text = json.dumps(_visible(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text.encode(errors="replace").decode())


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): _visible(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_visible(item) for item in value]
    return value


def _origins(tree: Tree) -> list[dict[str, Any]]:
    """Every environment that settings were run in, with how many; most settings first. A setting may have several."""
    counted: dict[str, dict[str, Any]] = {}
    for setting in tree.settings:
        summary = setting.record.summary or {}
        for environment in environments(summary) or [{}]:
            origin = {"environment": environment, **{key: summary.get(key) for key in ("dtype", "backend")}}
            entry = counted.setdefault(json.dumps(origin, sort_keys=True, default=str), {**origin, "settings": 0})
            entry["settings"] += 1
    return sorted(counted.values(), key=lambda entry: -entry["settings"])


def _published(item: str) -> dict[str, Any]:
    """The published table: a row for every model, budget and method, a column for whatever was published of them."""
    rows = [row for row in published(item) if row.unit == "score"]
    columns = list(dict.fromkeys(map(published_column, rows)))
    table: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        table.setdefault(_place(row), {})[published_column(row)] = f"{row.value:.2f}"
    return {"columns": columns, "rows": [[*place, *map(values.get, columns)] for place, values in table.items()]}


def _place(row: Published) -> tuple[str, ...]:
    return row.model or "not named", budget_text(row.budget), row.method, row.source
