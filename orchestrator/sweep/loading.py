"""Load a sweep by its module or file, and apply the command line's overrides and seeds."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.component import Component, shown
from datasets.errors import InputError, its_type
from datasets.text import read_text
from orchestrator import ROOT
from orchestrator.cluster import by_value
from orchestrator.experiment.override import from_text, get, has, override, override_all, parse
from orchestrator.experiment.spec import Experiment, Given, Sweep
from orchestrator.stages.swept import grid_values
from trainers.weights.files import FOLDER

SEED = "pretrain.seed"
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
"""How files of weights end."""


def load_sweep(
    name: str, overrides: dict[str, str] | None = None, miniature: bool = False, seeds: Sequence[int] | None = None
) -> Sweep:
    """The `SWEEP` of a module (`sweeps.quickstart`) or a file (`my/sweep.py`), with the command line's overrides in place.

    `miniature` takes its `MINIATURE` instead: the same sweep over the procedural world, for two cores and minutes.
    `seeds` repeats each of its pre-trainings with these.
    """
    module = module_of(name)
    wanted = "MINIATURE" if miniature else "SWEEP"
    sweep = getattr(module, wanted, None)
    if not isinstance(sweep, Sweep):
        has = f"{name} has no {wanted}" if sweep is None else f"in {name} {wanted} is {its_type(sweep)}"
        example = f"sweeps/{'main_cc3m' if miniature else 'quickstart'}.py"
        raise InputError(f"{has}; accepted: {wanted} = Sweep(...). See {example} for an example.")
    if seeds and SEED in (overrides or {}):
        raise InputError(f"--seeds and --{SEED} both name the seed of the pre-trainings; give one of them.")
    sweep = overridden(sweep, overrides or {}, name)
    sweep = _repeated(sweep, seeds) if seeds else sweep
    doc = sweep.doc or (module.__doc__ or "").strip()
    return replace(sweep, doc=f"The miniature of: {doc}" if miniature else doc)


def narrowed(sweep: Sweep, overrides: dict[str, str]) -> Sweep:
    """The sweep with the fields set, as `overridden`; but a path that the sweep varies chooses among the values of its grid. Kept are the
    values that the text names, or whose field has the value; if there are none, those that have the field, with the field set.
    """
    space, rest = dict(sweep.space), {}

    def at(path: str) -> tuple[str, list[Any], list[Any]]:
        """The varied path at or above this one, the values of its grid, and what each of them has at this path."""
        varied = max((one for one in space if f"{path}.".startswith(f"{one}.")), key=len, default="")
        values = (grid_values(space[varied]) if varied else None) or []
        field = path[len(varied) + 1 :]
        return varied, values, [get(value, field) if field else value for value in values if not field or has(value, field)]

    def components_first(path: str) -> tuple[int, bool]:
        return path.count("."), not any(isinstance(value, Component) for value in at(path)[2])

    for path in sorted(overrides, key=components_first):
        text = overrides[path]
        varied, values, there = at(path)
        if not values:
            rest[path] = text
            continue
        field = path[len(varied) + 1 :]
        named = [value for value in values if _is(value, field, text)]
        if not named and any(isinstance(value, Component) for value in there):
            accepted = ", ".join(dict.fromkeys(type(value).__name__ for value in there))
            raise InputError(f"--{path} {text}: the sweep {sweep.name} has no such one; it has {accepted}.")
        if named or field:
            space[varied] = {"grid_search": named or [value for value in values if has(value, field)] or values}
        else:
            del space[varied]
        rest |= {} if named else {path: text}
    return overridden(replace(sweep, space=space, series=sweep.series if space == sweep.space else ""), rest, sweep.name)


def _is(value: Any, field: str, text: str) -> bool:
    """Whether the value's field (or the value itself) equals what the text means, or is a component of that name."""
    if field and not has(value, field):
        return False
    value = get(value, field) if field else value
    if isinstance(value, Component):
        return text.lower() == type(value).__name__.lower()
    return text == value or parse(text) == value


