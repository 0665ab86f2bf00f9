"""Learning rate, optimiser groups and the fields' errors."""

import math

import pytest

from datasets.errors import InputError
from tests.parity.toys import resnet, vit
from trainers.schedule import Training, decays, learning_rate, optimizer


def training(**fields) -> Training:
    return Training(**{"epochs": 2, "batch_size": 8, "lr": 1.0, "warmup_steps": 4, **fields})


def test_the_rate_warms_up_from_the_first_step_then_falls_to_zero():
    rates = [learning_rate(step, 20, training()) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[12] == pytest.approx(0.5) and rates[20] == pytest.approx(0, abs=1e-15)
    assert all(a >= b for a, b in zip(rates[4:], rates[5:])), "it never rises again"
    assert learning_rate(0, 10, training(warmup_steps=0)) == 1.0


@pytest.mark.parametrize("build", [resnet, vit])
def test_decay_spares_biases_norms_and_logit_scale(build):
    encoder = build()
    named = dict(encoder.named_parameters())
    with_decay = {name for name, p in named.items() if decays(name, p)}
    for name in named:
        plain = name.rsplit(".", 1)[-1]
        spared = plain.endswith("bias") or plain in ("logit_scale", "class_embedding") or any(
            part.startswith(("bn", "ln_")) for part in name.split(".")) or "downsample.1" in name
        assert (name in with_decay) != spared, name
    groups = optimizer(encoder, training(weight_decay=3.0)).param_groups
    assert [group["weight_decay"] for group in groups] == [3.0, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(named)


@pytest.mark.parametrize(("fields", "words"), [
    ({"lr": 0.0}, "lr"), ({"lr": math.nan}, "lr"), ({"epochs": 0}, "epochs"), ({"batch_size": 0}, "batch_size"),
    ({"weight_decay": -1.0}, "weight_decay"), ({"precision": "fp8"}, "precision.*auto, bf16, fp32"),
    ({"accumulate": 0}, "accumulate"), ({"warmup_steps": -1}, "warmup_steps"),
    ({"checkpoint_every_steps": 0}, "checkpoint_every"),
    ({"betas": (0.9, 1.0)}, "betas"), ({"betas": (-0.1, 0.9)}, "betas"), ({"eps": 0.0}, "eps"),
    ({"epochs": "two"}, "epochs"),
])
def test_wrong_fields_are_named(fields, words):
    with pytest.raises(InputError, match=words):
        training(**fields)


def test_wrong_lengths_are_named():
    with pytest.raises(InputError, match="warmup_steps is 4, but the stage has only 4 steps"):
        training().check(4, 1)
    with pytest.raises(InputError, match="batch_size 8 must be a multiple of 3 workers"):
        training().check(20, 3)
    with pytest.raises(InputError, match="0 steps"):
        training().check(0, 1)
    training(accumulate=2).check(20, 4)
