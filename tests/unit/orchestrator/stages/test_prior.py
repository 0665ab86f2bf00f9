"""A healthy prior: its identity, and what a plan says of it."""

from dataclasses import replace

import pytest

from datasets.errors import InputError
from orchestrator.commands.show import plan_rows
from orchestrator.experiment.check import unpoisoned
from orchestrator.experiment.override import override, override_all
from orchestrator.experiment.spec import Compute, Sweep
from orchestrator.stages.graph import stages
from orchestrator.sweep.plan import make_plan
from sweeps.quickstart import BASE
from trainers.model import Model, TinyCLIP
from trainers.objectives.contrastive import MMCLSSL

PRIOR = replace(BASE.pretrain, epochs=4, objective=MMCLSSL())
WITH = replace(BASE, prior=PRIOR)


def test_it_changes_the_pretraining_and_stands_before_it():
    plain, made = stages(BASE), stages(WITH)
    assert [role for role in made if role not in plain] == ["prior"] and list(made).index("prior") < list(made).index("pretrain")
    assert made["prior"].kind == "pretrain" and made["prior"].name == "mmcl+ssl unpoisoned" and made["prior"].config["unpoisoned"]
    assert {role for role in plain if plain[role].fingerprint != made[role].fingerprint} == {"pretrain", "clean"}
    assert made["pretrain"].inputs["prior"] == made["prior"]


def test_it_is_shared_by_all_attacks():
    def prior(path, value):
        return stages(override(WITH, path, value))["prior"].fingerprint

    own = stages(WITH)["prior"].fingerprint
    for path, value in (("poison.count", 60), ("poison.mode", "label_consistent"), ("pretrain.lr", 1e-5), ("clean.lr", 1.0),
                        ("prior.checkpoint_every_steps", 5),
                        ("poison.trigger.alpha", 0.2), ("poison.target", "circle")):
        assert prior(path, value) == own, path
    for path, value in (("prior.lr", 1e-4), ("data.subset", 900)):
        assert prior(path, value) != own, path


def test_its_training_sees_no_other_stage():
    own = unpoisoned(WITH, WITH.prior)
    assert own.pretrain == PRIOR and own.clean is None and own.prior is None and own.evaluate.evaluators == ()


def test_a_plan_lists_it_once_with_its_own_pairs(tmp_path):
    from ray import tune

    sweep = Sweep(name="x", base=WITH, space={"poison.count": tune.grid_search([60, 120]), "clean.lr": tune.grid_search([1e-3, 1e-4])})
    rows = plan_rows(make_plan(sweep), Compute(store=str(tmp_path)), None)
    trained = [(row["name"], row["pairs"]) for row in rows if row["stage"] == "pretrain"]
    assert trained == [("mmcl+ssl unpoisoned", 4 * 62 * 64), ("MMCL, count 60", 10 * 62 * 64), ("MMCL, count 120", 10 * 62 * 64)]


@pytest.mark.parametrize(("fields", "said"), [
    ({"prior": replace(PRIOR, model=TinyCLIP(embed_dim=32))}, "prior.model is another model"),
    ({"prior": replace(PRIOR, model=Model(name="RN50-quickgelu", pretrained="cc12m")),
      "pretrain.model": Model(name="RN50-quickgelu", pretrained="openai"), "views.size": 224}, "set prior.model.pretrained instead"),
])
def test_models_that_do_not_fit_are_refused(fields, said):
    with pytest.raises(InputError, match=said):
        stages(override_all(BASE, fields))
