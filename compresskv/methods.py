"""Build a method from its configuration: a scorer and an allocator, each made by the function that its node names.

The parameters of a part are the typed keyword arguments of the function that makes it. Names are checked without
importing that function, so that mistakes are reported before torch is loaded. Types and ranges are checked when the
function is imported.
"""

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml

from compresskv.checking import FrozenMapping, Name, PathText, checked_value, frozen, refuse_unknown, type_hints
from compresskv.errors import UserError, readable
from compresskv.folders import CONF
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compresskv.calibration import Calibration
    from compresskv.context import Context
    from compresskv.eviction import EvictionMethod

METHODS = CONF / "method"

ENTRY_POINTS = "compresskv.conf"
"""Entry point group with which an installed package names its folder of methods. The folder has the layout of conf."""

PARTS = ("scorer", "allocator")

ALLOCATOR = "/method/allocator@allocator"
"""Key of the default allocator in the defaults list of a method in a subfolder of `METHODS`."""

F = TypeVar("F", bound=Callable[..., Any])

KNOWN = ("name", *PARTS, "plain")
"""Keys of the node `method` of a configuration."""


def declares(
    *,
    window: int | None = None,
    heads: Literal["alike", "compared"] | None = None,
    gives: str | None = None,
    needs: str | None = None,
    prompt: Literal["whole"] | None = None,
    path: Literal["shared"] | None = None,
) -> Callable[[F], F]:
    """Declare which other parts and budgets the part made by the decorated function can be combined with.

    A scorer declares its smallest `window` (tokens) if it differs from the observation window; `heads="alike"` if all
    KV heads of a layer have the same scores; what it `gives` in addition to scores; `prompt="whole"` if it reads
    hidden states; and `path="shared"` if it reads the full cache's answer. An allocator declares `heads="compared"` if
    it needs scores that differ between heads, and `needs` for other requirements. The values must be literals, because
    they are read from the source before the function is imported.
    """
    return lambda function: function


@dataclass(frozen=True)
class Part:
    """One half of a method: the function that makes it, as `package.module.function`, and its keyword arguments."""

    target: str
    parameters: Mapping[str, Any] = FrozenMapping()

    @property
    def label(self) -> str:
        """Name in labels: the module's name if the function has the usual name, else the function's name."""
        module, _, function = self.target.rpartition(".")
        whole, label = (module, module.rpartition(".")[2]) if function in PARTS else (self.target, function)
        # A part of another package with the name of a built-in one is shown with its full path.
        return label if _parts_of_ours().get(label, module) == module else whole


@dataclass(frozen=True)
class MethodConfig:
    """A configured method. `name` is a label. Without a scorer nothing is evicted."""

    name: str
    scorer: Part | None
    allocator: Part | None

    @property
    def keeps_everything(self) -> bool:
        return self.scorer is None


def method_config(node: Any) -> MethodConfig:
    """Parse the resolved `method` node of a composed configuration. Checks names without importing their targets.

    The label lists the parts that differ from the usual parts of the method, `plain`. Raises `UserError` for a missing
    or unknown name, with the nearest one, and for a target that does not exist.
    """
    if not isinstance(node, Mapping):
        raise UserError("method", f"choose a mapping of {', '.join(KNOWN)}", value=node)
    scorer, allocator = (_part(name, node.get(name)) for name in PARTS)
    _refuse_unknown_settings(node, scorer, allocator)
    name = checked_value("method.name", Name, node.get("name"))
    if scorer is None:
        allocator = None
    elif allocator is None:
        raise UserError(
            "method.allocator", "choose how tokens are shared, such as method/allocator=uniform", value=None
        )
    return MethodConfig(_label(name, scorer, allocator, node.get("plain")), scorer, allocator)


def named_method(name: str) -> MethodConfig:
    """Return the method of conf/method/<name>.yaml, built in or from an installed package, with its default allocator.

    Raises `UserError`, with the nearest name, if it does not exist.
    """
    node = _yaml("method", "", name)
    for default in node.pop("defaults", []):
        if isinstance(default, Mapping) and (allocator := default.get("allocator", default.get(ALLOCATOR))):
            node["allocator"] = _yaml("method/allocator", "allocator", allocator)
    return method_config(node)


def installed_folders() -> dict[str, Path]:
    """Return the configuration folders of installed packages, by the name of their entry point.

    An entry point names a folder of a package as `package.folder`. The package is imported, the files in the folder are
    not. Raises `UserError` for a folder that does not exist.
    """
    folders = {}
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            spec = find_spec(entry.value)
        except ImportError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                ENTRY_POINTS,
                "name a folder as package.folder, or uninstall it",
                value=entry.value,
                why=f"the entry point {entry.name} of an installed package does not name a folder",
            )
        folders[entry.name] = Path(next(iter(spec.submodule_search_locations)))
    return folders


