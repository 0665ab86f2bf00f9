"""`analyse`: the analysis of training pairs that a sweep can make after every epoch, for stored checkpoints."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.storage import write_whole
from orchestrator.cluster import session
from orchestrator.console.log import log, recording
from orchestrator.experiment.spec import Compute, Experiment
from orchestrator.results.outcome import StageResult
from orchestrator.stages.base import At
from orchestrator.stages.graph import knowing_made, make_data
from orchestrator.store import Store, slug, write_arrays, write_json
from orchestrator.sweep.plan import Plan
from trainers.distributed import World
from trainers.evaluate.analysis import Analysis
from trainers.evaluate.base import Material


def analyse_checkpoints(experiments: dict[str, Experiment], compute: Compute, out: Path) -> dict[str, dict[str, float]]:
    """Checkpoint (epoch folder, file or open_clip tag) → its metrics, by the analysis of its experiment or the usual one.

    Pictures, arrays and numbers go to `out`, a folder a stage.
    """
    from orchestrator.training.job import load_model, measured_as

    store = Store(compute.store)
    store.prepare()
    with recording(store.root, "analyse"):
        log.debug("analysed are %s", ", ".join(experiments))
        with session.joined():
            materials = {one: _material(one, store) for one in dict.fromkeys(experiments.values())}
        world = World.current() if compute.gpus_per_worker else World()
        stages: dict[Path, list[dict[str, Any]]] = {}
        found = {}
        for number, (checkpoint, experiment) in enumerate(experiments.items()):
            name, epoch = _name(checkpoint, number)
            analysis = next((e for e in experiment.evaluate.evaluators if isinstance(e, Analysis)), Analysis())
            encoder = load_model(experiment, checkpoint).place(world.device)
            with measured_as(checkpoint):
                values = analysis.measure(encoder, analysis.open(materials[experiment]), world)
            write_arrays(
                out / name / "analysis" / f"epoch_{epoch:04d}.npz", {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
            )
            found[checkpoint] = {key: value for key, value in values.items() if not isinstance(value, np.ndarray)}
            stages.setdefault(out / name, []).append({"epoch": epoch, "metrics": found[checkpoint]})
        for folder, lines in stages.items():
            write_json(folder / "numbers.json", lines)
            _draw(StageResult(stage="", name=folder.name, fingerprint="", folder=folder, config={}, metrics=lines))
    log.info(f"pictures: {out}")
    return found


def analysis_folder(plan: Plan, store: Store) -> Path:
    """The folder of a sweep's analyses, unless another is named."""
    return store.root / "analysis" / f"{slug(plan.sweep.name)}-{plan.fingerprint[:12]}"


def _material(experiment: Experiment, store: Store) -> Material:
    """The pairs that the experiment trains on. Its data are made if the store lacks them."""
    at = At(store=store)
    inputs = make_data(experiment, at)
    experiment = knowing_made(experiment, at)
    return Material(
        test=tuple,  # an analysis uses only training pairs
        pairs=inputs.pairs(),
        recipe=experiment.recipe(seed=experiment.evaluate.seed),
        batch_size=experiment.evaluate.batch_size,
    )


def _name(checkpoint: str, number: int) -> tuple[str, int]:
    """(name of the folder for its figures, epoch): those of its stage or, for another file, the file's name and its number."""
    path = Path(checkpoint).resolve()
    epoch = re.fullmatch(r"epoch_(\d+)", path.name)
    return (path.parent.name, int(epoch[1])) if epoch else (slug(path.stem), number)


def _draw(stage: StageResult) -> None:
    """Draw a figure of each checkpoint and, if there are several, one of all together."""
    from orchestrator.report.analysis import portrait
    from orchestrator.report.drawing import png

    shown = {f"epoch_{line['epoch']:04d}": replace(stage, metrics=[line]) for line in stage.metrics}
    if len(shown) > 1:
        shown["epochs"] = stage
    for name, part in shown.items():
        figure = portrait(part)
        if figure is not None:
            write_whole(stage.folder / f"{name}.png", png(figure))
