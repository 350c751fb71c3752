"""Write the page: `python -m evals report <results> --out <directory>`."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compresskv.errors import UserError
from evals.console import visible
from evals.experiments import ALL
from evals.files import write_text
from evals.report.html import scores
from evals.report.html.embedded import settings_and_samples
from evals.report.html.reading import Tree, read
from evals.results.provenance import environments
from evals.results.published import published
from evals.results.shows import hook, hooks
from evals.tables import text
from evals.tables.table import OTHERS, Section

TEMPLATES = Path(__file__).parent


def write(results: Path, out: Path, margins: Mapping[str, float] | None = None) -> Path:
    """Write `out`/index.html for the tree `results` and return its path. `margins`: margins of equivalence by metric.

    Raises `UserError` if there is nothing to show, or if the page cannot be written.
    """
    path = out / "index.html"
    write_text(path, page(results, margins))
    return path


def page(results: Path, margins: Mapping[str, float] | None = None) -> str:
    """Return the page as text. Raises `UserError` if there is nothing to show."""
    tree = read(results)
    models = sorted({setting.record.model for setting in tree.settings})
    measured, problems = _measured(results, models)
    if not tree.settings and not tree.unfinished and not any(section.blocks for section in measured):
        raise UserError(
            "results",
            "run something first",
            value=results,
            why="it has no results (runs/ and measurements are missing)",
        )
    asked = replace(ALL, margins=margins or {})
    boards = list(scores.boards(tree, asked))
    panels = [panels_of(board.table) for board in boards if (panels_of := hook(board.kind, "panels"))]
    maps = [each for section in measured for each in section.maps]
    return render(
        tree=tree,
        title=f"Results of {', '.join(models)}" if 0 < len(models) <= 3 else "Results",
        models=models,
        evals=[text.title_of(name) for name in sorted({setting.record.eval for setting in tree.settings})],
        boards=boards,
        scored=_sections(boards),
        measured=measured,
        family=asked.family(scores.COMPARED_BY),
        published=_published,
        text=text,
        over_columns=scores.over_columns,
        sentence=scores.sentence,
        problems=[*tree.faults, *problems],
        origins=_origins(tree),
        data={**settings_and_samples(tree), "panels": panels, "maps": maps},
    )


def _measured(results: Path, models: Sequence[str]) -> tuple[list[Section], list[str]]:
    """Return the sections of evaluations that write their own files, and a phrase for each unreadable file."""
    sections: list[Section] = []
    problems: list[str] = []
    for _, made in hooks("sections"):
        section, faults = made(results, models)
        sections.append(section)
        problems += faults
    return sections, problems


def _sections(boards: Sequence[scores.Board]) -> list[dict[str, Any]]:
    """Return the sections of all evaluations with scores, including evaluations without results, each with its
    boards."""
    known = {section.id: section for _, section in hooks("SECTION")}
    known |= {board.section.id: board.section for board in boards} | {OTHERS.id: OTHERS}
    found = []
    for section in known.values():
        here = [board for board in boards if board.section.id == section.id]
        found.append({"section": section, "boards": here, "panels": any(hook(b.kind, "panels") for b in here)})
    return found


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
    """Make control characters in a text visible. The page's own markup is unchanged."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def embeddable(value: Any) -> Markup:
    """Return JSON without `<`, `>` and `&`, so that it cannot close the script element that contains it."""
    content = json.dumps(_visible(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return Markup(content)


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): _visible(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_visible(item) for item in value]
    return value


def _origins(tree: Tree) -> list[dict[str, Any]]:
    """Return every environment with its number of settings, largest first. A setting may have several environments."""
    counted: dict[str, dict[str, Any]] = {}
    for setting in tree.settings:
        summary = setting.record.summary or {}
        for environment in environments(summary) or [{}]:
            origin = {"environment": environment, **{key: summary.get(key) for key in ("dtype", "backend")}}
            entry = counted.setdefault(json.dumps(origin, sort_keys=True, default=str), {**origin, "settings": 0})
            entry["settings"] += 1
    return sorted(counted.values(), key=lambda entry: -entry["settings"])


def _published(item: str) -> dict[str, Any]:
    """Return the published scores: a row per model, budget and method, and a column per published column."""
    rows = [row for row in published(item) if row.unit == "score"]
    found = [
        ((row.method, row.model or "not named", text.budget(row.budget), row.source), row.column, f"{row.value:.2f}")
        for row in rows
    ]
    columns, body = text.pivoted(found)
    return {"columns": columns, "rows": body}