def _yaml(group: str, subfolder: str, name: str) -> dict[str, Any]:
    """Return the content of the file `name` of a configuration group. Built-in files come before files of packages."""
    files: dict[str, Path] = {}
    for folder in (METHODS, *(folder / "method" for folder in installed_folders().values())):
        for path in sorted((folder / subfolder).glob("*.yaml")):
            files.setdefault(path.stem, path)
        for path in sorted((folder / subfolder).glob("kvpress/[!_]*.yaml")):
            files.setdefault(f"kvpress/{path.stem}", path)
    if name not in files and "." in name:  # the form that results use
        name = name.replace(".", "/", 1)
    if name not in files:
        refuse_known(group, name)
        nearest = difflib.get_close_matches(name, files, 1)
        fix = f"did you mean {nearest[0]}?" if nearest else f"choose one of {', '.join(sorted(files))}"
        raise UserError(group, fix, value=name, why="not found")
    return yaml.safe_load(files[name].read_text(encoding="utf-8"))


def refuse_known(group: str, name: str) -> None:
    """Raise `UserError`, with the reason, for a method that is known but not supported, such as kvpress/think."""
    folder, _, method = f"{group}/{name}".removeprefix("method/").rpartition("/")
    path = METHODS / folder / "_refused.yaml"
    reasons = yaml.safe_load(path.read_text(encoding="utf-8")) if folder and path.is_file() else {}
    if method in reasons:
        raise UserError("method", f"choose another press of {folder}/", value=f"{folder}/{method}", why=reasons[method])


def refuse_mismatch(config: MethodConfig) -> None:
    """Raise `UserError` if the allocator declares a need that the scorer does not declare. Imports neither."""
    if config.scorer is None or config.allocator is None:
        return
    allocator = config.allocator.label
    given, wanted = _declared(config.scorer.target), _declared(config.allocator.target)
    if wanted.get("heads") == "compared" and given.get("heads") == "alike":
        raise UserError(
            "method/allocator",
            "use method=adacompresskv for semantic heads, or method/allocator=uniform",
            value=allocator,
            why=f"it compares the KV heads of a layer, but {config.scorer.label} scores all of them alike",
        )
    if (need := wanted.get("needs")) and given.get("gives") != need:
        targets = {name: plain["scorer"] for name, plain in _plain_of_ours().items() if plain["scorer"]}
        fixes = [f"method={name}" for name, target in targets.items() if _declared(target).get("gives") == need]
        raise UserError(
            "method/allocator",
            f"use {' or '.join([*fixes, 'method/allocator=uniform'])}",
            value=allocator,
            why=f"it needs {need}, which {config.scorer.label} does not give",
        )


def refuse_chunks(config: MethodConfig, chunk: int | None) -> None:
    """Raise `UserError` for a chunked prefill if the scorer declares that it needs the whole prompt."""
    if chunk is not None and config.scorer is not None and _declared(config.scorer.target).get("prompt") == "whole":
        raise UserError(
            "prefill_chunk",
            "set prefill_chunk=null",
            value=chunk,
            why=f"{config.name} needs the hidden states of the whole prompt, from one forward pass",
        )


def refuse_shared(config: MethodConfig, evaluation: str) -> None:
    """Raise `UserError` for a scorer that declares the shared path, in an `evaluation` without an answer to read."""
    if config.scorer is not None and _declared(config.scorer.target).get("path") == "shared":
        raise UserError(
            "method",
            "leave it out",
            value=config.name,
            why=f"it reads the full cache's answer, which {evaluation} does not compute before it evicts",
        )


def least_window(config: MethodConfig, window: int) -> int:
    """Return how many tokens a method always keeps at the end of a prompt, at least. `window`: the run's window."""
    return 0 if config.scorer is None else min(window, _declared(config.scorer.target).get("window", window))


def check_parameters(config: MethodConfig) -> None:
    """Check the types and ranges of all parameters, which imports the functions that take them. Raises `UserError`."""
    for name in PARTS:
        part = getattr(config, name)
        if part is not None:
            _arguments(name, part)


def build(config: MethodConfig, context: "Context") -> "EvictionMethod | None":
    """Build the method for one model, run and protocol. None keeps everything.

    Raises `UserError` for an invalid parameter, and if the context lacks something that the method needs.
    """
    from compresskv.eviction import EvictionMethod

    if config.scorer is None or config.allocator is None:
        return None
    scorer = _maker("scorer", config.scorer)(context, **_arguments("scorer", config.scorer))
    context = replace(context, selecting_heads=getattr(scorer, "selecting_heads", None))
    allocator = _maker("allocator", config.allocator)(context, **_arguments("allocator", config.allocator))
    return EvictionMethod(scorer, allocator)