def overridden(sweep: Sweep, overrides: dict[str, str], name: str) -> Sweep:
    """The sweep with the fields set: in its base, and below a varied path in each value of the grid that has the field."""
    below: dict[str, dict[str, str]] = {}
    for path, text in overrides.items():
        above = [varied for varied in sweep.space if path.startswith(f"{varied}.") and grid_values(sweep.space[varied]) is not None]
        for varied in sweep.paths:
            if f"{varied}.".startswith(f"{path}.") or (path.startswith(f"{varied}.") and varied not in above):
                other = " or give --seeds" if path == SEED else ""
                raise InputError(f"--{path}: the sweep {sweep.name} varies {varied} itself; change its space in {name}{other}.")
        if above:
            below.setdefault(max(above, key=len), {})[path] = text
    space = {varied: {"grid_search": _changed(sweep, varied, texts, name)} for varied, texts in below.items()}
    only_there = {path for texts in below.values() for path in texts if not has(sweep.base, path)}
    base = _set(sweep.base, {path: text for path, text in overrides.items() if path not in only_there})
    return replace(sweep, base=base, space=sweep.space | space)


def _changed(sweep: Sweep, varied: str, texts: dict[str, str], name: str) -> list[Any]:
    """The values of the grid at `varied`, with the fields set in those that have them.

    InputError for a field that none has, and for one that the grid itself varies: setting it would make values equal, or give a class the
    field by which it differs from another (a fine-tuning without the in-modal term would get one).
    """
    values = [override(sweep.base, varied, value) for value in grid_values(sweep.space[varied]) or []]
    changed = [_set(value, {path: text for path, text in texts.items() if has(value, path)}) for value in values]
    for path in texts:
        holders = [value for value in values if has(value, path)]
        if not holders:
            _explain(values, varied, path)
        found = {get(value, path) for value in holders}
        classes = {type(get(value, path.rpartition(".")[0])) for value in holders}
        alone = {_set(value, {path: texts[path]}) if has(value, path) else value for value in values}
        if len(found) > 1 and (len(classes) > 1 or len(alone) < len(set(values))):
            told = ", ".join(map(str, dict.fromkeys(get(value, path) for value in holders)))
            raise InputError(
                f"--{path}: the sweep {sweep.name} varies it itself, in its grid of {varied} ({told}); change its space in {name}."
            )
    if len(set(changed)) < len(set(values)):
        together = " and ".join(f"--{path}" for path in texts)
        raise InputError(f"{together} together make values of the sweep's grid of {varied} alike; change its space in {name}.")
    return [get(value, varied) for value in changed]


def _explain(values: list[Experiment], varied: str, path: str) -> None:
    """InputError for a field that no value of the grid has, by the first of them; the others are told after it."""
    said = []
    for value in values:
        try:
            get(value, path)
        except InputError as error:
            said.append(str(error))
    others = [text.removeprefix(f"{path}: ").split()[0] for text in dict.fromkeys(said)][1:]
    more = f" Nor have the other values of the sweep's grid of {varied}: {', '.join(others)}." if others else ""
    raise InputError(f"--{said[0]}{more}" if said else f"--{path}: the sweep's grid of {varied} is empty.")


def _set(experiment: Experiment, texts: dict[str, str]) -> Experiment:
    return override_all(experiment, {path: from_text(experiment, path, text) for path, text in texts.items()})


def _repeated(sweep: Sweep, seeds: Sequence[int]) -> Sweep:
    """The sweep with each of its pre-trainings repeated with these seeds, instead of the seeds that it varies itself."""
    stages = grid_values(sweep.space["pretrain"]) if "pretrain" in sweep.space else None
    if SEED in sweep.space or stages is None:
        grid: dict[str, Any] = {SEED: {"grid_search": list(seeds)}}
        return replace(sweep, space=sweep.space | grid if SEED in sweep.space else grid | sweep.space)
    stages = [override(sweep.base, "pretrain", stage).pretrain for stage in stages]  # raises InputError for anything but a Pretrain
    if given := next((stage for stage in stages if isinstance(stage, Given)), None):
        raise InputError(f"--seeds: {given.checkpoint} is a given model, which is not trained here; vary clean.seed for repetitions.")
    again = dict.fromkeys(replace(stage, seed=seed) for seed in seeds for stage in stages)
    return replace(sweep, space=sweep.space | {"pretrain": {"grid_search": list(again)}})


