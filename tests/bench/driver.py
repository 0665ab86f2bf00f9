"""What the driver's own work costs beside its trials: following them, the report, MLflow and `plan`, in CPU-seconds.

The store is made by the product's own code, with a data set of 200 drawn pictures and trials of 20 epochs whose numbers are made up, so
nothing is trained and Ray is not started. `ours` is a sweep of 500 trials; `theirs` is the limit, or a sweep of 100 trials where a row
shows how the work grows: the exponent that it names is 1 where twice the trials cost twice as much.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets.seeding import rng
from orchestrator.report.page import write_report
from orchestrator.running.follow import POLL_S, Follower, Mirror
from orchestrator.stages.base import At, Stage, ensure, seal
from orchestrator.stages.graph import cleaned_by, make_data, trained_by
from orchestrator.store import METRICS, Store, digest_of, write_json, write_lines
from orchestrator.sweep.plan import Plan, make_plan
from orchestrator.sweep.stored import load_study
from orchestrator.sweep.titles import plan_titles
from orchestrator.tracking.tracker import Tracker
from orchestrator.training.measuring import MEASURED
from tests.bench.driven import BASE, EPOCHS, sweep_of
from tests.bench.measure import ROOT, Row, scratch
from tests.inprocess import without_ray
from trainers.checkpoint import epoch_folder
from trainers.evaluate.zeroshot import wilson
from trainers.weights.epoch_folder import WEIGHTS

SIZES = {"full": (100, 500, 4_000), "quick": (4, 8, 16)}
"""Trials of the small and of the large sweep, and cleanings of others in the store."""
RUNNING = 2
"""Trials that run while the others have ended."""
POLL_SHARE, REPORT_S, PAGE_MB, MLFLOW_S, PLAN_S = 0.02, 30.0, 3.0, 60.0, 1.5
"""Limits: of a core for following; CPU-seconds of the report, size of its page; CPU-seconds of MLflow and of `plan`."""
SWEEP_FILE = """from tests.bench.driven import sweep_of

