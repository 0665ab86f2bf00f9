"""Filling a matrix: the undefended models first, then one sweep a defence; after each the cells that it has filled, and the page."""

import os
import platform
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from datasets.errors import InputError
from orchestrator.console.log import log, note
from orchestrator.experiment.matrix import NONE, Matrix, Model
from orchestrator.experiment.spec import Compute
from orchestrator.report.leaderboard import write_board
from orchestrator.results.board import unequal_trials
from orchestrator.results.cells import read_cell, write_cell
from orchestrator.results.names import number_of
from orchestrator.running.driver import one_ray, run_sweep
from orchestrator.stages.graph import stages
from orchestrator.store import Store, slug
from orchestrator.sweep.matrix import cell, plans, took
from orchestrator.sweep.plan import make_plan
from orchestrator.training.ray_train import StageError

CELLS = "cells"
"""The folder of the result files beside the page."""


def folder_of(matrix: Matrix, compute: Compute) -> Path:
    """Where the cells and the page lie unless the user names a folder."""
    return Store(compute.store).root / "matrices" / slug(matrix.name)


def run_matrix(matrix: Matrix, compute: Compute, out: Path) -> tuple[Path, list[str]]:
    """Fill the matrix; returns the page and what failed. What exists is not made again.

    A model whose attack did not take is not defended where the gate's action is stop. A defence that fails leaves the others to be run.
    """
    store, failures = Store(compute.store), list[str]()
    for plan in plans(matrix).values():  # every mistake is told before anything is computed
        plan.fingerprint  # noqa: B018
    _require_cells_folder(out)
    try:
        with one_ray():
            failures += _column(matrix, NONE, matrix.models(NONE), compute, out)
            taken = took(matrix, store)
            _tell_of_gates(matrix, taken)
            for defence in matrix.defences:
                failures += _column(matrix, defence, matrix.narrowed(defence, taken), compute, out)
    except BaseException:
        with suppress(InputError, OSError):  # what it ended with is what the user is told
            write_matrix(matrix, compute, out)
        raise
    page = write_matrix(matrix, compute, out)
    if page is None:
        raise InputError(f"store {store.root} holds nothing of the matrix {matrix.name}.")
    return page, failures


def _column(matrix: Matrix, defence: str, models: Collection[Model], compute: Compute, out: Path) -> list[str]:
    """Run the sweep of a column on these models and write its cells; returns what failed."""
    if not models:
        note(f"column {defence}: no model to defend.")
        return []
    log.info(f"column {defence}: {number_of(len(models), 'model')}, {number_of(matrix.columns[defence].trials, 'setting')} each")
    failures = []
    try:
        plan = make_plan(matrix.sweep(defence, models))
        _, _, code = run_sweep(plan, compute)
        failures += [f"column {defence}: some of it failed, as said above"] if code else []
    except (StageError, InputError) as error:
        if defence == NONE and isinstance(error, InputError):
            raise  # it concerns every column
        failures.append(f"column {defence}: {error}")
        log.error("%s", failures[-1])
    write_cells(matrix, [defence], compute, out)
    return failures


def _tell_of_gates(matrix: Matrix, taken: Collection[Model]) -> None:
    for row, seed in matrix.models(NONE):
        if row != matrix.clean_row and (row, seed) not in taken:
            action = "it is not defended" if matrix.gate.action == "stop" else "it is defended all the same"
            log.warning("%s", f"row {row}, seed {seed}: the attack did not take; {action}.")


def write_cells(matrix: Matrix, defences: Collection[str], compute: Compute, out: Path) -> list[Path]:
    """Write the cells of these columns as the store has them; returns the files."""
    store, rows, columns = Store(compute.store), list(matrix.attacks), list(matrix.columns)
    return [
        write_cell(found, out / CELLS, (rows.index(row), columns.index(defence)))
        for defence in defences for row in rows if (found := cell(matrix, row, defence, store, hardware(compute)))
    ]  # fmt: skip


def write_matrix(matrix: Matrix, compute: Compute, out: Path) -> Path | None:
    """All cells that there are, and the page; None where there is none. Cells of the matrix as it was before are removed."""
    written = set(write_cells(matrix, list(matrix.columns), compute, out))
    if not written:
        return None
    for path in set((out / CELLS).glob("*.json")) - written:
        if read_cell(path)["matrix"] == matrix.name:
            path.unlink()
    return write_board(out / CELLS, out, title=f"Matrix {matrix.name}", doc=matrix.doc)


def _require_cells_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give the name of a folder.")


def hardware(compute: Compute) -> str:
    """What a training and a cleaning run on, and the processor of this machine."""
    def each(processes: int, cpus: float, gpus: float) -> str:
        return f"{processes} × {gpus:g} GPU" if gpus else f"{processes} × {cpus:g} core{'s' if cpus > 1 else ''}"

    pretraining = each(compute.workers, compute.cpus_per_worker, compute.gpus_per_worker)
    cleaning = each(compute.trial_workers, compute.trial_cpus, compute.trial_gpus)
    return f"pre-training {pretraining}, cleaning {cleaning}; {_processor()}"


def _processor() -> str:
    try:
        names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def matrix_rows(matrix: Matrix, compute: Compute) -> list[tuple[str, int, int, int, int, int]]:
    """(column, trials a model, models, pre-trainings of its own, cleanings, of both those in the store) for each column."""
    store, seen, rows = Store(compute.store), set[str](), []
    for defence, plan in plans(matrix).items():
        own: dict[str, str] = {}
        for _, experiment in plan.grid or plan.upstream:
            for role, stage in stages(experiment).items():
                if role in ("pretrain", "clean") and stage.fingerprint not in seen:
                    own[stage.fingerprint] = role
        seen |= own.keys()
        roles = list(own.values())
        stored = sum(store.find(kind, fingerprint) is not None for fingerprint, kind in own.items())
        trials, models = matrix.columns[defence].trials, len(matrix.models(defence))
        rows.append((defence, trials, models, roles.count("pretrain"), roles.count("clean"), stored))
    return rows


def plan_text(matrix: Matrix, compute: Compute) -> str:
    """What the matrix would make, a line a column."""
    rows = matrix_rows(matrix, compute)
    shape = f"{len(matrix.attacks)} attacks × {len(matrix.columns)} defences = {len(matrix.attacks) * len(matrix.columns)} cells"
    wide = max(10, *(len(row[0]) for row in rows))
    lines = [f"matrix {matrix.name}: {shape} (store {compute.store})", ""]
    lines.append(f"{'defence':{wide}} {'trials':>8} {'models':>8} {'pre-trainings':>14} {'cleanings':>10} {'stored':>8}")
    lines += [f"{name:{wide}} {trials:8} {models:8} {pre:14} {clean:10} {done:8}" for name, trials, models, pre, clean, done in rows]
    pre, clean, done = (sum(row[3] for row in rows), sum(row[4] for row in rows), sum(row[5] for row in rows))
    lines += ["", f"{number_of(pre, 'pre-training')}, {number_of(clean, 'cleaning')}; {done} of them stored, {pre + clean - done} to make."]
    lines += [f"NOTE {unequal}"] if (unequal := unequal_trials({row[0]: row[1] for row in rows if row[0] != NONE})) else []
    return "\n".join(lines)
