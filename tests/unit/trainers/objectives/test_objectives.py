"""Objectives as components; their values are held to a reference in tests/parity."""

import pytest
import torch

from datasets.errors import InputError
from tests.parity.toys import ToyFeed, resnet
from trainers.batch import to_device
from trainers.objectives.contrastive import MMCL, MMCLSSL, SSL, Contrastive
from trainers.objectives.siglip import SigLIP


def test_views_and_bias_wanted():
    assert not MMCL().two_views and MMCLSSL().two_views and SSL().two_views and not SigLIP().two_views
    assert SigLIP(bias=True).uses_logit_bias and not SigLIP().uses_logit_bias and not MMCL().uses_logit_bias


@pytest.mark.parametrize("objective", [MMCL(), MMCLSSL(), SSL(), SigLIP()])
def test_the_model_is_called_once(objective):
    encoder = resnet()
    calls = []

    def counted(batch):
        calls.append(batch)
        return encoder(batch)

    losses = objective.loss(counted, to_device(ToyFeed().batch(0), encoder, objective.two_views))
    assert len(calls) == 1 and losses["loss"].ndim == 0 and losses["loss"].requires_grad


def test_the_total_is_the_weighted_sum():
    encoder = resnet().eval()
    batch = to_device(ToyFeed().batch(0), encoder, True)
    values = Contrastive(clip_weight=0.5, inmodal_weight=4).loss(encoder, batch)
    torch.testing.assert_close(values["loss"], 0.5 * values["mmcl"] + 4 * values["inmodal"])


def test_wrong_fields_are_named():
    with pytest.raises(InputError, match="clip_weight is 0"):
        Contrastive(clip_weight=0, inmodal_weight=0)
    with pytest.raises(InputError, match=r"Contrastive.inmodal_weight is -1; accepted: a number \(at least 0\)"):
        Contrastive(inmodal_weight=-1)
    with pytest.raises(InputError, match="pairs, samples"):
        SigLIP(per="rows")
    with pytest.raises(InputError, match="logit bias"):
        encoder = resnet()
        SigLIP(bias=True).loss(encoder, to_device(ToyFeed().batch(0), encoder, False))
