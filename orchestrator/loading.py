"""A sweep by its name: the module or file that defines it, with the command line's overrides in place."""

import importlib
import importlib.util
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from orchestrator.override import from_text, override_all
from orchestrator.spec import Sweep


def load_sweep(name: str, overrides: dict[str, str] | None = None, miniature: bool = False) -> Sweep:
    """The `SWEEP` of a module (`sweeps.quickstart`) or a file (`my/sweep.py`), with the command line's overrides in place.

    `miniature` takes its `MINIATURE` instead: the same sweep over the procedural world, for two cores and minutes.
    """
    module = _import(name)
    wanted = "MINIATURE" if miniature else "SWEEP"
    sweep = getattr(module, wanted, None)
    if not isinstance(sweep, Sweep):
        raise InputError(f"{name} has no {wanted} = Sweep(...); see sweeps/{'main_cc3m' if miniature else 'quickstart'}.py for an example.")
    base = sweep.base
    for path in overrides or {}:
        for varied in sweep.space:
            if f"{path}.".startswith(f"{varied}.") or f"{varied}.".startswith(f"{path}."):
                raise InputError(f"--{path}: the sweep {sweep.name} varies {varied} itself; change its space in {name}.")
    base = override_all(base, {path: from_text(base, path, text) for path, text in (overrides or {}).items()})
    doc = sweep.doc or (module.__doc__ or "").strip()
    return replace(sweep, base=base, doc=f"The miniature of: {doc}" if miniature else doc)


def _import(name: str) -> Any:
    if not name.strip():
        raise InputError("the sweep's name is empty; accepted: a .py file, or a module such as sweeps.quickstart.")
    if name.endswith(".py") or "/" in name:
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise InputError(f"{path}: no such sweep file.")
        if path.suffix != ".py":
            raise InputError(f"{path} is no sweep file; accepted: a .py file, or a module such as sweeps.quickstart.")
        spec = importlib.util.spec_from_file_location(f"cleansweep_sweep_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        _execute(lambda: spec.loader.exec_module(module), str(path))  # type: ignore[union-attr]
        _pickle_by_value(module)
        return module
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    found: list[Any] = []
    _execute(lambda: found.append(importlib.import_module(name)), name)
    return found[0]


def _pickle_by_value(module: Any) -> None:
    """Components defined in a sweep's own file must reach workers that cannot import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(module)


def _execute(load: Any, name: str) -> None:
    try:
        load()
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            shipped = sorted(p.stem for p in Path(__file__).parent.parent.joinpath("sweeps").glob("[a-z]*.py"))
            names = ", ".join(f"sweeps.{stem}" for stem in shipped)
            raise InputError(f"there is no sweep {name!r}. Shipped: {names}; or give the path of a .py file.") from error
        raise InputError(f"{_where(error, name)}: {error}") from error
    except InputError as error:
        raise InputError(f"{_where(error, name)}: {error}") from error
    except (Exception, SystemExit) as error:  # a sweep is a program and may raise anything
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{_where(error, name)} cannot be read as a sweep: {told}") from error


def _where(error: BaseException, name: str) -> str:
    """The sweep, and the line of the file under way that it came to; of a helper that it imports the helper's own."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    read = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    return f"{read[-1].filename}, line {read[-1].lineno}" if read else name
