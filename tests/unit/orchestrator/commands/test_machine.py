"""`plan --machine`: the estimate is the arithmetic of the recorded figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.errors import InputError
from orchestrator.commands.machine import RATES, Machine, machine_text
from orchestrator.experiment.override import override_all
from orchestrator.store import Store
from orchestrator.sweep.plan import make_plan
from sweeps.quickstart import SWEEP
from trainers.model import Model


def text(tmp_path: Path, machine: str, **changes: object) -> str:
    model = {"pretrain.model": Model(name="RN50"), "views.size": 224, "poison.trigger.alpha": 0.2, **changes}
    sweep = replace(SWEEP, base=override_all(SWEEP.base, model))
    return machine_text(make_plan(sweep), Store(tmp_path / "store"), Machine.of(machine))


def test_hours_cores_and_bytes_are_those_of_the_measured_figures(tmp_path: Path) -> None:
    rates = json.loads(RATES.read_text())
    rate = next(step for step in rates["steps"] if step["model"] == "RN50")["pairs_per_second"]
    told = text(tmp_path, "8xh200", **{"pretrain.epochs": 100_000, "clean.epochs": 10_000})
    pairs = 100_000 * 62 * 64  # of each model; one has a loss on two views, and costs twice as much
    hours = (pairs + 2 * pairs) / rate / 3600
    assert f"pretrain: 2 to do, {2 * pairs:,} pairs, {hours:,.1f} GPU-hours, {hours / 8:,.1f} hours" in told
    each = 10_000 * 31 * 64
    hours = 6 * 2 * each / rate / 3600  # CleanCLIP has two views
    assert f"clean: 6 to do, {6 * each:,} pairs, {hours:,.1f} GPU-hours, {hours / 8:,.1f} hours" in told
    cores = 8 * rate / rates["feed"]["views_per_cpu_second"]  # half as many pairs, of two views each
    assert f"at {4 * rate:,.0f} pairs/s it needs {cores:,.0f} cores" in told
    same = {"pretrain.epochs": 100_000, "clean.epochs": 10_000, "pretrain.model": Model(name="RN50-quickgelu")}
    assert told == text(tmp_path, "8xH200", **same)
    per_second = 8 * rate
    assert f"at {per_second:,.0f} pairs/s it needs {per_second / rates['feed']['views_per_cpu_second']:,.0f} cores" in told
    assert f"{per_second * 30_000 / 1e6:,.0f} MB/s" in told


def test_another_gpu_reaches_the_same_share_of_its_peak(tmp_path: Path) -> None:
    def hours(machine: str) -> float:
        line = next(line for line in text(tmp_path, machine, **{"pretrain.epochs": 10**6}).splitlines() if "pretrain:" in line)
        return float(line.split(" pairs, ")[1].split()[0].replace(",", ""))

    assert hours("1xA100") / hours("1xH100") == pytest.approx(989 / 312, rel=1e-3)


def test_a_model_without_a_figure_is_named(tmp_path: Path) -> None:
    assert "not estimated: ViT-L-14; measured are ViT-B-32, RN50" in text(tmp_path, "1xH100", **{"pretrain.model": Model(name="ViT-L-14")})


@pytest.mark.parametrize("wrong", ["8", "0xH200", "8xA9", "H200x8", "8 x H200", ""])
def test_a_machine_that_is_none(wrong: str) -> None:
    with pytest.raises(InputError, match=r"--machine is .*accepted: a number, x and a GPU, e\.g\. 8xH200; GPUs: H200, H100"):
        Machine.of(wrong)
