"""`plan --machine 8xH200`: how long a sweep takes on GPUs, estimated from what was measured, and what it asks of cores and storage.

The figures are those of BENCHMARKS.md, in `results/data/rates.json`; another GPU is taken to reach the same share of its peak.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from datasets.errors import InputError
from orchestrator.stages.base import Stage, walk
from orchestrator.stages.index import Index, read_index
from orchestrator.store import Store
from orchestrator.sweep.plan import Plan
from trainers.throughput import PEAK_TFLOPS

RATES = Path(__file__).parents[1] / "results" / "data" / "rates.json"
PICTURE_BYTES = 30_000
"""Of a pair's picture where no index is stored: a 256 px JPEG as img2dataset writes them."""
SECOND_VIEW = 2
"""A loss on two views of picture and caption runs the model on twice as much."""


@dataclass(frozen=True)
class Machine:
    """So many GPUs of a kind."""

    count: int
    gpu: str

    @classmethod
    def of(cls, text: str) -> Machine:
        """`8xH200`. InputError for anything else."""
        found = re.fullmatch(r"([1-9]\d{0,4})x(\w+)", text)
        names = {name.lower(): name for name in PEAK_TFLOPS}
        if found is None or found[2].lower() not in names:
            raise InputError(f"--machine is {text!r}; accepted: a number, x and a GPU, e.g. 8xH200; GPUs: {', '.join(PEAK_TFLOPS)}.")
        return cls(int(found[1]), names[found[2].lower()])


def machine_text(plan: Plan, store: Store, machine: Machine) -> str:
    """An estimate for what is still to be trained, with what it is made of."""
    rates: dict[str, Any] = json.loads(RATES.read_text())
    left = [stage for stage in plan.known().values() if stage.trained_by is not None and not store.find(stage.kind, stage.fingerprint)]
    lines = [f"On {machine.count} {machine.gpu}, estimated from figures of {rates['source']}:"]
    unknown: list[str] = []
    for kind in dict.fromkeys(stage.kind for stage in left):
        stages = [stage for stage in left if stage.kind == kind]
        costs = [(stage, _rate(stage, rates, machine.gpu)) for stage in stages]
        unknown += [_model_name(stage) for stage, rate in costs if rate is None]
        known = [(stage.pairs(store), rate) for stage, rate in costs if rate is not None]
        counted = [(pairs, rate) for pairs, rate in known if pairs is not None]
        if len(counted) < len(known):
            lines.append(f"  {kind}: {len(known) - len(counted)} of {len(stages)} have no number of pairs until the shards are indexed")
        if counted:
            seconds = sum(pairs / rate for pairs, rate in counted)
            lines.append(
                f"  {kind}: {len(counted)} to do, {sum(pairs for pairs, _ in counted):,} pairs, {seconds / 3600:,.1f} GPU-hours, "
                f"{seconds / 3600 / machine.count:,.1f} hours"
            )
            fastest = max(stages, key=lambda stage: _rate(stage, rates, machine.gpu) or 0)
            views = SECOND_VIEW if _two_views(fastest) else 1
            lines.append(_demand(max(rate for _, rate in counted) * machine.count, views, rates, _mean_bytes(stages, store)))
    if unknown:
        measured = ", ".join(step["model"] for step in rates["steps"])
        lines.append(f"  not estimated: {', '.join(dict.fromkeys(unknown))}; measured are {measured}")
    if len(lines) == 1:
        lines.append("  nothing is left to train")
    lines.append("  Left out: evaluations, starts, and what GPUs wait for each other, which was never measured.")
    return "\n".join(lines)


def _rate(stage: Stage, rates: dict[str, Any], gpu: str) -> float | None:
    """Pairs a second of a GPU in this training; None for a model that was never measured."""
    name = _model_name(stage).removesuffix("-quickgelu")  # another activation; the same products
    step = next((step for step in rates["steps"] if step["model"] == name), None)
    if step is None:
        return None
    views = SECOND_VIEW if _two_views(stage) else 1
    return float(step["pairs_per_second"] * PEAK_TFLOPS[gpu] / PEAK_TFLOPS[step["gpu"]] / views)


def _model_name(stage: Any) -> str:
    model = stage.experiment.pretrain.model
    return getattr(model, "name", type(model).__name__)


def _two_views(stage: Stage) -> bool:
    """Whether its loss sees two views; methods of which that is not known are taken to."""
    return bool(getattr(stage.trained_by, "two_views", True))


def _demand(pairs_per_second: float, views: int, rates: dict[str, Any], size: float) -> str:
    cores = pairs_per_second * views / rates["feed"]["views_per_cpu_second"]
    return (
        f"    at {pairs_per_second:,.0f} pairs/s it needs {cores:,.0f} cores that decode and {pairs_per_second * size / 1e6:,.0f} MB/s in "
        f"reads of {size / 1000:,.0f} KB; with less of either, that decides"
    )


def _mean_bytes(stages: Iterable[Stage], store: Store) -> float:
    """Bytes of a pair's picture: the mean of the first stored index, or `PICTURE_BYTES`."""
    for index in (needed for needed in walk(*stages) if isinstance(needed, Index)):
        found = store.find(index.kind, index.fingerprint)
        if found is not None:
            return float(pc.mean(read_index(str(found.folder / "index.arrow"))["length"]).as_py() or PICTURE_BYTES)
    return PICTURE_BYTES