def loaded(name: str) -> Any:
    """The module of a sweep that was loaded by this name."""
    return sys.modules[f"cleansweep_sweep_{Path(name).stem}" if name.endswith(".py") or "/" in name else name]


def module_of(name: str) -> Any:
    """The module or file of that name; InputError where it cannot be read."""
    if not name.strip():
        raise InputError("the sweep's name is empty; accepted: a .py file, or a module such as sweeps.quickstart.")
    if "\0" in name:
        raise _unknown(name)
    if name.endswith(".py") or "/" in name:
        try:
            path = Path(name).expanduser().resolve()
            is_file, is_folder = path.is_file(), path.is_dir()
        except (OSError, RuntimeError) as error:  # too long, links in circles, a home of nobody
            raise InputError(f"{shown(name)}: no such sweep file ({getattr(error, 'strerror', None) or error}).") from None
        if is_folder and any((path / weights).is_file() for weights in FOLDER) or is_file and path.suffix in WEIGHTS:
            raise InputError(
                f"{path} is a checkpoint, which does not tell its sweep: name the sweep, and beside it --checkpoint {name}, which audit, "
                "analyse, evaluate and export take."
            )
        if not is_file:
            raise InputError(f"{path} is a folder; accepted: a .py file." if is_folder else f"{path}: no such sweep file.")
        if path.suffix != ".py":
            raise InputError(f"{path} is no sweep file; accepted: a .py file, or a module such as sweeps.quickstart.")
        spec = importlib.util.spec_from_file_location(f"cleansweep_sweep_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        read_text(path)  # the error names the line of bytes that are not text
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        with _own_modules(path.parent, spec.name):
            _execute(lambda: spec.loader.exec_module(module), str(path))  # type: ignore[union-attr]
        return module
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    if not all(part.isidentifier() for part in name.split(".")):
        raise _unknown(name)
    found: list[Any] = []
    with _own_modules(Path.cwd()):
        _execute(lambda: found.append(importlib.import_module(name)), name)
    return found[0]


@contextmanager
def _own_modules(folder: Path, *names: str) -> Iterator[None]:
    """Let a sweep import the modules of its folder. Workers cannot import them, so they are sent along by value."""
    before = set(sys.modules) - set(names)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # at the end, so that it hides nothing
    yield
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        file = Path(getattr(module, "__file__", None) or "/")
        own = file.is_relative_to(folder) and not file.is_relative_to(ROOT) and "site-packages" not in file.parts
        own &= name.split(".")[0] not in sys.stdlib_module_names  # Python itself may lie below the folder, such as a home
        if name in names or own:
            by_value.send_along(module)


def _execute(load: Any, name: str) -> None:
    try:
        load()
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise _unknown(name) from error
        raise InputError(f"{_where(error, name)}: {error}; install it in this environment, or correct the import.") from error
    except InputError as error:
        raise InputError(f"{_where(error, name)}: {error}") from error
    except BaseException as error:  # a sweep is a program and may raise anything, SystemExit too
        told = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".splitlines()[0]
        raise InputError(f"{_where(error, name)} cannot be read as a sweep: {told.strip(' :')}.") from error


def _unknown(name: str) -> InputError:
    shipped = sorted(path.stem for path in (ROOT / "sweeps").glob("[a-z]*.py"))
    names = ", ".join(f"sweeps.{stem}" for stem in shipped)
    return InputError(f"there is no sweep {shown(name)}. Shipped: {names}; or give the path of a .py file.")


def _where(error: BaseException, name: str) -> str:
    """Where reading the sweep stopped: its line or, for an error in a module that it imports, that module's file and line."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}, line {error.lineno}"
    read = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    return f"{read[-1].filename}, line {read[-1].lineno}" if read else name
