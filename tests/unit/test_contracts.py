"""What users and stored results rely on: sweeps that build, fingerprints that stay, a command line that answers at once."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from ray import tune

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.triggers.patch import Patch
from orchestrator.commands import arguments, cli
from orchestrator.experiment.fingerprint import encode
from orchestrator.experiment.override import get, override
from orchestrator.experiment.spec import Compute, Experiment, Sweep
from orchestrator.stages.graph import stages
from orchestrator.stages.swept import encode_space
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.plan import make_plan
from sweeps.quickstart import BASE, SWEEP
from tests.baselines.make_fingerprints import FILE, fingerprints
from trainers.evaluate.linear_probe import LinearProbe
from trainers.evaluate.zeroshot import ZeroShotASR

ROOT = Path(__file__).resolve().parents[2]
MATRICES = {"sweeps.matrix"}
"""They hold sweeps of their own: one a defence (tests/unit/orchestrator/experiment/test_matrix.py)."""
SHIPPED = sorted({f"sweeps.{path.stem}" for path in (ROOT / "sweeps").glob("[a-z]*.py")} - MATRICES)
WITHOUT_MINIATURE = {"sweeps.quickstart", "sweeps.clipart", "sweeps.detection"}


@pytest.mark.parametrize("miniature", [False, True])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_sweep_builds_and_survives_a_journey(name, miniature, monkeypatch):
    monkeypatch.setattr("trainers.model.find_spec", lambda package: True)  # as where the extra `labels` is installed
    if miniature and name in WITHOUT_MINIATURE:
        with pytest.raises(InputError, match="has no MINIATURE"):
            load_sweep(name, miniature=True)
        return
    sweep = load_sweep(name, miniature=miniature)
    plan = make_plan(sweep)
    assert sweep.doc and plan.upstream
    assert pickle.loads(pickle.dumps(sweep.base)) == sweep.base
    for path in sweep.space:
        assert override(sweep.base, path, get(sweep.base, path)) == sweep.base
    assert json.loads(json.dumps(encode(sweep.base))) == encode(sweep.base)


def test_the_claims_stand_on_the_pages_of_the_study_alone():
    """On those that clean a model, at full size and as miniatures; not on a demonstration's."""
    asking = {(name, small) for name in SHIPPED for small in (False, True)
              if (name not in WITHOUT_MINIATURE or not small) and load_sweep(name, miniature=small).claims}  # fmt: skip
    silent = {*WITHOUT_MINIATURE, "sweeps.pretraining_dynamics", "sweeps.slides", "sweeps.audit"}
    assert asking == {(name, small) for name in SHIPPED for small in (False, True) if name not in silent}


def test_golden_fingerprints():
    assert fingerprints() == json.loads(FILE.read_text()), "a stored result would be made anew: `make baselines` if that is meant"


def test_compute_never_changes_a_fingerprint():
    changed = Compute(store="x", workers=8, gpus_per_worker=1, feed="ray", loader_workers=3, trial_gpus=0.25, retries=9, num_cpus=64)
    plan, other = make_plan(SWEEP), make_plan(dataclasses.replace(SWEEP, compute=changed))
    assert plan.fingerprint == other.fingerprint
    assert [s.fingerprint for s in stages(BASE).values()] == [s.fingerprint for s in stages(other.sweep.base).values()]


def test_what_only_changes_how_a_stage_runs_is_left_out():
    assert stages(override(BASE, "pretrain.checkpoint_every_steps", 5))["pretrain"] == stages(BASE)["pretrain"]
    assert stages(override(BASE, "evaluate.batch_size", 5))["pretrain"] == stages(BASE)["pretrain"]


def test_a_change_makes_new_what_lies_below_it_and_nothing_above():
    def changed(path, value):
        before, after = stages(BASE), stages(override(BASE, path, value))
        return {role for role in before if before[role].fingerprint != after[role].fingerprint}

    assert changed("clean.lr", 0.5e-3) == {"clean"}
    assert changed("clean.pairs", 500) == {"cleanset", "clean"}
    assert changed("pretrain.lr", 1e-3) == {"pretrain", "clean"}
    assert changed("poison.count", 60) == {"poison", "pretrain", "cleanset", "clean"}
    assert changed("data.source.seed", 5) == {"world", "index", "poison", "pretrain", "cleanset", "clean"}


