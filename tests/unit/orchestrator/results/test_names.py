"""A component says its own name, and a lab's own is never printed, pooled, coloured or judged as one of the study's."""

import csv
import io
import json
from dataclasses import dataclass, field, replace

import pytest

from datasets.errors import InputError
from orchestrator.commands.show import _titles
from orchestrator.experiment.fingerprint import described, encode, fingerprint
from orchestrator.report.drawing import look
from orchestrator.report.rendering import render
from orchestrator.report.scatter import scatter
from orchestrator.report.tables import headline, pareto_csv, points_csv, summary, summary_text
from orchestrator.results import kinds
from orchestrator.results.claims import judged
from orchestrator.results.names import method_of, objective_of
from orchestrator.results.points import panels
from orchestrator.results.selection import table
from orchestrator.stages.graph import stages
from orchestrator.store import Artefact, Store
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.titles import plan_titles
from sweeps._study_claims import CLAIMS
from tests.tiny_sweep import SWEEP
from tests.unit.fake_study import fake_study, seeded_study
from tests.unit.making import make_of
from trainers.methods.base import Method
from trainers.methods.deep_clustering import DeepClustering
from trainers.methods.finetune import CleanCLIP, FineTune, MMCLFineTune, SSLFineTune
from trainers.methods.shrink_perturb import ShrinkPerturb
from trainers.objectives.contrastive import MMCL, MMCLSSL, SSL, Contrastive
from trainers.objectives.siglip import SigLIP


@dataclass(frozen=True, kw_only=True)
class Guard(Method):
    """Has the fields of the study's fine-tunings and does something else."""

    clip_weight: float = 1.0
    inmodal_weight: float = 1.0

    def train(self, model, run):
        return model


@dataclass(frozen=True, kw_only=True)
class Longer(CleanCLIP):
    """A lab's variant, without a label of its own."""


@dataclass(frozen=True, kw_only=True)
class Named(CleanCLIP):
    """A lab's variant that calls itself what the study's method is called."""

    @property
    def label(self):
        return "CleanCLIP"


@dataclass(frozen=True, kw_only=True)
class Wrapped(Method):
    objective: MMCL = field(default_factory=MMCL)
    """Named as the pre-training's: the order of fields decides nothing."""
    method: Method = field(default_factory=CleanCLIP)

    def train(self, model, run):
        return model


@dataclass(frozen=True, kw_only=True)
class Aligned(MMCL):
    """A lab's objective, derived from the study's."""


def one(component, as_objective=False):
    """A stage's name, by the configuration that results give it."""
    study_config = {"pretrain": {"objective": described(component)}} if as_objective else {"clean": {"method": described(component)}}
    source = fake_study.__globals__["TrialResult" if not as_objective else "StageResult"]
    stage = source(stage="x", name="x", fingerprint="f", folder=None, config=study_config)
    return objective_of(stage) if as_objective else method_of(stage)


@pytest.mark.parametrize(
    ("component", "label"),
    [
        (CleanCLIP(), "CleanCLIP"), (CleanCLIP(inmodal_weight=0.0), "MMCL"), (CleanCLIP(clip_weight=0.0), "SSL"),
        (MMCLFineTune(), "MMCL fine-tuning"), (MMCLFineTune(inmodal_weight=1.0), "MMCL+SSL"), (SSLFineTune(), "SSL"),
        (FineTune(inmodal_weight=2.0), "MMCL+SSL"),
        (ShrinkPerturb(), "shrink-perturb + CleanCLIP"), (ShrinkPerturb(then=Guard()), "shrink-perturb + Guard"),
        (DeepClustering(), "deep-clustering"), (DeepClustering(clip_weight=0.0, inmodal_weight=0.0), "deep-clustering alone"),
        (Guard(), "Guard"), (Guard(inmodal_weight=0.0), "Guard"), (Longer(), "Longer"), (Wrapped(), "Wrapped"),
        (MMCL(), "MMCL"), (MMCLSSL(), "MMCL+SSL"), (SSL(), "SSL"), (Contrastive(inmodal_weight=1.0), "MMCL+SSL"),
        (SigLIP(), "SigLIP"), (Aligned(), "Aligned"),
    ],
)  # fmt: skip
def test_a_component_says_its_own_label_and_the_report_says_it_too(component, label):
    assert component.label == label
    assert one(component, as_objective=not isinstance(component, Method)) == label


def test_a_label_is_no_part_of_an_identity_and_a_manifest_holds_it(tmp_path):
    assert "label" not in encode(CleanCLIP()) and described(CleanCLIP())["label"] == "CleanCLIP"
    assert described(ShrinkPerturb())["then"]["label"] == "CleanCLIP"
    assert fingerprint(Named()) == fingerprint(encode(Named()))
    stage = stages(SWEEP.base)["clean"]
    assert "label" not in stage.config["method"] and stage.shown["method"]["label"] == "CleanCLIP"
    made = make_of(Store(tmp_path), stage)
    assert made.manifest["config"]["method"]["label"] == "CleanCLIP" and made.fingerprint == stage.fingerprint


@dataclass(frozen=True, kw_only=True)
class Mute(Guard):
    label = ""


def test_a_label_that_is_no_line_of_text_is_refused():
    with pytest.raises(InputError, match="Mute.label is ''; accepted: one line of text"):
        described(Mute())


