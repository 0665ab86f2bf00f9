"""Detect, drop, train again: what is kept is what is trained on, in a pre-training and in a cleaning, and a kill in between is outlived."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest
from ray import tune

from datasets.errors import InputError
from orchestrator.commands.show import plan_rows, show
from orchestrator.experiment.override import override_all
from orchestrator.experiment.spec import Compute, Experiment, Given, Keep
from orchestrator.report.page import html
from orchestrator.report.tables import dropped_table
from orchestrator.stages.base import At, ensure
from orchestrator.stages.graph import make_data, stages
from orchestrator.stages.kept import lowest
from orchestrator.store import Store
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.stored import load_study
from tests.inprocess import run_here, without_ray
from tests.tiny_sweep import BASE, SWEEP
from trainers.detect.cosine import CosineByModel, CosineByReference
from trainers.detect.early_loss import EarlyLoss
from trainers.detect.kdistance import KDistance
from trainers.detect.lid import LID
from trainers.detect.lorex import LoREx
from trainers.detect.merit import figures
from trainers.detect.slof import SLOF
from trainers.evaluate.detection import Detection
from trainers.evaluate.mmbd import MMBD
from trainers.methods.roclip import RoCLIP
from trainers.methods.ubt import UBT

KEEP = Keep(score=SLOF(k=24, m=80), share=0.8)
assert BASE.clean is not None
CLEANED = replace(BASE.clean, epochs=1, warmup_steps=1, poisons=6, keep=Keep(score=CosineByModel(), share=0.75))
KEPT = replace(BASE, keep=KEEP, clean=CLEANED)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the tiny experiment without a keep and with one."""
    folder = tmp_path_factory.mktemp("store")
    space = {"keep": tune.grid_search([None, KEEP]), "clean.lr": tune.grid_search([1e-3])}
    with patch.dict("os.environ", {"CLEANSWEEP_LEDGER": "1"}):
        code, said, study = run_here(replace(SWEEP, base=KEPT, space=space), folder)
    assert code == 0 and study is not None, said
    assert len(study.pretrains) == 2 == len(study.trials) and not study.missing
    assert any("keep" in result.config and result.config["keep"] for result in study.pretrains)
    return folder


def artefact(store: Path, experiment: Experiment, role: str) -> Path:
    stage = stages(experiment)[role]
    found = Store(str(store)).find(stage.kind, stage.fingerprint)
    assert found is not None, role
    return found.folder


def trained_on(folder: Path) -> set[str]:
    """The keys that a training saw, by its ledger."""
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return {key for line in lines for key in line["keys"]}


def test_what_is_kept_is_what_is_trained_on(made):
    for role, kept_role, total, share in (("pretrain", "kept", 400, 0.8), ("clean", "clean_kept", 96, 0.75)):
        kept = artefact(made, KEPT, kept_role)
        table = pq.read_table(kept / "dropped.parquet").to_pydict()
        remaining = {key for key, dropped in zip(table["key"], table["dropped"]) if not dropped}
        assert len(table["key"]) == total and len(remaining) == round(share * total)
        seen = trained_on(artefact(made, KEPT, role))
        assert seen <= remaining and len(seen) >= len(remaining) - 32, role
        told = json.loads((kept / "summary.json").read_text())
        victims = [dropped for dropped, victim in zip(table["dropped"], table["victim"]) if victim]
        assert told["victims"] == len(victims) == (20 if role == "pretrain" else 6)
        assert told["victims_caught"] == sum(victims) and told["dropped"] == told["victims_caught"] + told["clean_pairs_lost"]


