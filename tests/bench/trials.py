"""What a sweep's trial costs beside its training: cleanings that train one step, against Tune trials that do nothing.

Seconds a trial are the wall time of the whole sweep over its trials, Tune's own start and end included, nothing subtracted,
with the same resources and as many trials side by side on both sides. A trial of ours finds its inputs, makes the cleaning
set (once), builds the model, loads the checkpoint, evaluates before and after one epoch of one step on a few pictures,
saves a checkpoint and seals its folder.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets.attack.poison import Poison
from datasets.images.view import Views
from datasets.synthetic import tiny
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Clean, Compute, Data, Evaluate, Experiment, Gate, Pretrain, Sweep
from orchestrator.running.tuning import clean_sweep
from orchestrator.stages.base import At, ensure
from orchestrator.stages.graph import make_data, trained_by
from orchestrator.store import Store
from orchestrator.sweep.plan import make_plan
from tests.bench.measure import Meter, Row, alternate, ray_session, scratch
from tests.bench.peers import nothing
from trainers.methods.finetune import MMCLFineTune
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL

SIZES = {"full": (12, 48), "quick": (2,)}
"""Trials of a sweep: the start of the processes, which later trials use again, is shared by more of them in a larger one."""
WORLD = tiny(train=200, test=40)
BASE = Experiment(
    data=Data(source=WORLD), views=Views(size=32), evaluate=Evaluate(data=WORLD),
    poison=Poison(trigger=Patch(size=6), target="banana", count=10),
    pretrain=Pretrain(model=TinyCLIP(), objective=MMCL(), epochs=1, batch_size=32, lr=1e-3, warmup_steps=0),
    clean=Clean(method=MMCLFineTune(), pairs=32, epochs=1, batch_size=32, lr=1e-3, warmup_steps=0),
)
COMPUTE = Compute(workers=1)


def tune_peer(function: Any, trials: int, folder: Path) -> None:
    """A plain Tune run of a function, with the same resources a trial."""
    from ray import tune

    with contextlib.redirect_stdout(io.StringIO()):  # a line for each trial that reported nothing
        results = tune.Tuner(
            tune.with_resources(function, {"cpu": COMPUTE.trial_cpus}),
            param_space={"x": tune.grid_search(list(range(trials)))},
            run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
        ).fit()
    assert len(results) == trials and not results.errors


def run(size: str, rounds: int) -> list[Row]:
    from ray import tune

    with scratch() as folder, ray_session():
        store = Store(folder / "store")
        store.prepare()
        at = At(store=store, compute=COMPUTE)
        make_data(BASE, at)
        models = [ensure(trained_by(BASE), at).fingerprint]
        rates = itertools.count(1)  # each sweep has learning rates of its own, so that nothing is found in the store

        def timed(work: Any, count: int) -> dict[str, float]:
            with Meter() as used:
                work(count)
            return {"wall": used.wall / count, "cpu": used.cpu / count}

        def sweep(count: int) -> None:
            grid = [next(rates) * 1e-6 for _ in range(count)]
            spec = Sweep(name="bench", base=BASE, space={"clean.lr": tune.grid_search(grid)}, gate=Gate(min_asr=0.0))
            done = clean_sweep(make_plan(replace(spec, compute=COMPUTE)), models, at)
            assert [trial.status for trial in done] == ["finished"] * count, done

        def peer(function: Any) -> Any:
            return lambda count: tune_peer(function, count, folder / "tune")

        timed(sweep, 2), timed(peer(nothing), 2)  # the first ones fill caches on both sides
        rows = []
        for trials in SIZES[size]:
            ours, theirs = alternate(partial(timed, sweep, trials), partial(timed, peer(nothing), trials), rounds)
            detail = {"ours": ours, "theirs": theirs}
            rows += [
                Row(f"a trial, {trials} on two cores", "s/trial", ours["wall"], theirs["wall"], mark=0.7, at_least=False, detail=detail,
                    note="wall time of the sweep over its trials; ours also trains, evaluates and stores something small"),
                Row("the same, all processes", "CPU-s/trial", ours["cpu"], theirs["cpu"]),
            ]
        return rows