def swapped(study, method, only=lambda trial: True):
    """The study with this method in place of the trials' own."""
    for trial in filter(only, study.trials):
        config = described(method)
        trial.config.get("clean", trial.config)["method"] = config
        trial.overrides["clean.method"] = method
    return study


@pytest.mark.parametrize(
    ("method", "name"), [(Guard(), "Guard"), (Longer(), "Longer"), (Named(), "CleanCLIP (Named)")]
)
def test_a_labs_own_method_has_its_name_and_colour_and_is_not_pooled_anywhere(tmp_path, method, name):
    study = fake_study(tmp_path)
    usual = look(study)
    mine = {study.trials[0].fingerprint, study.trials[4].fingerprint}
    swapped(study, method, lambda trial: trial.fingerprint in mine)
    styles = look(study)
    assert styles["CleanCLIP"] == usual["CleanCLIP"] and styles[name] not in usual.values()
    assert {row.method for row in table(study)} == {"CleanCLIP", "MMCL", name}
    for text in (points_csv(study), pareto_csv(study)):
        found = {(row["fingerprint"] in mine, row["method"]) for row in csv.DictReader(io.StringIO(text)) if row["method"]}
        assert {method for own, method in found if own} == {name} and name not in {method for own, method in found if not own}
    assert name in [text.get_text() for text in scatter(study).legends[0].texts]
    assert name in render("summary", summary=summary(study)) and "\n  " + name[:20] in summary_text(study)
    assert name not in " ".join(headline(study)), "it reached nothing"


@pytest.mark.parametrize("method", [Guard(), Longer(), Named(), Guard(inmodal_weight=0.0), Wrapped()])
def test_claims_are_not_judged_by_a_labs_own_method_or_objective(tmp_path, method):
    tried = {v.claim for v in judged(CLAIMS, [seeded_study(tmp_path, poisons=(0, 5))]) if v.verdict != "not tried"}
    assert tried == set("abcd")
    found = judged(CLAIMS, [swapped(seeded_study(tmp_path, poisons=(0, 5)), method)])
    assert {verdict.verdict for verdict in found} == {"not tried"}
    study = seeded_study(tmp_path, poisons=(0, 5))
    for stage in study.pretrains:
        stage.config["pretrain"]["objective"] = described(Aligned())
    assert {verdict.verdict for verdict in judged(CLAIMS, [study])} == {"not tried"}
    assert {panel.objective for panel in panels(study)} == {"Aligned"}


def test_two_classes_with_one_label_are_told_apart_in_print(tmp_path):
    study = fake_study(tmp_path)
    for number, trial in enumerate(study.trials):
        config = {"class": f"lab{number % 2}.defences.Guard", "label": "ours", "x": number}
        trial.config, trial.overrides = {"clean": {"method": config}}, {"clean.lr": 1.0}
    assert {row.method for row in table(study)} == {"ours (lab0.defences.Guard)", "ours (lab1.defences.Guard)"}
    assert len(look(study)) == 2
    for number, stage in enumerate(study.pretrains):
        stage.config["pretrain"]["objective"] = {"class": f"lab{number}.Loss", "label": "loss"}
    assert [panel.objective == "loss" for panel in panels(study)] == [True, True]
    labels = [panel.label for panel in panels(study)]
    assert len(set(labels)) == 2 and all("lab" in label for label in labels)


def test_a_part_that_only_has_the_studys_name_makes_another_method():
    ours, theirs = (kinds.kind_of(described(ShrinkPerturb(then=then))) for then in (CleanCLIP(), Named()))
    assert ours[0] == theirs[0] == "shrink-perturb + CleanCLIP" and ours != theirs
    assert kinds.kind_of(described(ShrinkPerturb(then=CleanCLIP(inmodal_weight=4.0)))) == ours


def without_label(node):
    return {key: value for key, value in node.items() if key != "label"}


def test_plan_and_show_name_each_trial_by_what_tells_it_apart(tmp_path):
    plan = make_plan(SWEEP)
    told = [plan_titles(plan)[stages(experiment)["clean"].fingerprint] for _, experiment in plan.grid]
    fine = "MMCL fine-tuning"
    assert told == [f"{fine}, lr 0.001 on MMCL", f"{fine}, lr 0.003 on MMCL", "CleanCLIP, lr 0.001 on MMCL", "CleanCLIP, lr 0.003 on MMCL"]
    store = Store(tmp_path)
    for _, experiment in plan.grid:
        for role in ("pretrain", "clean"):
            make_of(store, stages(experiment)[role])
    shown = _titles(store.all())
    assert sorted(shown.values()) == sorted(["MMCL", *told])
    older = [Artefact(one.folder, json.loads(json.dumps(one.manifest), object_hook=without_label)) for one in store.all()]
    assert "label" not in str([one.manifest for one in older]) and _titles(older) == shown


def test_a_study_read_from_the_store_knows_its_labels():
    seeds = replace(SWEEP, space={"pretrain.seed": {"grid_search": [0, 1]}, "clean.method": {"grid_search": [Guard(), Longer()]}})
    titles = list(plan_titles(make_plan(seeds)).values())
    assert "Guard on MMCL, seed 0" in titles and "Longer on MMCL, seed 1" in titles
