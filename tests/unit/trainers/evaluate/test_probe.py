"""The look at the losses before a cleaning begins."""

import pytest
import torch

from tests.parity.toys import ToyFeed, resnet, vit
from trainers.batch import to_device
from trainers.evaluate.probe import BATCHES, PAIRS, probe
from trainers.objectives.contrastive import MMCL, SSL
from trainers.schedule import Training

TRAINING = Training(epochs=2, batch_size=8, lr=1e-3, warmup_steps=1)


@pytest.mark.parametrize("build", [resnet, vit])
def test_it_gives_mean_losses_and_the_length_of_the_mean_gradient(build):
    values = probe(build().double(), ToyFeed(steps=9), TRAINING)
    assert set(values) == {"before/mmcl", "before/mmcl_grad_norm", "before/inmodal", "before/inmodal_grad_norm"}
    for name, objective in (("mmcl", MMCL()), ("inmodal", SSL())):
        encoder = build().double().train()
        losses = [objective.loss(encoder, to_device(ToyFeed().batch(step), encoder, True))["loss"] for step in range(BATCHES)]
        torch.stack(losses).mean().backward()
        squares = sum(float(p.grad.square().sum()) for p in encoder.parameters() if p.grad is not None)
        assert values[f"before/{name}"] == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-9)
        assert values[f"before/{name}_grad_norm"] == pytest.approx(squares**0.5, rel=1e-6) and squares > 0


def test_it_changes_nothing():
    encoder = resnet(logit_bias=-1.0).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    probe(encoder, ToyFeed(steps=9), TRAINING)
    assert torch.equal(torch.get_rng_state(), random) and not encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())


def test_stages_of_other_batch_sizes_can_be_compared():
    """A loss over more pairs is larger; so many of a large batch count, and no more."""
    feed = ToyFeed(batch_size=2 * PAIRS, steps=BATCHES + 1)
    short = ToyFeed(batch_size=PAIRS, steps=BATCHES + 1)
    short.batch = lambda step: {  # type: ignore[method-assign]
        name: value if name == "step" else value[:PAIRS] for name, value in feed.batch(step).items()}
    assert probe(resnet(), feed, TRAINING) == probe(resnet(), short, TRAINING)
