"""Generate the settings in `python run.py --help`: the composed value of each, and its comment in `conf/`."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

SETTING = re.compile(r"^(?P<indent> *)(?P<name>\w+):(?P<value>[^#]*)(?:# *(?P<meaning>.*))?$")
UNLISTED = ("plain", "_target_", "_convert_")  # internal keys, which users do not set
LAUNCHER = "hydra/launcher"  # the only group of Hydra to which we add options
COLUMN = 40


def settings_help(root: DictConfig) -> str:
    """Return an entry `name=value  meaning` for each setting of a composed configuration, for `hydra.help.template`."""
    width = max(100, min(shutil.get_terminal_size().columns, 160))
    meanings = all_meanings(root)
    entries = []
    for name, value in leaves(root):
        setting = f"{name}={value}"
        meaning = meanings.get(name, "")
        if len(setting) >= COLUMN:
            entries.append(setting)
            setting = ""
        if meaning or setting:
            lines = textwrap.wrap(meaning, width - COLUMN) or [""]
            entries.append(f"{setting:<{COLUMN}}{lines[0]}".rstrip())
            entries.extend(" " * COLUMN + line for line in lines[1:])
    return "\n".join(entries).replace("$", "$$")  # Hydra substitutes variables in the template


def groups_help(root: DictConfig) -> str:
    """Return a line `group: option, option` for each group, without base options such as `_base`."""
    options: dict[str, set[str]] = {}
    for directory in directories(root):
        for path in directory.rglob("*.yaml"):
            group = path.parent.relative_to(directory).as_posix()
            hidden = path.stem.startswith("_") or group == "." or group.startswith("hydra/")
            if group == LAUNCHER or not hidden:
                options.setdefault(group, set()).add(path.stem)
    return "\n".join(f"{group}: {', '.join(sorted(names))}" for group, names in sorted(options.items()))


def directories(root: DictConfig) -> list[Path]:
    """Return the folders of the configuration: conf/, and the folders of users and installed packages."""
    sources = [Path(source.path) for source in root.hydra.runtime.config_sources if source.schema == "file"]
    return [directory for directory in sources if directory.is_dir()]


def leaves(root: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and value of every setting in order, including the settings of Hydra's launcher."""
    for name, node in root.items_ex(resolve=False):
        if name not in ("hydra", "experiment"):
            yield from below(
                str(name), OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
            )
    if launcher := OmegaConf.select(root, "hydra.launcher"):
        yield from below("hydra.launcher", OmegaConf.to_container(launcher, resolve=True))


def below(name: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            if key not in UNLISTED:
                yield from below(f"{name}.{key}", inner)
    else:
        yield name, as_typed(value)


def as_typed(value: object) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, list):
        return "[" + ",".join(as_typed(item) for item in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def all_meanings(root: DictConfig) -> dict[str, str]:
    """Return the comment of each setting: from its file, from the defaults of this file, or from another file in the
    folder."""
    meanings: dict[str, str] = {}
    for directory in directories(root):
        meanings = {**comments(directory / "config.yaml", ""), **meanings}
        for group, choice in root.hydra.runtime.choices.items():
            folder, chosen = directory / group, directory / group / f"{choice}.yaml"
            if (group.startswith("hydra/") and group != LAUNCHER) or not chosen.is_file():
                continue
            defaults = (yaml.safe_load(chosen.read_text("utf-8")) or {}).get("defaults", [])
            named = [folder / f"{name}.yaml" for name in defaults if isinstance(name, str)]
            for path in [chosen, *named, *sorted(folder.glob("*.yaml"))]:
                meanings = {**comments(path, group.replace("/", ".") + "."), **meanings}
    return meanings


def comments(path: Path, prefix: str) -> dict[str, str]:
    """Return the comment after each setting of a YAML file, by dotted name."""
    meanings: dict[str, str] = {}
    if not path.is_file():
        return meanings
    parents: list[tuple[int, str]] = []
    for line in path.read_text("utf-8").splitlines():
        match = SETTING.match(line)
        if not match:
            continue
        indent = len(match["indent"])
        while parents and parents[-1][0] >= indent:
            parents.pop()
        parents.append((indent, match["name"]))
        if match["meaning"]:
            meanings[prefix + ".".join(name for _, name in parents)] = match["meaning"]
    return meanings
