"""What must not stand in the tree: paths of one machine, package hosts, ways to run what a file says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("datasets", "trainers", "orchestrator", "sweeps")
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".html", ".j2", ".css", ".js", ".csv", ""}
UNSAFE = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "os.system"}
FORBIDDEN = re.compile(r"/(?:home|root|Users|work)/\w|index[-]url|pypi[.]org|://registry[.]|/simple/[a-z]")


def text_files() -> list[Path]:
    """The project's own text files: everything tracked lies in these folders or, as a file, at the root."""
    folders = [ROOT / name for name in (*PACKAGES, "tests", "docs", "deploy", ".ci")]
    files = [path for folder in folders for path in folder.rglob("*")] + list(ROOT.iterdir())
    files = [path for path in files if path.name != ".git"]  # a file where this is a second working tree
    return sorted(p for p in files if p.is_file() and p.suffix in TEXT and "__pycache__" not in p.parts)


def unsafe_calls(source: str) -> list[str]:
    """Calls that run or unpickle what they are given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (
            name in UNSAFE
            or (name == "torch.load" and keywords.get("weights_only") != "True")
            or (name.endswith("np.load") and keywords.get("allow_pickle") == "True")
            or keywords.get("shell") == "True"
        ):
            found.append(f"{node.lineno}: {name}")
    return found


def test_no_machine_path_and_no_package_host() -> None:
    files = text_files()
    assert ROOT / "README.md" in files and ROOT / "pyproject.toml" in files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in files
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)


def test_nothing_runs_or_unpickles_a_file() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = [f"{path.relative_to(ROOT)}:{call}" for path in files for call in unsafe_calls(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "unsafe"),
    [
        ("eval('1')", True),
        ("pickle.load(f)", True),
        ("torch.load(p)", True),
        ("torch.load(p, weights_only=True)", False),
        ("model.eval()", False),
        ("subprocess.run('ls', shell=True)", True),
    ],
)
def test_the_search_finds_what_it_looks_for(source: str, unsafe: bool) -> None:
    assert bool(unsafe_calls(source)) == unsafe