def method_for(
    model: "PreTrainedModel", name: str, calibration: "Calibration | str | Path | None" = None
) -> "EvictionMethod | None":
    """Build the method of conf/method/<name>.yaml for `model`, under `corrected`. None keeps everything.

    `calibration`: a loaded calibration, a source such as "published", or the path of a file. None: the calibration is
    found by the model's weights, then by its name; `held_out` comes before `published`. Raises `UserError` if a method
    needs a calibration and no calibration fits, or if the calibration was made with other weights.
    """
    from compresskv import calibration as calibrations
    from compresskv import loaded_weights
    from compresskv.context import Context
    from compresskv.engine.model_shape import evicting_layers

    config = model.config.get_text_config(decoder=True)
    layers = len(evicting_layers(config))
    method = named_method(name)
    if not layers and not method.keeps_everything:
        raise UserError(
            "method",
            "use method=full",
            value=name,
            why="all layers of this model have sliding windows, so no layer can evict",
        )

    context = Context(
        model=loaded_weights.name(model),
        layers=layers,
        q_heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        calibration_setting=calibration if isinstance(calibration, str) else "auto",
    )

    def complete() -> Context:
        weights, fingerprint = loaded_weights.fingerprints(model), None
        if calibration is None or (isinstance(calibration, str) and calibration in calibrations.SOURCES):
            fingerprint = "not known"  # so that a calibration with a fingerprint never matches by name alone
            sources = [calibration] if calibration else calibrations.UNNAMED
            made = calibrations.of_model(context.model, weights, sources)
        elif isinstance(calibration, calibrations.Calibration):
            made = calibration
        else:
            made = calibrations.choose(context.model, str(calibration), EvaluationProtocol(), weights)
        return replace(context, weights=weights, fingerprint=fingerprint, calibration=made)

    return build(method, replace(context, look_up=complete) if calibration is None else complete())


def _part(name: str, node: Any) -> Part | None:
    if node is None:
        return None
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise UserError(f"method.{name}", "choose a mapping with a _target_, as in conf/method", value=node)
    parameters = {key: value for key, value in node.items() if key != "_target_"}
    part = Part(node["_target_"], frozen(parameters))
    known = argument_names(f"method.{name}", part.target)
    if known is not None:
        refuse_observation(f"method.{name}", [key for key in parameters if key not in known])
        refuse_unknown(f"method.{name}", parameters, known)
    return part


def refuse_observation(where: str, unknown: Iterable[Any]) -> None:
    """Raise `UserError` if the `unknown` settings of a method or a part include a setting of the run's observation."""
    for name in unknown:
        if name in ObservationConfig.__dataclass_fields__:
            fix = f"did you mean observation.{name}, which all methods share?"
            raise UserError(f"{where}.{name}", fix, why="no such setting")


def _refuse_unknown_settings(node: Mapping[str, Any], scorer: Part | None, allocator: Part | None) -> None:
    for key in node:
        if key in KNOWN:
            continue
        for name, part in (("scorer", scorer), ("allocator", allocator)):
            if part is not None and key in part.parameters:
                raise UserError(f"method.{key}", f"did you mean method.{name}.{key}?", why="no such setting")
        refuse_observation("method", [key])
        refuse_unknown("method", [key], KNOWN[:-1])


def _label(name: str, scorer: Part | None, allocator: Part | None, plain: Any) -> str:
    """Return `name`, followed by the names of the parts that differ from its `plain` parts."""
    if not isinstance(plain, Mapping) or "scorer" not in plain:
        raise UserError("method.plain", f"name the default scorer and allocator of {name}", value=plain)
    refuse_unknown("method.plain", plain, PARTS)
    for role, target in plain.items():
        checked_value(f"method.plain.{role}", PathText | None, target)
    if ours := _name_of_ours(name):
        # A built-in name always means the built-in parts.
        name, plain = ours if name.startswith(f"{ours}-") else name, _plain_of_ours()[ours]
    if scorer is None:
        return name if plain["scorer"] is None else f"{name}-full"
    parts = {"scorer": scorer, "allocator": allocator}
    other = [part.label for role, part in parts.items() if part and part.target != plain.get(role)]
    return "-".join([name, *other])


