"""Convert Hydra's errors while composing to one sentence that names the setting and the nearest valid name."""

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from compresskv.checking import refuse_unknown
from compresskv.errors import UserError, readable
from compresskv.folders import CONF
from compresskv.methods import refuse_known, refuse_observation
from evals.help import leaves

LONGEST_SENTENCE = 400
"""Maximum number of characters of Hydra's message that a sentence quotes."""


def refuse_two_files(hydra: HydraConf) -> None:
    """Raise `UserError` if a chosen option exists in two folders: Hydra would silently use the first one."""
    runtime = hydra.runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    for group, name in runtime.choices.items():
        files = [path for folder in folders if name and (path := folder / group / f"{name}.yaml").is_file()]
        if len(files) > 1:
            raise UserError(
                group, "rename the second", value=name, why=f"both {files[0]} and {files[1]} have this name"
            )


@contextmanager
def refused_in_a_sentence(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Convert every exception while Hydra composes `overrides` to a `UserError` of one sentence with the nearest name.

    Use it only for composing, where Hydra raises exceptions of all types. In other code, such exceptions would be
    defects.
    """
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise _sentence(error, overrides) from error
    except Exception as error:
        raise _wrong_override(overrides, f"{type(error).__name__}: {error}") from error


def _sentence(error: HydraException | OmegaConfBaseException, overrides: Sequence[str]) -> UserError:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return _no_option(group, name, error.options)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, error)
    cause = error.__cause__
    parent = getattr(cause, "parent_node", None)
    if isinstance(parent, DictConfig) and cause is not None and "not in struct" in str(cause):
        setting = str(getattr(cause, "full_key", ""))
        where, known = setting.rpartition(".")[0], [str(key) for key in parent if key != "hydra"]
        for text in overrides:
            if text.startswith(f"{where}=") and not known:  # such as fidelity=true, which leaves no fidelity.tokens
                return UserError(setting, f"leave out {text}", why="both names mean the same setting")
        if not known:  # such as model.chat_template_kwargs, which takes any key
            return UserError(setting, f"add it as +{setting}=…", why="not there yet")
        key = str(getattr(cause, "key", ""))
        try:
            if where.partition(".")[0] == "method":
                refuse_observation(where, [key])
            if places := _elsewhere(parent, key):
                return UserError(setting, f"did you mean {' or '.join(places)}?", why="no such setting")
            refuse_unknown(where, [key], known)
        except UserError as refused:
            return refused
    keys = (getattr(part, "full_key", None) for part in (error, cause))
    where = next(filter(None, keys), "the configuration")
    lines = [line.strip() for line in f"{error}\n{cause or ''}".splitlines()]
    said = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=")))
    return UserError(where, "correct its value", why=readable(said.strip(), LONGEST_SENTENCE))


def _elsewhere(node: DictConfig, key: str) -> list[str]:
    """Return the dotted names of all settings called `key` in the configuration of `node`, except in model.evals."""
    root = node._get_root()
    assert isinstance(root, DictConfig)
    return [name for name, _ in leaves(root) if name.endswith(f".{key}") and not name.startswith("model.evals.")]


def _wrong_override(overrides: Sequence[str], why: str) -> UserError:
    """Return the error for an override that Hydra cannot parse or an unknown option, else its message `why`."""
    parser = OverridesParser.create()
    chosen: list[tuple[str, Any]] = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except Exception as error:  # from Hydra, or from parsing a number of thousands of digits
            return _unreadable(text, error)
        if not override.is_sweep_override() and os.path.isdir(CONF / override.key_or_group):
            chosen.append((override.key_or_group, override.value()))
    for group, value in sorted(chosen, key=lambda choice: isinstance(choice[1], str)):
        options = [path.stem for path in (CONF / group).glob("*.yaml")]
        if value not in options:
            return _no_option(group, value, options)
    shown = readable(" ".join(overrides) or "the configuration", 200)
    return UserError(
        "command line",
        "correct the setting that the message names",
        value=shown,
        why=f"cannot be composed ({readable(' '.join(why.split()), 300)})",
    )


def _no_option(group: str, name: Any, existing: Iterable[str]) -> UserError:
    try:
        refuse_known(group, str(name))
    except UserError as refused:
        return refused
    parent, _, folder = group.rpartition("/")
    # Methods in a subfolder have its name as a prefix.
    if parent == "method" and folder != "allocator" and (CONF / group).is_dir():
        existing = [f"{folder}/{path.stem}" for path in (CONF / group).glob("[!_]*.yaml")]
        group, name = parent, f"{folder}/{name}"
    options = sorted(option for option in existing if not option.startswith("_"))
    nearest = difflib.get_close_matches(str(name), options, 1)
    fix = f"did you mean {nearest[0]}?" if nearest else f"choose one of {', '.join(options)}"
    return UserError(group or "config", fix, value=name, why="not found")


def _unreadable(override: str | None, error: Exception) -> UserError:
    why = readable(" ".join(str(error).split()), LONGEST_SENTENCE)
    name, equals, value = (override or "").partition("=")
    return UserError(
        name.lstrip("+~") or "override",
        "correct it",
        value=value if equals else ...,
        why=f"cannot be read as an override ({why})",
    )