SWEEP = sweep_of({trials})
"""
"""A sweep as a user writes it, but for its grid."""


def line(stage: Stage, number: int, epoch: int, seconds: float) -> dict[str, Any]:
    """A line of metrics with made-up numbers, all the names that a cleaning measures."""
    noise = rng(0, "bench", stage.kind, number, epoch)
    accuracy = float(max(2.0, 62 - 0.4 * (number % 20) * math.sqrt(epoch) + noise.normal(0, 0.6)))
    asr = float(min(100.0, max(0.0, 99 * math.exp(-0.02 * (number % 25) * epoch) + noise.normal(0, 0.8))))
    if stage.kind == "pretrain":
        accuracy, asr = 62 * (1 - math.exp(-epoch / 4)), 99 * (1 - math.exp(-epoch / 3))
    metrics: dict[str, float] = {f"train/{name}": float(noise.uniform(1, 3)) for name in ("loss", "mmcl", "inmodal", "lr", "logit_scale")}
    metrics["train/samples_per_second"] = float(noise.uniform(90, 200))
    for name, top in (("zeroshot", accuracy), ("asr", asr)):
        low, high = wilson(round(top * 100), 10_000)
        metrics |= {f"{name}/n": 10_000, f"{name}/top1": top, f"{name}/top1_count": round(top * 100), f"{name}/top1_low": low,
                    f"{name}/top1_high": high}
        metrics |= {f"{name}/top{k}{more}": value for k in (5, 10) for more, value in (("", 100.0), ("_count", 10_000))}
    metrics |= {"asr/floor": 1.1, "asr/floor_count": 110, "asr/ra": 55.5, "asr/ra_count": 5550, "zeroshot/mean_per_class": accuracy}
    return {"epoch": epoch, "step": 3 * epoch, "seconds": seconds, "metrics": metrics}


def train(store: Store, stage: Stage, number: int, epochs: int = EPOCHS, whole: bool = True) -> None:
    """Write what a training of that many epochs leaves in the store; with `whole` false it still runs."""
    lines = [line(stage, number, epoch, 1.5 * epoch) for epoch in range(epochs + 1)]
    source = stage.pretrained
    assert source is not None
    names = sorted(name for name in lines[0]["metrics"] if not name.startswith("train/"))
    measured = {source.digests[0]: {"from": 0, "names": names}}
    with store.working(stage.kind, stage.fingerprint) as folder:
        write_lines(folder / METRICS, lines)
        write_json(folder / MEASURED, {"measured": measured, "digest": digest_of(measured)})
        kept = epoch_folder(folder, epochs) / WEIGHTS
        kept.parent.mkdir()
        kept.write_bytes(b"weights")
        if whole:
            seal(stage, store, lines[-1]["seconds"])
        else:
            write_json(folder / "progress.json", {"step": 3 * epochs, "total": 60, "rate": 100.0, "batch_size": 32})


@dataclass(frozen=True)
class Made:
    """A sweep whose trials have ended, but for a few that run."""

    plan: Plan
    store: Store
    cleanings: tuple[Stage, ...]

    def ended(self) -> None:
        """End the trials that run."""
        for number in range(len(self.cleanings) - RUNNING, len(self.cleanings)):
            train_again(self.store, self.cleanings[number], number)


def train_again(store: Store, stage: Stage, number: int) -> None:
    """End a training that runs."""
    store.discard(stage.kind, stage.fingerprint)
    train(store, stage, number)


def make(folder: Path, trials: int) -> Made:
    """The store of a sweep of that many trials, `RUNNING` of which are at their second epoch."""
    store, plan = Store(folder / f"store-{trials}"), make_plan(sweep_of(trials))
    store.prepare()
    at = At(store=store)
    with without_ray():
        make_data(BASE, at)
    train(store, trained_by(BASE), 0)
    assert plan.grid is not None
    cleanings = tuple(cleaned_by(experiment) for _, experiment in plan.grid)
    ensure(cleanings[0].cleanset, at)
    for number, stage in enumerate(cleanings[:-RUNNING]):
        train(store, stage, number)
    for number, stage in enumerate(cleanings[-RUNNING:], len(cleanings) - RUNNING):
        train(store, stage, number, epochs=2, whole=False)
    return Made(plan, store, cleanings)


def crowd(store: Store, count: int) -> None:
    """Cleanings of other sweeps in the same store."""
    for number in range(count):
        fingerprint = digest_of({"other": number})
        with store.working("clean", fingerprint) as folder:
            write_json(folder / MEASURED, {})
            store.seal("clean", "cleanclip", fingerprint, config={}, inputs={}, seconds=1.0)


def cpu(work: Callable[[], object]) -> float:
    """CPU-seconds of this process."""
    gc.collect()
    began = time.process_time()
    work()
    return time.process_time() - began


def polls(made: Made, rounds: int) -> Iterator[float]:
    """CPU-seconds of one look at the store by the driver's thread, when a running trial has measured an epoch since the last one."""
    tracker = Tracker(f"sqlite:///{made.store.root / 'polled.db'}", "bench")
    tracker.check()
    follower = Follower(made.plan, made.store, Mirror(tracker, plan_titles(made.plan)))
    follower.look()
    stage, number = made.cleanings[-1], len(made.cleanings) - 1
    for epoch in range(3, 3 + rounds):
        folder = made.store.work(stage.kind, stage.fingerprint)
        write_lines(folder / METRICS, [line(stage, number, e, 1.5 * e) for e in range(epoch + 1)])
        yield cpu(follower.look)


def mirrored(made: Made, uri: str) -> None:
    """All of a sweep's runs in a new database, as at the end of a run."""
    study = load_study(made.plan, made.store)
    report = made.store.root / "reports" / "report.html"
    report.parent.mkdir(exist_ok=True)
    report.write_text("x")
    Mirror(Tracker(uri, "bench"), plan_titles(made.plan)).finish(study, report, failed=False)