def label_of(node: Any, recorded: str) -> str:
    """Return the label of the stored `method` node of a result, from its parts. Imports nothing.

    `recorded`: the label in its files, which is used if the node has parts of other packages or versions.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
        return recorded
    ours = _name_of_ours(node["name"])
    if ours is None or "scorer" not in node:
        return recorded
    targets = [part.get("_target_") if isinstance(part := node.get(role), Mapping) else None for role in PARTS]
    scorer, allocator = (Part(target) if isinstance(target, str) else None for target in targets)
    modules = {part.target.rpartition(".")[0] for part in (scorer, allocator) if part}
    known = modules <= set(_parts_of_ours().values())
    return _label(node["name"], scorer, allocator, _plain_of_ours()[ours]) if known else recorded


def _name_of_ours(name: str) -> str | None:
    """Return the method of `METHODS` that `name` refers to, alone or in a composition such as snapkv-cake."""
    spelt = name.strip().casefold()
    head, *parts = spelt.split("-")
    composed = bool(parts) and all(part in _parts_of_ours() or part == "full" for part in parts)
    found = head if composed else spelt
    return found if found in _plain_of_ours() else None


@lru_cache(maxsize=1)
def _plain_of_ours() -> dict[str, Mapping[str, Any]]:
    """Return the default parts of each method of `METHODS`, by its name."""
    paths = (*METHODS.glob("*.yaml"), *METHODS.glob("kvpress/[!_]*.yaml"))
    return {node["name"]: node["plain"] for node in (yaml.safe_load(path.read_bytes()) for path in paths)}


@lru_cache(maxsize=1)
def _parts_of_ours() -> dict[str, str]:
    """Return the modules of the parts in `METHODS`, by their label."""
    targets = {target for plain in _plain_of_ours().values() for target in plain.values() if target}
    targets |= {yaml.safe_load(path.read_bytes())["_target_"] for path in (METHODS / "allocator").glob("*.yaml")}
    modules = {target.rpartition(".")[0] for target in targets}
    return {module.rpartition(".")[2]: module for module in modules}


def argument_names(where: str, target: str) -> tuple[str, ...] | None:
    """Return the keyword-only arguments of the function `target`, read from its source.

    Returns None if the source does not list them. Raises `UserError` if the module or the function does not exist.
    """
    found = _definition(where, target)
    return None if found is None else tuple(argument.arg for argument in found.args.kwonlyargs)


def _declared(target: str) -> dict[str, Any]:
    """Return the declarations (`declares`) of the function `target`, read from its source; empty if it declares
    nothing."""
    found = _definition("method", target)
    for decorator in found.decorator_list if found else ():
        match decorator:
            case ast.Call(func=ast.Name("declares") | ast.Attribute(attr="declares"), keywords=facts):
                return {fact.arg: ast.literal_eval(fact.value) for fact in facts if fact.arg}
    return {}


def _definition(where: str, target: str) -> ast.FunctionDef | None:
    """Return the source of the function `target`, or None. Raises `UserError` if the module does not exist."""
    module, _, function = target.rpartition(".")
    try:
        spec = find_spec(module)
    except (ImportError, ValueError, AttributeError) as error:
        raise _no_target(where, target, str(error)) from error
    if spec is None:
        raise _no_target(where, target, f"module {module} not found")
    if not spec.origin or Path(spec.origin).suffix != ".py":
        return None
    for statement in _source(spec.origin).body:
        match statement:
            case ast.FunctionDef(name=name) if name == function:
                return statement
            case ast.ImportFrom(module=str(origin), names=aliases, level=0):
                for alias in aliases:
                    if (alias.asname or alias.name) == function:
                        return _definition(where, f"{origin}.{alias.name}")
    return None


@lru_cache(maxsize=256)
def _source(path: str) -> ast.Module:
    try:
        return ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])  # the import will report the error


def _maker(name: str, part: Part) -> Callable[..., Any]:
    """Return the function that makes a part. Raises `UserError` if it cannot be imported or is not a function."""
    try:
        maker = resolve_name(part.target)
    except UserError:  # the package of the part is not installed
        raise
    except Exception as error:  # a module can raise any exception on import
        raise _no_target(f"method.{name}", part.target, f"{type(error).__name__}: {error}") from error
    if not inspect.isfunction(maker):
        raise _no_target(f"method.{name}", part.target, "it is not a function")
    return maker


def _arguments(name: str, part: Part) -> dict[str, Any]:
    """Convert a part's parameters to the types of its function.

    Raises `UserError` for a parameter that is unknown, missing or invalid.
    """
    maker, where = _maker(name, part), f"method.{name}"
    hints = type_hints(maker)
    keywords = {
        argument.name: argument
        for argument in inspect.signature(maker).parameters.values()
        if argument.kind is inspect.Parameter.KEYWORD_ONLY
    }
    refuse_unknown(where, part.parameters, keywords)
    for keyword, argument in keywords.items():
        if keyword not in part.parameters and argument.default is inspect.Parameter.empty:
            raise UserError(f"{where}.{keyword}", "give it a value, as in conf/method", why="not set")
    return {
        keyword: checked_value(f"{where}.{keyword}", hints.get(keyword, Any), value)
        for keyword, value in part.parameters.items()
    }


def _no_target(where: str, target: str, reason: str) -> UserError:
    why = readable(" ".join(reason.split()), 200)
    return UserError(
        f"{where}._target_",
        "name a package.module.function that is installed, or on PYTHONPATH",
        value=target,
        why=f"cannot be imported ({why})",
    )
