"""Cleaning methods."""

from dataclasses import replace

import pytest
import torch

from datasets.errors import InputError
from tests.parity.toys import RESNET, ToyFeed, resnet
from trainers.loop import fit
from trainers.methods.base import Run
from trainers.methods.finetune import CleanCLIP, FineTune, MMCLFineTune, SSLFineTune
from trainers.methods.shrink_perturb import ShrinkPerturb
from trainers.objectives.contrastive import Contrastive
from trainers.schedule import Training

TRAINING = Training(epochs=2, batch_size=8, lr=1e-3, warmup_steps=1)


def run(train) -> Run:
    return Run(trainer=train, training=replace(TRAINING, seed=3), fresh=lambda: RESNET.build(77))


def test_objectives():
    def seen(method):
        objectives = []
        model = resnet()
        assert method.train(model, run(lambda m, objective, phase: objectives.append(objective))) is model
        return objectives

    assert seen(MMCLFineTune()) == [Contrastive(clip_weight=1, inmodal_weight=0)]
    assert seen(SSLFineTune(inmodal_weight=2)) == [Contrastive(clip_weight=0, inmodal_weight=2)]
    assert seen(CleanCLIP(inmodal_weight=8)) == [Contrastive(clip_weight=1, inmodal_weight=8)]
    assert seen(ShrinkPerturb(then=MMCLFineTune())) == [Contrastive()]
    with pytest.raises(InputError):
        FineTune(clip_weight=0)
    with pytest.raises(InputError, match="shrink_lambda"):
        ShrinkPerturb(shrink_lambda=1.5)
    with pytest.raises(InputError, match="then"):
        ShrinkPerturb(then="cleanclip")


def test_shrink_and_perturb_is_the_formula_over_all_parameters():
    model, before, fresh = resnet(), resnet(), RESNET.build(77)
    found = {}

    def train(encoder, objective, phase):
        found.update({name: p.clone() for name, p in encoder.model.named_parameters()})

    ShrinkPerturb(shrink_lambda=0.6, perturb_gamma=0.01).train(model, run(train))
    new = dict(fresh.model.named_parameters())
    assert "logit_scale" in found
    for name, p in before.model.named_parameters():
        torch.testing.assert_close(found[name], 0.6 * p + 0.01 * new[name])
    for name, buffer in before.model.named_buffers():
        assert torch.equal(dict(model.model.named_buffers())[name], buffer)


def test_shrink_and_perturb_happens_once_though_the_stage_is_resumed(tmp_path):
    method = ShrinkPerturb(shrink_lambda=0.5, perturb_gamma=0.1, then=CleanCLIP())

    def cleaned(folder, stop_at=None):
        feed = ToyFeed(steps=8, stop_at=stop_at)
        model = resnet()
        method.train(model, run(lambda m, objective, phase: fit(m, objective, TRAINING, feed, folder)))
        return model.model.state_dict()

    whole = cleaned(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cleaned(tmp_path / "cut", stop_at=6)
    resumed = cleaned(tmp_path / "cut")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_rng_depends_on_seed_and_purpose():
    one = run(lambda *_: None)
    assert one.rng("a").integers(1 << 40) == one.rng("a").integers(1 << 40) != one.rng("b").integers(1 << 40)