def test_the_lowest_scores_are_kept_and_the_scores_are_those_of_the_undefended_model(made):
    scores = pq.read_table(artefact(made, KEPT, "scores") / "scores.parquet").to_pydict()
    dropped = pq.read_table(artefact(made, KEPT, "kept") / "dropped.parquet").to_pydict()
    assert scores["key"] == dropped["key"] and scores["victim"] == dropped["victim"]
    assert set(scores["sign"]) == {1}
    values, gone = np.array(scores["score"]), np.array(dropped["dropped"])
    assert values[gone].min() >= values[~gone].max()
    told = json.loads((artefact(made, KEPT, "scores") / "summary.json").read_text())
    measured = told["figures"]["slof_m80_k24"]
    victim_N = np.array(scores["victim"])
    assert measured["n"] == 400 and measured["victims"] == 20 and measured["expected_poisons"] == 4
    assert measured["auroc"] == figures(values, victim_N)["auroc"]
    plain, kept = stages(replace(KEPT, keep=None)), stages(KEPT)
    assert kept["scorer"] == plain["pretrain"] and kept["pretrain"] != plain["pretrain"]
    assert kept["clean_scores"].inputs["pretrain"] == kept["pretrain"], "the model that is cleaned scores the cleaning set"


def test_a_keep_changes_what_lies_below_it_and_nothing_above():
    plain, kept = stages(BASE), stages(replace(BASE, keep=KEEP))
    assert [role for role in kept if role not in plain] == ["scorer", "scores", "kept"]
    assert {role for role in plain if plain[role].fingerprint != kept[role].fingerprint} == {"pretrain", "clean"}
    wider = stages(replace(BASE, keep=replace(KEEP, share=0.9)))
    assert wider["scores"] == kept["scores"] and wider["kept"] != kept["kept"]
    cleaned = stages(replace(BASE, clean=replace(BASE.clean, keep=KEEP)))
    assert {role for role in plain if plain[role].fingerprint != cleaned[role].fingerprint} == {"clean"}


def test_a_plan_lists_the_stages_and_counts_the_kept_pairs(tmp_path):
    rows = plan_rows(make_plan(replace(SWEEP, base=KEPT, space={})), Compute(store=str(tmp_path)), None)
    told = [(row["stage"], row["pairs"]) for row in rows if row["stage"] in ("pretrain", "scores", "kept", "clean")]
    assert told == [("pretrain", 768), ("pretrain", 640), ("scores", 0), ("scores", 0), ("kept", 0), ("kept", 0), ("clean", 64)]


def test_show_tells_what_was_dropped(made, capsys):
    assert show(str(made), None, True) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("kept")]
    assert len(lines) == 3, "of the pairs, and of each model's cleaning set"
    assert all(re.search(r"dropped \d+ of (400|96) pairs: caught \d+ of (20|6) victims, lost \d+ clean pairs", line) for line in lines)


def test_the_report_has_a_line_for_each_stage_that_dropped_pairs(made):
    space = {"keep": tune.grid_search([None, KEEP]), "clean.lr": tune.grid_search([1e-3])}
    study = load_study(make_plan(replace(SWEEP, base=KEPT, space=space)), Store(str(made)))
    heads, rows = dropped_table(study)
    cleanings = [("cleaning", "75 % by cosinebymodel", "24 of 96")] * 2
    assert [row[:3] for row in rows] == [("pre-training", "80 % by slof_m80_k24", "80 of 400"), *cleanings]
    page = html(study)
    assert "What was dropped" in page and all(row[-1] in page for row in rows) and len(heads) == len(rows[0])
    assert "What was dropped" not in html(replace(study, dropped=[]))


def test_a_kill_in_between_is_outlived(made, tmp_path):
    """Killed while pairs are scored, and after two steps of the second training: the same command ends with the same weights."""
    sweep = replace(SWEEP, base=replace(KEPT, clean=None), space={})
    with patch("orchestrator.stages.scored.score_pairs", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        run_here(sweep, tmp_path)
    assert list(tmp_path.glob("pretrain/*-*")) and not list(tmp_path.glob("scores/[!.]*"))

    def killed(*arguments, **fields):
        raise KeyboardInterrupt

    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("pretrain/*/manifest.json")}
    with patch("orchestrator.stages.trained.fit_on_workers", side_effect=killed), pytest.raises(KeyboardInterrupt):
        run_here(sweep, tmp_path)
    assert list(tmp_path.glob("kept/[!.]*"))
    code, said, _ = run_here(sweep, tmp_path)
    assert code == 0, said
    assert {path: path.stat().st_mtime_ns for path in first} == first
    for role in ("scores", "kept", "pretrain"):
        one, other = (json.loads((artefact(store, KEPT, role) / "manifest.json").read_text())["files"] for store in (made, tmp_path))
        same = {name for name in one if name.endswith((".parquet", ".npy", ".safetensors", "summary.json"))}
        assert same and {name: one[name] for name in same} == {name: other[name] for name in same}, role


