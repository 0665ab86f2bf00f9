"""Commands that only read import neither torch nor open_clip, which takes seconds. Each runs in a process of its own."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

from orchestrator.sweep import tune
from tests.unit.test_layering import imports

ROOT = Path(__file__).resolve().parents[4]
OURS = tuple(f"{ROOT}/{package}/" for package in ("datasets", "trainers", "orchestrator", "sweeps"))
STORED = ROOT / "tests" / "stores" / "first"
NEED_TORCH = {  # at their top: other modules import them in functions
    "trainers.detect.neighbours",
    "trainers.evaluate.probe",
    "trainers.methods.kmeans",
    "trainers.objectives.bank",
    "trainers.objectives.banks",
    "trainers.objectives.pool",
}
WATCHED = f"""
import sys, traceback

class Watch:
    importers = {{}}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in ("torch", "open_clip", "ray") and name not in cls.importers:
            frames = traceback.extract_stack()
            if any(frame.name == "_find_and_load" for frame in frames):  # find_spec alone imports nothing
                ours = [f"{{frame.filename}}:{{frame.lineno}}" for frame in frames if frame.filename.startswith({OURS!r})]
                cls.importers[name] = ours[-1] if ours else "none of our modules"

def check(*others):
    found = {{"torch", "open_clip", *others}} & set(sys.modules)
    assert not found, ", ".join(f"{{name}} was imported by {{Watch.importers.get(name)}}" for name in sorted(found))

sys.meta_path.insert(0, Watch)
"""


def watched(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", f"{WATCHED}\n{program}\ncheck()"], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=300)  # fmt: skip


def run(*commands: list[str], without: str = "") -> str:
    """What the commands print, one after another in one process that may not import torch, open_clip or the package `without`."""
    lines = ["from orchestrator.commands.cli import run", *(f"assert run({words!r}) < 2" for words in commands)]  # 1: says what is damaged
    done = watched("\n".join([*lines, f"check({without!r})"]))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_plan_needs_torch(tmp_path: Path) -> None:
    words = ["plan", "sweeps.quickstart", "--store", str(tmp_path)]
    assert "pretrain" in run(words, [*words, "--machine", "8xH200"])


def test_no_plan_of_a_shipped_sweep_needs_ray(tmp_path: Path) -> None:
    for path in (ROOT / "sweeps").glob("[a-z]*.py"):
        assert "ray" not in {name.split(".")[0] for name, _ in imports(ast.parse(path.read_text()))}, path
    small = [["plan", f"sweeps.{name}", "--miniature", "--store", str(tmp_path)] for name in ("main_cc3m", "audit")]
    assert "pretrain" in run(["plan", "sweeps.quickstart", "--store", str(tmp_path)], *small, without="ray")


def test_a_sweep_gets_ray_tunes_own_spaces() -> None:
    from ray import tune as rays

    assert tune.grid_search([1, 2]) == rays.grid_search([1, 2])
    assert tune.loguniform is rays.loguniform and tune.sample_from is rays.sample_from
    assert not hasattr(tune, "nothing_like_it")


def test_a_space_that_is_imported_by_name_spares_ray_too() -> None:
    done = watched("from orchestrator.sweep.tune import grid_search\ncheck('ray')\nassert grid_search([1]) == {'grid_search': [1]}")
    assert done.returncode == 0, done.stderr


def test_a_plan_of_ones_own_sweep_needs_no_ray_and_ray_still_gets_its_modules_by_value(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("RATES = [1e-4, 5e-3]\n")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n\nfrom beside import RATES\nfrom orchestrator.sweep import tune\n"
        "from sweeps.quickstart import SWEEP as QUICK\n\n"
        'SWEEP = replace(QUICK, name="mine", space={"clean.lr": tune.grid_search(RATES)})\n'
    )
    words = ["plan", str(tmp_path / "mine.py"), "--store", str(tmp_path / "store")]
    program = f"""
from orchestrator.commands.cli import run
assert run({words!r}) == 0
check("ray")
from orchestrator.cluster import by_value
by_value.tell_ray()
from ray import cloudpickle
assert cloudpickle.list_registry_pickle_by_value() == {{"beside", "cleansweep_sweep_mine"}}
"""
    done = watched(program)
    assert done.returncode == 0, done.stderr


def test_no_report_needs_torch(tmp_path: Path) -> None:
    stored = shutil.copytree(STORED / "store", tmp_path / "store")
    sweep, store = str(STORED / "sweep.py"), ["--store", str(stored)]
    assert "best accuracy" in run(["show", *store], ["table", sweep, *store], ["report", sweep, *store])
    assert list(stored.rglob("report.html"))


def test_files_of_open_clip_are_read_without_it() -> None:
    program = """
from datasets.evaluation.classes import class_names, templates
from trainers.model import Model, _shipped, _tags
lists = [class_names("imagenet1k"), templates("openai"), templates("simple")]
assert [len(texts) for texts in lists] == [1000, 80, 7]
Model(name="RN50-quickgelu", pretrained="openai").check()
tags = _tags()
check("ray", "huggingface_hub", "_open_clip_tags")

import open_clip
assert lists[0] == tuple(open_clip.IMAGENET_CLASSNAMES)
assert lists[1] == tuple(call("{}") for call in open_clip.OPENAI_IMAGENET_TEMPLATES)
assert lists[2] == tuple(call("{}") for call in open_clip.SIMPLE_IMAGENET_TEMPLATES)
names = open_clip.list_models()
assert len(names) > 100 and all(_shipped(name) == open_clip.get_model_config(name) for name in names)
assert _shipped("RN51") is None
pairs = tags.list_pretrained()
assert len(pairs) > 100 and pairs == open_clip.list_pretrained()
assert all(tags.get_pretrained_cfg(*pair) == open_clip.get_pretrained_cfg(*pair) for pair in pairs)
print("the same")
"""
    done = watched(program)
    assert "the same" in done.stdout, done.stderr


def test_reading_tags_leaves_the_modules_as_they_were_in_threads_and_when_it_fails() -> None:
    program = """
import importlib, threading
import huggingface_hub  # safetensors.torch would import torch
from trainers import model

def ours():
    return {name: sys.modules.get(name, "absent") for name in {*sys.modules, "safetensors.torch"}
            if name.startswith(("_open_clip", "huggingface_hub", "safetensors.torch"))}

before, found = ours(), []
start = threading.Barrier(8)

def read():
    start.wait()
    found.append(len(model._tags().list_pretrained()))

threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 8 and min(found) > 100, found
assert ours() == before, ours().keys() ^ before.keys()

model._tags.cache_clear()
real = importlib.import_module

def broken(name, package=None):
    module = real(name, package)
    if name == "_open_clip_tags.pretrained":
        raise KeyError(name)
    return module

importlib.import_module = broken
try:
    model._tags()
except KeyError:
    assert ours() == before, ours().keys() ^ before.keys()
    print("the same")
"""
    done = watched(program)
    assert "the same" in done.stdout, done.stderr


def test_components_import_without_torch() -> None:
    rooms = ("objectives", "methods", "evaluate", "detect")
    names = {f"trainers.{room}.{file.stem}" for room in rooms for file in (ROOT / "trainers" / room).glob("*.py")}
    assert len(names) > 60 and names > NEED_TORCH
    done = watched("\n".join(f"import {name}" for name in sorted(names - NEED_TORCH)))
    assert done.returncode == 0, done.stderr


def test_who_imports_torch_is_named() -> None:
    done = watched("from trainers.weights import load")
    assert done.returncode == 1 and f"torch was imported by {ROOT / 'trainers/weights/load.py'}" in done.stderr