def planned(sweep: str, store: Path, *flags: str) -> float:
    """CPU-seconds of `cleansweep plan`, a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "orchestrator", "plan", sweep, "--store", str(store), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def shipped_sweeps(size: str) -> dict[str, list[str]]:
    """Sweeps of the project → flags; the miniatures, which need no data."""
    texts = {path.stem: path.read_text() for path in sorted((ROOT / "sweeps").glob("[a-z]*.py"))}
    names = [name for name, text in texts.items() if "\nMINIATURE = " in text and "\nSWEEP = " in text]
    return {"quickstart": [], **{name: ["--miniature"] for name in (names if size == "full" else names[:1])}}


def within(what: str, unit: str, values: list[float], limit: float, note: str = "") -> Row:
    return Row(what, unit, values, [limit] * len(values), mark=1.0, at_least=False, note=note)


def growth(what: str, large: list[float], small: list[float], sizes: tuple[int, int]) -> Row:
    exponent = math.log(statistics.median(large) / statistics.median(small)) / math.log(sizes[1] / sizes[0])
    return Row(f"{what}, {sizes[1]} trials against {sizes[0]}", "CPU-s", large, small, note=f"exponent {exponent:.2f}")


def measured(made: Made, folder: Path, rounds: int) -> dict[str, list[float]]:
    """What each kind of work costs for this sweep, round by round."""
    trials = len(made.cleanings)
    figures = {"follow": list(polls(made, max(3, rounds)))}
    made.ended()
    study, out = load_study(made.plan, made.store), folder / f"report-{trials}"
    assert [trial.status for trial in study.trials] == ["finished"] * trials
    figures["report"] = [cpu(lambda: write_report(study, out)) for _ in range(rounds)]
    figures["page"] = [(out / "report.html").stat().st_size / 1e6]
    figures["mlflow"] = []
    for number in range(rounds):
        Tracker(uri := f"sqlite:///{folder}/{trials}-{number}.db", "bench").check()
        figures["mlflow"].append(cpu(partial(mirrored, made, uri)))
    figures["plan"] = [planned(sweep_file(folder, trials), made.store.root) for _ in range(rounds)]
    for name, values in figures.items():
        print(f"  {trials} trials, {name}: {', '.join(f'{value:.3g}' for value in values)}", flush=True)
    return figures


def sweep_file(folder: Path, trials: int) -> str:
    path = folder / f"sweep_{trials}.py"
    path.write_text(SWEEP_FILE.format(trials=trials))
    return str(path)


def run(size: str, rounds: int) -> list[Row]:
    few, many, others = SIZES[size]
    with scratch() as folder:
        small = measured(make(folder, few), folder, rounds)
        large = measured(made := make(folder, many), folder, rounds)
        crowd(made.store, others)
        crowded = [planned(sweep_file(folder, many), made.store.root) for _ in range(rounds)]
        shipped = {name: planned(f"sweeps.{name}", folder / "none", *flags) for name, flags in shipped_sweeps(size).items()}
    print("  plan of shipped sweeps: " + ", ".join(f"{name} {value:.2f}" for name, value in shipped.items()), flush=True)
    share = [value / (POLL_S + value) for value in large["follow"]]
    dearest = max(shipped, key=shipped.__getitem__)

    def grown(name: str, what: str) -> Row:
        return growth(what, large[name], small[name], (few, many))

    return [
        within(f"following {many} trials", "of a core", share, POLL_SHARE, "a look every 2 s, at one epoch that is new"),
        grown("follow", "a look"),
        within(f"report of {many} trials × {EPOCHS} epochs", "CPU-s", large["report"], REPORT_S),
        grown("report", "the report"),
        within("its page", "MB", large["page"], PAGE_MB),
        within(f"MLflow, {many} trials × {EPOCHS} epochs into a new database", "CPU-s", large["mlflow"], MLFLOW_S),
        grown("mlflow", "MLflow"),
        within(f"plan of {many} trials beside {others:,} other cleanings", "CPU-s", crowded, PLAN_S, "imports included"),
        grown("plan", "plan"),
        within("plan of the dearest shipped sweep", "CPU-s", [shipped[dearest]], PLAN_S, dearest),
    ]
