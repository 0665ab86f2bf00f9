"""Pre-trainings that do not wait for each other."""

from __future__ import annotations

import pytest

from orchestrator.override import override_all
from orchestrator.plan import stages
from orchestrator.spec import Compute
from orchestrator.stages import make_data
from orchestrator.store import Store
from orchestrator.training import StageError, pretrain_all
from tests.tiny_sweep import BASE


def test_one_of_several_pretrainings_diverges_and_the_others_are_kept(ray_session, tmp_path):
    store = Store(str(tmp_path))
    store.prepare()
    experiments = [
        override_all(BASE, {"pretrain.seed": 0}),
        override_all(BASE, {"pretrain.seed": 1, "pretrain.lr": 1e30}),
    ]
    inputs = make_data(BASE, store, lambda line: None)
    with pytest.raises(StageError, match="diverged at step"):
        pretrain_all([(experiment, inputs) for experiment in experiments], store, Compute(store=str(tmp_path)))
    good, bad = (stages(experiment)["pretrain"].fingerprint for experiment in experiments)
    assert store.find("pretrain", good) and not store.find("pretrain", bad)

    (artefact,) = pretrain_all([(experiments[0], inputs)], store, Compute(store=str(tmp_path)))
    assert artefact.fingerprint == good, "found, not made again"
