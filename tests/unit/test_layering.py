"""Who may import whom (ARCHITECTURE.md), read from the syntax tree, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {  # each also itself; nothing imports sweeps, which are loaded by name
    "datasets": set(),
    "trainers": {"datasets"},
    "orchestrator": {"datasets", "trainers"},
    "sweeps": {"datasets", "trainers", "orchestrator"},
}
ONLY_IN = {  # an outside package: the prefixes of the files that may import it
    "ray": ("orchestrator/", "sweeps/"),
    "mlflow": ("orchestrator/",),
    "optuna": ("orchestrator/", "sweeps/"),
    "open_clip": ("trainers/model.py", "datasets/classes.py"),
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
    for dotted, line in imports(tree):
        top = dotted.split(".")[0]
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


@pytest.mark.parametrize(
    ("name", "source"),
    [
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
        ("sweeps/x.py", "from ray import tune\nfrom orchestrator.spec import Sweep"),
    ],
)
def test_what_is_allowed_passes(name: str, source: str) -> None:
    assert not breaches(name, source)
