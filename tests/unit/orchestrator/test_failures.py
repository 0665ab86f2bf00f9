"""A failure has a kind by the type of its error; its words decide nothing."""

import errno
import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from datasets.errors import InputError
from orchestrator import failures
from orchestrator.running.tuning import NUMBER, Context, _outcome, _trial
from orchestrator.stages.base import At, ensure
from orchestrator.stages.cleanset import CleaningSet
from orchestrator.stages.graph import stages
from orchestrator.store import FAILED, METRICS, Store, write_json, write_lines
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.stored import load_study
from orchestrator.training.job import Job, making
from orchestrator.training.ray_train import StageError, raise_failure
from tests.tiny_sweep import SWEEP
from tests.unit.fake_study import line
from trainers.distributed import World


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


def lost() -> BaseException:
    import ray

    return ray.exceptions.ActorDiedError()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: InputError("x"), "input"),
        (lambda: FloatingPointError("loss is nan"), "diverged"),
        (lambda: MemoryError("std::bad_alloc"), "out_of_memory"),
        (lambda: torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (lambda: OSError(errno.ENOMEM, "x"), "out_of_memory"),
        (lambda: OSError(errno.ENOSPC, "x"), "disk_full"),
        (lambda: OSError(errno.EDQUOT, "x"), "disk_full"),
        (lambda: caused(RuntimeError("x"), FloatingPointError("y")), "diverged"),
        (lost, "lost_process"),
        (lambda: ValueError("training diverged: CUDA out of memory, FloatingPointError, not finite"), "error"),
    ],
)
def test_the_kind_of_an_error(make, kind):
    assert failures.kind_of(make()) == kind


@pytest.mark.parametrize(("error", "kind"), [(FloatingPointError("loss is nan"), "diverged"), (MemoryError(), "out_of_memory")])
def test_a_training_process_writes_the_kind_and_the_trial_has_it(tmp_path, error, kind):
    store, stage = Store(tmp_path), stages(SWEEP.base)["clean"]
    folder = store.work("clean", stage.fingerprint)
    folder.mkdir(parents=True)
    job = Job(experiment=SWEEP.base, inputs=None, folder=str(folder), compute=SWEEP.compute, stage="clean")  # type: ignore[arg-type]
    with pytest.raises(type(error)), making(job, World()):
        raise error
    assert json.loads((folder / FAILED).read_text())["kind"] == kind
    trial = _outcome({}, store, stage, error, False)
    assert (trial.status, trial.failure) == ("failed", kind) and trial.error


def test_a_process_that_was_lost_is_known_afterwards(tmp_path):
    store, stage = Store(tmp_path), stages(SWEEP.base)["clean"]
    store.work("clean", stage.fingerprint).mkdir(parents=True)
    trial = _outcome({}, store, stage, lost(), False)  # type: ignore[arg-type]
    assert trial.failure == json.loads((store.work("clean", stage.fingerprint) / FAILED).read_text())["kind"] == "lost_process"


def test_a_pretraining_that_lost_its_process_is_known_afterwards_and_can_go_on(tmp_path):
    plan, store = make_plan(SWEEP), Store(tmp_path)
    stage = stages(plan.upstream[0][1])["pretrain"]
    with store.working("pretrain", stage.fingerprint) as folder:
        with pytest.raises(StageError, match="lost its process.*continues from there"):
            raise_failure(stage, folder, lost())
        assert json.loads((folder / FAILED).read_text())["kind"] == "lost_process"
        write_lines(folder / METRICS, [line(0, 80.0, 97.0)])
    (result,) = load_study(plan, store).pretrains
    assert (result.status, result.failure) == ("failed", "lost_process")
    own = patch.multiple(type(stage), needs=(), read=lambda *_: None)
    with own, patch("orchestrator.training.ray_train._fit", lambda job, *_: write_lines(Path(job.folder) / METRICS, [line(1, 80.0, 97.0)])):
        made = ensure(stage, At(store=store, compute=SWEEP.compute))
    assert not (made.folder / FAILED).exists()


def test_no_word_of_an_error_is_searched_in_the_orchestrator():
    root = Path(failures.__file__).parent
    sources = [path.read_text() for path in root.rglob("*.py")]
    for spelled in ('" in str(error)', "in said for words", '" in message', '" in text for'):
        assert not any(spelled in source for source in sources), spelled


def test_what_an_earlier_attempt_failed_of_is_not_taken_for_this_one(tmp_path):
    plan, store = make_plan(SWEEP), Store(tmp_path)
    overrides, experiment = plan.grid[0]
    stage = stages(experiment)["clean"]
    with store.working("clean", stage.fingerprint) as folder:
        write_json(folder / FAILED, {"kind": "input", "error": "an old mistake", "rank": 0})
    context = Context(SWEEP, str(tmp_path), SWEEP.compute, {}, {}, plan.fingerprint, trials={stage.fingerprint: overrides})

    def damaged(self, at):
        raise InputError("a new one, of what the cleaning is made from")

    with patch.object(CleaningSet, "make", damaged), patch.object(CleaningSet, "needs", ()), pytest.raises(InputError, match="a new one"):
        _trial({NUMBER: stage.fingerprint}, context)