def test_a_given_or_another_model_and_early_epochs_may_score(made):
    store = Store(str(made))
    given = Given(model=BASE.pretrain.model, checkpoint=str(artefact(made, KEPT, "scorer") / "epoch_0002"))
    for keep in (Keep(score=CosineByReference(), share=0.9, model=given), Keep(score=EarlyLoss(m=50, first=1), share=0.9),
                 Keep(score=LoREx(m=100, trusted=50), share=0.9)):  # fmt: skip
        with without_ray():
            kept = ensure(stages(replace(BASE, keep=keep))["kept"], At(store=store))
        assert json.loads((kept.folder / "summary.json").read_text())["kept"] == 360
    scored = pq.read_table(artefact(made, replace(BASE, keep=Keep(score=CosineByReference(), share=0.9, model=given)), "scores")
                           / "scores.parquet")  # fmt: skip
    own = pq.read_table(artefact(made, replace(BASE, keep=Keep(score=EarlyLoss(m=50, first=1), share=0.9)), "scores") / "scores.parquet")
    assert scored["key"].equals(own["key"]) and np.ptp(scored["score"].to_numpy()) > 0.1
    assert set(scored["sign"].to_pylist()) == {-1} == set(own["sign"].to_pylist())


def test_of_equal_scores_the_same_pairs_are_kept_in_any_order():
    keys = [f"k{number}" for number in range(20)]
    score_N = np.array([0.0] * 10 + [1.0] * 10)
    kept = {keys[place] for place in lowest(score_N, keys, 13)}
    turned = {keys[::-1][place] for place in lowest(score_N[::-1], keys[::-1], 13)}
    assert kept == turned and set(keys[:10]) < kept


def bad() -> list[tuple[str, Callable[[], object], str]]:
    given = Given(model=BASE.pretrain.model, checkpoint="/x/y")
    return [
        ("share 0", lambda: Keep(score=CosineByModel(), share=0.0), "Keep.share is 0.0; accepted: a number .above 0"),
        ("share 2", lambda: Keep(score=CosineByModel(), share=1.5), "Keep.share is 1.5; accepted"),
        ("given", lambda: stages(replace(KEPT, pretrain=given)), "keep is set, but pretrain is a given model"),
        ("reference", lambda: stages(replace(BASE, keep=Keep(score=CosineByReference(), share=0.9))), "keep.score is CosineByReference"),
        ("early", lambda: stages(replace(BASE, keep=Keep(score=EarlyLoss(m=9), share=0.9, model=given))), "keep.score is EarlyLoss"),
        ("set", lambda: stages(override_all(KEPT, {"clean.keep.score": SLOF(m=97)})), "clean.keep.score.m is 97, but .* 96 pairs"),
        ("trusted", lambda: stages(override_all(KEPT, {"clean.keep.score": LoREx(m=50, trusted=91)})), "is 91, but only 90 of the 96"),
        ("few", lambda: stages(override_all(KEPT, {"clean.keep.share": 0.3})), "clean.keep.share is 0.3, which leaves 29 of 96 pairs"),
        ("none", lambda: Detection(scores=()), "Detection.scores is empty"),
        ("twice", lambda: Detection(scores=(SLOF(), SLOF())), "'slof_m2048_k16' 2 times"),
        ("epochs", lambda: Detection(scores=(EarlyLoss(),)), "Detection.scores has EarlyLoss"),
    ]  # fmt: skip


@pytest.mark.parametrize(("what", "make", "said"), bad(), ids=[what for what, _, _ in bad()])
def test_what_cannot_be_kept_is_refused_at_once(what, make, said):
    with pytest.raises(InputError, match=said):
        make()


