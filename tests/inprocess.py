"""The product's own `run` with Ray taken out: every stage is made in this process. For tests that run hundreds of times.

MLflow and the drawing of the report are taken out too, for they cost seconds a run and are tested by themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from datasets.errors import InputError
from datasets.index.keys import mark_duplicates
from datasets.index.pairs import write_index
from datasets.index.source import Source
from orchestrator.console.log import hearing
from orchestrator.experiment.spec import Compute, Sweep
from orchestrator.results.outcome import Study
from orchestrator.running import driver, tuning
from orchestrator.stages.base import At, Stage, ensure
from orchestrator.stages.graph import stages
from orchestrator.store import Artefact, Store, write_json
from orchestrator.sweep.plan import Plan, make_plan, trial_experiment
from orchestrator.sweep.stored import Trial
from orchestrator.training import ray_train
from orchestrator.training.job import Job
from orchestrator.training.ray_train import StageError


class NoTracker:
    """Takes what MLflow would be told."""

    def __getattr__(self, name: str) -> Callable[..., str]:
        return lambda *_, **__: name


@contextmanager
def without_ray() -> Iterator[None]:
    """Within, nothing of the product starts Ray."""
    with ExitStack() as stack:
        for target, replacement in {
            "orchestrator.running.driver._ray": lambda compute: nullcontext(),
            "orchestrator.running.driver.make_tracker": lambda *_: NoTracker(),
            "orchestrator.report.page.write_report": _no_report,
            "orchestrator.running.driver.train_all": _train_all,
            "orchestrator.running.driver.measure_all": lambda wanted, at: [ensure(one, at) for one in wanted],
            "orchestrator.cluster.session.require_resources": lambda *_: None,
            "orchestrator.cluster.session.has_gpu": lambda: False,
            "orchestrator.stages.index.index_source": _index,
            "orchestrator.training.ray_train._fit": _fit,
            "orchestrator.running.stages_on_ray._ensure_apart": ensure,
            "orchestrator.running.audits.ensure_apart_each": _each,
            "orchestrator.commands.audit.make_tracker": lambda *_: NoTracker(),
            "orchestrator.commands.audit.session.connect": lambda *_: None,
            "orchestrator.running.tuning._tune": _tune,
            "ray.tune.report": lambda metrics: None,
        }.items():
            stack.enter_context(patch(target, replacement))
        yield


def run_here(sweep: Sweep, store: Path) -> tuple[int, str, Study | None]:
    """What `cleansweep run` does with its store at this place: (exit code, what it says of a failure, what came of it)."""
    said: list[str] = []
    try:
        with without_ray(), hearing(said.append):
            study, _, code = driver.run_sweep(make_plan(sweep), Compute(store=str(store), cache="off"))
    except InputError as error:
        return 2, str(error), None
    except StageError as error:
        return 1, str(error), None
    return code, "\n".join(line for line in said if line.startswith("FAILED")), study


def _no_report(study: Study, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "report.html"


def _index(source: Source, folder: Path) -> None:
    urls = source.shards()
    table = mark_duplicates(pa.concat_tables([source.index_shard(number, url) for number, url in enumerate(urls)]), urls)
    write_index([table], folder / "index.arrow")
    drops = Counter(table["drop"].to_pylist())
    kept = drops.pop("", 0)
    write_json(folder / "summary.json", {"shards": len(urls), "samples": len(table), "kept": kept, "drops": dict(drops)})


def _train_all(wanted: list[Stage], at: At) -> list[Artefact]:
    return [ensure(stage, at) for stage in wanted]


def _each(wanted: list[Stage], at: At) -> Iterator[tuple[Stage, Exception | None]]:
    for stage in wanted:
        try:
            ensure(stage, at)
            yield stage, None
        except InputError as error:
            yield stage, InputError(f"{stage}: {error}")


def _fit(job: Job, train: Callable[[Job], None], *_: Any) -> BaseException | None:
    try:
        train(job)
    except (InputError, FloatingPointError, OSError) as error:
        return error
    return None


def _tune(
    space: dict[str, Any], searcher: Any, draws: int, plan: Plan, context: tuning.Context, store: Store, compute: Compute
) -> list[Trial]:
    ended = []
    for fingerprint, overrides in context.trials.items():
        failure: Exception | None = None
        try:
            tuning._trial({tuning.NUMBER: fingerprint}, context)
        except (InputError, FloatingPointError, OSError) as error:
            failure = error
        stage = stages(trial_experiment(plan.sweep, overrides))["clean"]
        ended.append(tuning._outcome(overrides, store, stage, failure, False))
    return ended


assert ray_train._fit and driver._ray, "what is taken out is there"
