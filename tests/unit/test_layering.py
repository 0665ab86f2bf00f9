"""Who may import whom (ARCHITECTURE.md), read from the syntax tree, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {  # each also itself; nothing imports sweeps, which are loaded by name
    "datasets": set(),
    "trainers": {"datasets"},
    "orchestrator": {"datasets", "trainers"},
    "sweeps": {"datasets", "trainers", "orchestrator"},
}
ROOMS = {  # from the bottom up: a room may import those before it; a file that lies in no room is a room of its own
    "datasets": "errors text seeding storage component captions words triggers images index synthetic evaluation attack feed acquire",
    "trainers": "encoder weights checkpoint model collectives distributed schedule record batch objectives backward detect evaluate audit "
    "methods loop optimised_patch throughput",
    "orchestrator": "failures manifest locks store console experiment cluster training stages results sweep report tracking running "
    "commands api",
}
LINES = 400
"""Of a file at most."""
ONLY_IN = {  # an outside package: the prefixes of the files that may import it
    "ray": ("orchestrator/", "sweeps/"),
    "mlflow": ("orchestrator/",),
    "optuna": ("orchestrator/", "sweeps/"),
    "open_clip": ("trainers/model.py", "trainers/encoder.py", "datasets/evaluation/classes.py"),
}
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Absolute dotted names imported anywhere below `tree` and their lines; `from a import b` gives "a.b"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def module_level(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The imports that run with the module itself: not those in functions or under `if TYPE_CHECKING`."""
    for node in tree.body:
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not typing_only and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from imports(node)


def breaches(name: str, source: str) -> list[str]:
    """What the file `name` (relative to the root) imports against the rules."""
    tree, package = ast.parse(source), name.split("/")[0]
    found = []
    rooms = ["__init__", *ROOMS.get(package, "").split(), "__main__"]
    own = name.removesuffix(".py").split("/")[1]
    for dotted, line in imports(tree):
        top, *inner = dotted.split(".")
        if top == package and own in rooms[1:] and inner and inner[0] in rooms and rooms.index(inner[0]) > rooms.index(own):
            found.append(f"{name}:{line} {own} may not import {dotted}: {inner[0]} lies above it")
        if top in MAY_IMPORT and top != package and top not in MAY_IMPORT[package]:
            found.append(f"{name}:{line} {package} may not import {dotted}")
        if top in ONLY_IN and not name.startswith(ONLY_IN[top]):
            found.append(f"{name}:{line} {top} is only for {', '.join(ONLY_IN[top])}")
        if top == "ray" and package == "sweeps" and not (dotted + ".").startswith("ray.tune."):
            found.append(f"{name}:{line} sweeps may import ray.tune, not {dotted}")
    if package == "datasets":  # Ray Data's workers import these modules, and so does `--help`
        found += [
            f"{name}:{line} {dotted} at module level: import it in the function that needs it"
            for dotted, line in module_level(tree)
            if dotted.split(".")[0] in ("torch", "torchvision", "open_clip")
        ]
    return found


def test_the_tree_keeps_the_rules() -> None:
    assert len(FILES) > 4
    found = [line for path in FILES for line in breaches(str(path.relative_to(ROOT)), path.read_text())]
    assert not found, "\n".join(found)


def test_every_room_has_its_place_and_says_what_lives_there() -> None:
    for package, rooms in ROOMS.items():
        found = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
        assert found - {"__init__", "__main__"} == set(rooms.split())
    for path in {path.parent / "__init__.py" for path in FILES}:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} says nothing"


def test_no_circle_of_imports_that_run_with_their_modules() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    after: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {dotted for dotted, _ in module_level(ast.parse(path.read_text()))}
        after[module] = {other for name in names for other in (name, name.rpartition(".")[0]) if other in modules} - {module}
    TopologicalSorter(after).prepare()  # raises CycleError


def test_no_file_is_too_long() -> None:
    found = {path: len(path.read_text().splitlines()) for package in (*MAY_IMPORT, "tests") for path in (ROOT / package).rglob("*.py")}
    assert not {path: lines for path, lines in found.items() if lines > LINES}


def test_every_test_file_has_a_name_of_its_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), f"pytest tells them apart by their names: {sorted({n for n in names if names.count(n) > 1})}"


def test_tests_lie_where_what_they_test_lies() -> None:
    for path in (ROOT / "tests/unit").rglob("test_*.py"):
        place = path.parent.relative_to(ROOT / "tests/unit")
        assert place == Path() or (ROOT / place).is_dir(), f"{path}: there is no room {place}"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("datasets/index/x.py", "from datasets.feed.loader import LocalFeed"),
        ("orchestrator/store.py", "def f():\n    from orchestrator.stages.base import ensure"),
        ("datasets/x.py", "from trainers.model import Model"),
        ("datasets/x.py", "import torch"),
        ("datasets/x.py", "def f():\n    import ray.data"),
        ("trainers/x.py", "import orchestrator.store"),
        ("trainers/loop.py", "import open_clip"),
        ("trainers/x.py", "from mlflow import MlflowClient"),
        ("orchestrator/x.py", "import sweeps.quickstart"),
        ("sweeps/x.py", "from ray import train"),
    ],
)
def test_a_breach_is_seen(name: str, source: str) -> None:
    assert breaches(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("datasets/x.py", "def f():\n    import torch"),
        ("datasets/x.py", "if TYPE_CHECKING:\n    import torch"),
        ("trainers/model.py", "import open_clip"),
        ("orchestrator/x.py", "import ray\nfrom trainers.loop import fit"),
        ("sweeps/x.py", "from ray import tune\nfrom orchestrator.experiment.spec import Sweep"),
    ],
)
def test_what_is_allowed_passes(name: str, source: str) -> None:
    assert not breaches(name, source)


def test_no_room_takes_the_name_of_what_its_package_offers() -> None:
    import orchestrator
    import orchestrator.running.driver

    for name in ("run", "study", "load_sweep"):
        assert callable(getattr(orchestrator, name)), f"orchestrator.{name} is a room: importing it hides the function"
        assert not (ROOT / "orchestrator" / name / "__init__.py").exists()