@pytest.mark.parametrize(("fields", "said"), [
    ({"keep.share": 0.07}, "keep.share is 0.07, which leaves 28 of 400 pairs: fewer than one batch of 32"),
    ({"keep.score": SLOF(m=401)}, "keep.score.m is 401, but there are only 400 pairs"),
    ({"keep.score": LoREx(m=50, trusted=("nobody", "else"))}, "LoREx.trusted names 'nobody'"),
    ({"evaluate.evaluators": (Detection(scores=(SLOF(m=321),)),)}, "Detection.scores: SLOF.m is 321, but there are only 320 pairs"),
    ({"evaluate.evaluators": (MMBD(at_risk=("pear",)),)}, "MMBD.at_risk names 'pear', which is not among the 4 classes"),
    ({"pretrain.objective": RoCLIP(pool=321, every=1)}, "RoCLIP.pool is 321, more than the 320 pairs"),
])  # fmt: skip
def test_too_few_pairs_are_told_before_anything_is_trained(fields, said, tmp_path):
    code, told, _ = run_here(replace(SWEEP, base=override_all(KEPT, fields), space={}), tmp_path)
    assert code == 2 and said in told and not list(tmp_path.glob("pretrain/*"))


def test_detection_measures_a_checkpoint_as_the_stage_does(made, tmp_path):
    """Its metrics are in the lines of a training, and those of the last epoch are the figures of the stage."""
    scores = (SLOF(k=24, m=80), LID(k=8, m=50), CosineByModel())
    detection = Detection(scores=scores, caught_at=(5.0, 10.0), every=0)
    wanted = replace(BASE, evaluate=replace(BASE.evaluate, evaluators=(detection,)), clean=None)
    code, said, study = run_here(replace(SWEEP, base=wanted, space={}), made)
    assert code == 0 and study is not None, said
    last = study.pretrains[0].metrics[-1]["metrics"]
    told = json.loads((artefact(made, KEPT, "scores") / "summary.json").read_text())["figures"]["slof_m80_k24"]
    for name in ("auroc", "ap", "fpr95", "caught_at_5", "caught_at_10_high", "expected_poisons", "reference_poisons", "clamped"):
        assert last[f"detect/slof_m80_k24/{name}"] == pytest.approx(told[name], abs=1e-9), name
    assert {"detect/lid_m50_k8/auroc", "detect/lid_m50_k8_low/auroc", "detect/cosinebymodel/fpr95"} <= set(last)
    assert last["detect/lid_m50_k8/auroc"] == pytest.approx(1 - last["detect/lid_m50_k8_low/auroc"])
    assert "detect/cosinebymodel/clamped" not in last
    fewer = Detection(scores=(KDistance(k=4, m=20),), pairs=120)
    code, said, study = run_here(
        replace(SWEEP, base=replace(wanted, evaluate=replace(wanted.evaluate, evaluators=(fewer,))), space={}), made
    )
    assert code == 0 and study is not None and study.pretrains[0].metrics[-1]["metrics"]["detect/kdistance_m20_k4/n"] == 120, said


def test_the_rule_is_said_before_anything_is_trained(tmp_path, said):
    crowding = override_all(KEPT, {"keep.score": SLOF(k=8, m=100), "clean": None, "pretrain.epochs": 1})
    for changes in ({"clean.keep.score": SLOF(k=4, m=48)}, {"clean.keep": None, "clean.method": UBT(share=0.1, score=SLOF(k=4, m=48))}):
        with without_ray():
            make_data(override_all(KEPT, {"clean.epochs": 2, "clean.poisons": 8, **changes}), At(store=Store(str(tmp_path))))
        assert "cleaning set: 8 of 96 pairs are poisoned" in said[-1] and "SLOF with k = 4, m = 48 (n / k = 1)" in said[-1]
    code, told, _ = run_here(replace(SWEEP, base=crowding, space={}), tmp_path)
    assert code == 0, told
    texts = ("SLOF with k = 8, m = 100 (n / k = 0.62)", "dropped 80")
    first, last = (next(number for number, line in enumerate(said) if text in line) for text in texts)
    assert first < last and "20 of 400 pairs are poisoned" in said[first]