def test_files_are_known_by_content_and_name_and_not_by_place(tmp_path):
    from datasets.index.source import Source
    from tests.unit.making import members, tar

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tar(tmp_path / folder / "0.tar", members(0, 2))
    at = [stages(override(BASE, "data.source", Source(urls=str(tmp_path / f / "0.tar"))))["index"].fingerprint for f in "ab"]
    assert at[0] == at[1]
    tar(tmp_path / "b" / "0.tar", members(5, 2))
    from orchestrator.experiment.identity import IDENTITIES

    IDENTITIES.clear()
    stages.cache_clear()
    assert stages(override(BASE, "data.source", Source(urls=str(tmp_path / "b" / "0.tar"))))["index"].fingerprint != at[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"search": "magic"}, "grid, optuna"),
        ({"metric": "nonsense"}, "zeroshot/top1"),
        ({"grace_epochs": 0}, "at least 1"),
        ({"num_samples": 3, "space": {"clean.lr": tune.grid_search([1e-3])}}, "clean.seed"),
        ({"search": "optuna", "space": {"clean.lr": tune.grid_search([1e-3])}}, "num_samples"),
        ({"search": "optuna", "space": {"clean.lr": tune.grid_search([1e-3]), "clean.weight_decay": tune.uniform(0, 1)}}, "tune.choice"),
        ({"space": {"clean.lr": tune.sample_from(lambda spec: 1e-3)}}, "no bounds"),
    ],
)
def test_a_search_that_cannot_be_is_refused(fields, said):
    with pytest.raises(InputError) as error:
        make_plan(Sweep(name="x", base=BASE, **fields))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("evaluators", "kind"),
    [
        ((LinearProbe(train=EvalSet(path="a")), LinearProbe(train=EvalSet(path="b"))), "LinearProbe"),
        ((ZeroShotASR(class_names=("a", "b"), templates=("{}",)),), "ZeroShotASR"),
    ],
)
def test_evaluators_whose_metrics_have_the_same_names_are_refused(evaluators, kind):
    base = dataclasses.replace(BASE, evaluate=dataclasses.replace(BASE.evaluate, evaluators=evaluators))
    with pytest.raises(InputError, match=f"evaluate.evaluators: {kind} would be measured twice.*once each"):
        make_plan(Sweep(name="x", base=base))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"clean.lrr": tune.grid_search([1])}, "clean.lrr"),
        ({"clean.lr": tune.grid_search([])}, "empty"),
        ({"clean.lr": tune.grid_search(["fast"])}, "a number"),
        ({"pretrain.lr": tune.loguniform(1e-4, 1e-2)}, "grid_search"),
        ({"clean.epochs": tune.uniform(1.5, 2.5)}, "whole number"),
        ({"poison.target": tune.grid_search(["zebra"])}, "zebra"),
        ({"views.size": tune.grid_search([64])}, "32"),
        ({"poison.trigger": tune.grid_search([Patch(size=40)])}, "40"),
        ({"clean.choice": tune.grid_search(["first"])}, "random, last"),
    ],
)
def test_a_wrong_space_is_refused_before_anything_runs(space, said):
    with pytest.raises(InputError) as error:
        make_plan(Sweep(name="x", base=BASE, space=space))
    assert said in str(error.value)


def test_spaces_have_a_stable_text():
    assert encode_space(tune.loguniform(1e-4, 1e-2), "x") == encode_space(tune.loguniform(1e-4, 1e-2), "x")
    drawn = [tune.loguniform(1e-4, 1e-2), tune.uniform(1e-4, 1e-2), tune.quniform(0, 1, 0.1), tune.choice([1, 2])]
    different = [*drawn, tune.grid_search([1, 2])]
    texts = [json.dumps(encode_space(space, "x"), sort_keys=True) for space in different]
    assert len(set(texts)) == len(texts)


def test_the_command_lines_compute_flags_are_the_fields_of_compute():
    given = {f.name: f.default or "x" if isinstance(f.default, str) else f.default for f in dataclasses.fields(Compute)}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    options = vars(arguments.parser().parse_args(["run", "sweeps.quickstart", *words]))
    assert {name: options[name] for name in given} == given
    assert {name: type(options[name]) for name in given} == {name: type(value) for name, value in given.items()}
    for cls in (Compute, Experiment):
        assert [f.name for f in arguments.fields_of(cls.__name__)] == [f.name for f in dataclasses.fields(cls)]
    assert all(field.doc for field in arguments.fields_of("Compute"))


def python(program: str, timeout: float = 60) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_neither_torch_nor_ray():
    for words in (["--help"], ["run", "--help"]):
        program = (
            "import sys\nfrom orchestrator.commands.cli import run\n"
            f"try:\n    run({words!r})\nexcept SystemExit as end:\n    assert not end.code\n"
            "heavy = {'torch', 'ray', 'mlflow', 'open_clip', 'numpy', 'pyarrow'} & set(sys.modules)\nassert not heavy, heavy"
        )
        assert "usage: cleansweep" in python(program)


