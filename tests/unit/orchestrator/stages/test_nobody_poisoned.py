"""Attacks without victims: a clean model, on which triggers are only measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray import tune

from datasets.attack.poison import Poison
from datasets.errors import InputError
from datasets.triggers.blended import Blended
from datasets.triggers.patch import Patch
from orchestrator.report.page import html
from orchestrator.stages.graph import stages, trained_by
from orchestrator.store import METRICS, read_lines
from tests.inprocess import run_here
from tests.tiny_sweep import BASE, SWEEP

CORNER = Poison(name="corner", trigger=Patch(size=8), target="banana", count=0)
OTHERS = (CORNER, Poison(name="all", trigger=Blended(), target="all-to-all", count=0))
PRETRAIN = replace(BASE.pretrain, epochs=1)
CLEAN = replace(BASE, poison=None, attacks=(CORNER,), pretrain=PRETRAIN, clean=replace(BASE.clean, epochs=1) if BASE.clean else None)
MORE = replace(CLEAN, attacks=OTHERS)


def test_the_triggers_are_no_part_of_the_model_and_part_of_the_measurement():
    one, more = stages(CLEAN), stages(MORE)
    assert one["poison"].fingerprint == more["poison"].fingerprint and one["clean"].fingerprint == more["clean"].fingerprint
    assert trained_by(CLEAN).digests != trained_by(MORE).digests
    planted = stages(replace(CLEAN, attacks=(replace(CORNER, count=5),)))
    assert planted["poison"].fingerprint != one["poison"].fingerprint
    also_measured = stages(replace(CLEAN, attacks=(replace(CORNER, count=5), OTHERS[1])))
    assert also_measured["pretrain"].fingerprint == planted["pretrain"].fingerprint


def test_it_has_no_victim_passes_the_gate_and_its_page_says_so(tmp_path: Path):
    code, said, study = run_here(replace(SWEEP, base=CLEAN, space={"clean.lr": tune.grid_search([1e-3])}), tmp_path)
    assert code == 0 and study, said
    (plan,) = tmp_path.glob("poison/nobody-*/plan.parquet")
    assert len(pq.read_table(plan)) == 0
    (gate,) = study.gates.values()
    last = study.pretrains[0].metrics[-1]["metrics"]
    assert gate["passed"] and gate["clean"] and gate["asr"] == last["asr/corner/top1"]
    assert "nobody was poisoned" in html(study) and "the attack took" not in html(study)

    code, _, again = run_here(replace(SWEEP, base=MORE, space={"clean.lr": tune.grid_search([1e-3])}), tmp_path)
    assert code == 0 and again and len(list(tmp_path.glob("pretrain/*-*"))) == 1, "another trigger trains nothing"
    (made,) = tmp_path.glob("pretrain/*-*")
    later = again.trials[0].metrics[-1]["metrics"]
    assert "asr/all/top1" in later and "asr/all/top1" not in read_lines(made / METRICS)[-1]["metrics"]


def test_one_attack_without_a_name_has_victims():
    with pytest.raises(InputError, match="poison.count is 0"):
        replace(BASE, poison=replace(CORNER, name=""))
