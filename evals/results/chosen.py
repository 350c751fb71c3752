"""Select settings for a command line: settings in a folder, or settings whose path matches a pattern."""

from fnmatch import fnmatchcase
from pathlib import Path

from compresskv.errors import UserError, readable
from compresskv.inputs import expanded
from evals.results.record import Record, records


def settings_named(results: str | None, named: str) -> list[Record]:
    """Return the settings of the tree `results` (None: ./results) that `named` selects, sorted by path; "" selects all.

    `named` is a results tree, a folder below the `runs` of one, or a part of the settings' paths below `runs`, where
    `*`, `?` and `[…]` match any text, any character and one of several characters. Raises `UserError` if no setting
    matches.
    """
    place = expanded(named, "--results") if named else Path()
    if named and (place / "runs").is_dir():
        if results is not None:
            raise UserError("--results", "name one results tree", value=results, why=f"{named} is in a different tree")
        results, named = str(place), ""
    elif named and place.is_dir():
        below = place.resolve()
        if runs := next((above for above in (below, *below.parents) if above.name == "runs"), None):
            found = [record for record in records(runs.parent) if record.path.resolve().is_relative_to(below)]
            if not found:
                raise UserError(None, "check the path", value=place, why="no results in this folder")
            return found
    tree = expanded(results or "results", "--results")
    found = [record for record in records(tree) if named in record.name or fnmatchcase(record.name, f"*{named}*")]
    if not found:
        if not (tree / "runs").is_dir():
            raise UserError("--results", "name a folder that contains runs/", value=tree, why="no results")
        why = f"no setting has {readable(named)} in its path" if named else "no settings yet"
        raise UserError("--results", "`python -m evals results list` shows all settings", value=tree, why=why)
    return found