def test_what_only_reads_starts_no_ray(tmp_path):
    store = ["--store", str(tmp_path)]
    printed = python(
        "import ray\nfrom orchestrator.commands.cli import run\n"
        f"import os\nassert run(['plan', 'sweeps.quickstart', *{store}]) == 0\n"
        f"assert os.listdir({str(tmp_path)!r}) == [], 'planning writes nothing'\n"
        f"for words in (['show', *{store}], ['report', 'sweeps.quickstart', *{store}], ['claims', 'sweeps.quickstart', *{store}]):\n"
        "    assert run(words) in (0, 2), words\n"
        "assert not ray.is_initialized()"
    )
    assert "39 680" in printed, "10 epochs of 62 steps of 64 pairs"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "sweeps.nothing"], "sweeps.quickstart"),
        (["plan", "no/such/file.py"], "no such sweep file"),
        (["plan", "orchestrator.experiment.spec"], "SWEEP"),
        (["plan", "sweeps.quickstart", "--clean.lrr", "1"], "Did you mean"),
        (["plan", "sweeps.quickstart", "--clean.lr", "1"], "varies clean.lr itself"),
        (["plan", "sweeps.quickstart", "--pretrain.epochs", "two"], "a whole number"),
        (["plan", "sweeps.quickstart", "--pretrain.epochs"], "needs a value"),
        (["plan", "sweeps.quickstart", "--wokers", "2"], "--wokers"),
        (["plan", "sweeps.quickstart", "--pretrain.objective.inmodal_weight", "4"], "varies it itself, in its grid of pretrain.objective"),
        (["plan", "sweeps.quickstart", "--seeds", ""], "--seeds: '' is no list of seeds"),
        (["run", "sweeps.quickstart", "--seeds", "0,1,0"], "each once"),
        (["report", "sweeps.quickstart", "--seeds=-1,2"], "from 0 up"),
        (["report", "sweeps.quickstart", "--seeds", "-1,2"], "--seeds: it needs a value, which begins with no dash"),
        (["plan", "sweeps.quickstart", "--seeds", "-1"], "from 0 up"),
        (["claims", "sweeps.quickstart", "--seeds", "0,one"], "whole numbers"),
        (["plan", "sweeps.quickstart", "--seeds", "0,1", "--pretrain.seed", "3"], "--seeds and --pretrain.seed both"),
        (["plan", "sweeps.quickstart", "--clean.warmup_steps", "5000"], "warmup"),
        (["plan", "sweeps.quickstart", "--evaluate.batch_size", "0"], "evaluate.batch_size is 0"),
        (["plan", "sweeps.quickstart", "--pretrain.model.vision_width", "0"], "model.vision_width is 0"),
        (["plan", "sweeps.quickstart", "--eda", "daily"], "once, per_epoch"),
        (["plan", "sweeps.quickstart", "--clean", "None"], "varies clean"),
        (["plan", "sweeps.quickstart", "--samples-per-second", "0"], "above 0"),
        (["plan", "sweeps.quickstart", "sweeps.main_cc3m"], "plan takes one sweep"),
        (["plan", "sweeps.quickstart", "--store", ""], "--store is empty"),
        (["plan"], "sweep"),
        (["plan", "/etc/passwd"], "a .py file"),
        (["plan", ""], "the sweep's name is empty"),
        (["plan", "sweeps.quickstart", "--workers", "x"], "--workers: 'x' is no whole number"),
        (["ingest", "a", "b", "--resize", "big"], "--resize: 'big' is no whole number"),
        (["fetch", "a", "b", "--rate", "nan"], "--rate: 'nan' is no number"),
        (["run", "sweeps.quickstart", "--gate", "ajar"], "--gate: invalid choice: 'ajar'"),
        (["plan", "sweeps.quickstart", "--workers", "0"], "at least 1"),
        (["plan", "sweeps.quickstart", "--trial-gpus", "2"], "at most one GPU"),
        (["plan", "sweeps.quickstart", "--workers", "2", "--gpus-per-worker", "0.5"], "cannot share a GPU"),
        (["plan", "sweeps.quickstart", "--feed", "carrier-pigeon"], "local, ray"),
        (["plan", "sweeps.quickstart", "--cache", "here"], "absolute path"),
        (["plan", "sweeps.quickstart", "--poison.target", "zebra"], "zebra"),
        (["plan", "sweeps.quickstart", "--poison.count", "0"], "count"),
        (["plan", "sweeps.quickstart", "--pretrain.model.image_size", "64"], "views.size"),
        (["show", "--store", "/no/such/store"], "does not exist"),
        (["ui", "--store", "/no/such/store"], "run a sweep first"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_code_2(words, said, capsys):
    assert cli.run(words) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and error.count("\n") == 1
