"""Losses on adversarial pictures against their formulas, written in NumPy's float64."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import rng
from tests.parity.toys import WORDS, ToyFeed, resnet, vit
from trainers.batch import to_device
from trainers.objectives.adversarial import Adversarial
from trainers.objectives.adversary import Adversary
from trainers.objectives.contrastive import MMCL
from trainers.objectives.fare import NearOriginal
from trainers.objectives.tecoa import AgainstClasses
from trainers.objectives.trades import Trades

ATTACK = Adversary(eps=8 / 255, step=4 / 255, steps=3)
NOTHING = Adversary(eps=0)
CLASSES = WORDS[:4]


def objectives(adversary=ATTACK):
    return [Adversarial(adversary=adversary), Trades(beta=2.5, adversary=adversary), NearOriginal(adversary=adversary),
            AgainstClasses(class_names=CLASSES, template="the {}", adversary=adversary)]  # fmt: skip


def moved(build=vit):
    """A model and what it has become: (now, before)."""
    before, after = build().double().eval(), build().double().eval()
    with torch.no_grad():
        for number, weight in enumerate(after.model.parameters()):
            weight += 0.05 * torch.from_numpy(rng("moved", number).standard_normal(weight.shape))
    return after, before


def batch_of(encoder, rows=6):
    batch = to_device(ToyFeed(batch_size=rows).batch(0), encoder, False)
    return batch | {"draw": torch.arange(rows), "target": torch.arange(rows) % 4}


def computed(objective, encoder, batch, start=None):
    """The losses, and the batch that the model was called with. `start`: the weights as training began."""
    now = copy.deepcopy(encoder.state_dict())
    if start is not None:
        encoder.load_state_dict(start.state_dict())
    losses = objective.begin(encoder, rng(0))
    encoder.load_state_dict(now)
    calls = []

    def model(given, **changes):
        calls.append(given)
        return encoder(given, **changes)

    found = losses.loss(model, batch)
    assert len(calls) == 1, "the model is called once"
    return found, calls[0]


# ---- NumPy, from the formulas ------------------------------------------------------------------------------------------------


def raw(encoder, image):
    """Image features as the tower gives them, from pixels in 0 … 255."""
    with torch.no_grad():
        return encoder.model.encode_image(((image.double() - encoder.mean) / encoder.std).movedim(3, 1)).numpy()


def unit(rows):
    return rows / np.sqrt((rows**2).sum(1, keepdims=True))


def texts(encoder, captions):
    with torch.no_grad():
        return unit(encoder.model.encode_text(encoder.tokenize(list(captions))).numpy())


def value(scalar):
    return float(scalar.detach())


def softmax(rows):
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def clip_loss(image, text, scale):
    own = np.arange(len(image))
    return -np.mean([np.log(softmax(scale * a @ b.T)[own, own]).mean() for a, b in ((image, text), (text, image))])


def kl(p, q):
    return float(np.mean([sum(a * np.log(a / b) for a, b in zip(*rows)) for rows in zip(p, q)]))


@pytest.mark.parametrize("build", [vit, resnet])
def test_the_losses_are_the_formulas(build):
    now, before = moved(build)
    batch = batch_of(now)
    text = texts(now, ToyFeed(batch_size=6).batch(0)["caption"])
    scale = float(now.model.logit_scale.detach().exp())
    clean = unit(raw(now, batch["image"]))

    found, seen = computed(Adversarial(adversary=ATTACK), now, batch)
    expected = clip_loss(unit(raw(now, seen["image"])), text, scale)
    assert value(found["loss"]) == pytest.approx(expected, rel=1e-12) == value(found["adversarial"])
    assert expected > clip_loss(clean, text, scale)

    found, seen = computed(Trades(beta=2.5, adversary=ATTACK), now, batch)
    p, q = (softmax(scale * unit(raw(now, seen[view])) @ text.T) for view in ("image", "image_aug"))
    assert torch.equal(seen["image"], batch["image"]) and kl(p, q) > 1e-6
    assert value(found["divergence"]) == pytest.approx(kl(p, q), rel=1e-9)
    assert value(found["mmcl"]) == pytest.approx(clip_loss(clean, text, scale), rel=1e-12)
    assert value(found["loss"]) == pytest.approx(clip_loss(clean, text, scale) + 2.5 * kl(p, q), rel=1e-10)

    found, seen = computed(NearOriginal(adversary=ATTACK), now, batch, start=before)
    expected = np.mean(((raw(now, seen["image"]) - raw(before, batch["image"])) ** 2).sum(1))
    assert value(found["loss"]) == pytest.approx(expected, rel=1e-12) and set(seen) == {"image"}
    assert expected > np.mean(((raw(now, batch["image"]) - raw(before, batch["image"])) ** 2).sum(1))

    found, seen = computed(AgainstClasses(class_names=CLASSES, template="the {}", adversary=ATTACK), now, batch, start=before)
    head, own = texts(before, [f"the {name}" for name in CLASSES]), np.arange(6)
    given = softmax(100 * unit(raw(now, seen["image"])) @ head.T)
    assert value(found["loss"]) == pytest.approx(-np.log(given[own, own % 4]).mean(), rel=1e-10) and set(seen) == {"image"}
    assert float(found["adversarial_top1"]) == pytest.approx(100 * np.mean(given.argmax(1) == own % 4))
    assert value(found["loss"]) > -np.log(softmax(100 * clean @ head.T)[own, own % 4]).mean()


def steps_of(encoder, batch, loss_of):
    """The attack by the formula, in units of 0 … 1, on a loss of its own; the published update without momentum."""
    x0 = batch["image"].double() / 255
    start = [2 * rng(draw, "start").random((32, 32, 3), np.float32).astype(np.float64) - 1 for draw in batch["draw"].tolist()]
    x = (x0 + ATTACK.eps * torch.from_numpy(np.stack(start))).clamp(0, 1)
    for _ in range(ATTACK.steps):
        x = x.detach().requires_grad_()
        loss_of(x).backward()
        x = torch.minimum(torch.maximum(x + ATTACK.step * x.grad.sign(), x0 - ATTACK.eps), x0 + ATTACK.eps).clamp(0, 1)
    return 255 * x.detach()


def test_each_attack_raises_its_own_loss():
    now, before = moved()
    batch = batch_of(now)
    text, scale = torch.from_numpy(texts(now, ToyFeed(batch_size=6).batch(0)["caption"])), now.model.logit_scale.detach().exp()
    head = torch.from_numpy(texts(before, [f"the {name}" for name in CLASSES]))
    original, p = (torch.from_numpy(one) for one in (raw(before, batch["image"]), raw(now, batch["image"])))

    def features(x):
        return now.model.encode_image(((255 * x - now.mean) / now.std).movedim(3, 1))

    def cosines(x, to):
        f = features(x)
        return f / f.pow(2).sum(1, keepdim=True).sqrt() @ to.T

    def both(logits):
        return logits, logits.T

    p = (scale * p / p.pow(2).sum(1, keepdim=True).sqrt() @ text.T).softmax(1)
    wanted = {
        "Adversarial": lambda x: -sum(side.log_softmax(1).diagonal().sum() for side in both(scale * cosines(x, text))),
        "Trades": lambda x: -(p * (scale * cosines(x, text)).log_softmax(1)).sum(),
        "NearOriginal": lambda x: (features(x) - original).pow(2).sum(),
        "AgainstClasses": lambda x: -(10 * cosines(x, head)).log_softmax(1)[torch.arange(6), torch.arange(6) % 4].sum(),
    }
    gentle = replace(objectives()[-1], scale=10)  # at 100 a gradient can be smaller than its rounding
    for objective in (*objectives()[:3], gentle):
        _, seen = computed(objective, now, batch, start=before)
        found = seen.get("image_aug", seen["image"])
        expected = steps_of(now, batch, wanted[objective.id])
        assert (found - expected).abs().max() < 1e-6, objective.id
    assert len(wanted) == 4


def gradients(loss, encoder):
    encoder.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in encoder.model.named_parameters() if weight.grad is not None}


def test_without_beta_or_radius_trades_and_adversarial_training_are_mmcl():
    encoder = resnet().double().train()
    batch, state = batch_of(encoder), copy.deepcopy(encoder.state_dict())
    plain = MMCL().loss(encoder, batch)["loss"]
    expected, statistics = gradients(plain, encoder), encoder.model.visual.bn1.running_mean.clone()
    for objective in (Trades(beta=0), Adversarial(adversary=NOTHING)):
        encoder.load_state_dict(state)
        found, _ = computed(objective, encoder, batch)
        assert float(found["loss"].detach()) == pytest.approx(value(plain), rel=1e-13)
        for name, gradient in gradients(found["loss"], encoder).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(encoder.model.visual.bn1.running_mean, statistics, rtol=1e-13, atol=0)
    _, seen = computed(Trades(beta=0), encoder, batch)
    assert "image_aug" not in seen, "nothing is attacked"


def test_zero_where_nothing_was_changed():
    encoder = vit().double().train()
    batch = batch_of(encoder)
    fare, _ = computed(NearOriginal(adversary=NOTHING), encoder, batch)
    trades, _ = computed(Trades(beta=3, adversary=NOTHING), encoder, batch)
    assert value(fare["loss"]) < 1e-25 and abs(value(trades["divergence"])) < 1e-15
    assert value(trades["loss"]) == pytest.approx(value(MMCL().loss(encoder, batch)["loss"]), rel=1e-13)
    now, before = moved()
    assert value(computed(NearOriginal(adversary=NOTHING), now, batch, start=before)[0]["loss"]) > 1e-3, "the model has moved"
    found, _ = computed(AgainstClasses(class_names=CLASSES, template="the {}", adversary=NOTHING, scale=7), now, batch)
    head, own = texts(now, [f"the {name}" for name in CLASSES]), np.arange(6)
    clean = softmax(7 * unit(raw(now, batch["image"])) @ head.T)
    assert value(found["loss"]) == pytest.approx(-np.log(clean[own, own % 4]).mean(), rel=1e-12)


@pytest.mark.parametrize("objective", objectives(), ids=lambda one: one.id)
def test_the_statistics_are_those_of_one_step_of_training(objective):
    """The attack runs on the running statistics and does not change them; the step itself updates them once."""
    encoder = resnet().train()
    computed(objective, encoder, batch_of(encoder))
    assert encoder.training and encoder.model.visual.bn1.training and int(encoder.model.visual.bn1.num_batches_tracked) == 1
    assert not torch.equal(encoder.model.visual.bn1.running_mean, torch.zeros_like(encoder.model.visual.bn1.running_mean))


@pytest.mark.parametrize("objective", objectives(), ids=lambda one: one.id)
def test_the_models_own_precision_is_used(objective):
    encoder = vit()
    encoder.autocast = torch.bfloat16
    kinds = set()
    encoder.model.visual.transformer.resblocks[0].mlp.c_fc.register_forward_hook(lambda *args: kinds.add(args[-1].dtype))
    found, _ = computed(objective, encoder, batch_of(encoder))
    assert kinds == {torch.bfloat16} and found["loss"].dtype == torch.float32 and torch.isfinite(found["loss"])


def test_what_has_no_gradient_at_the_picture_is_refused():
    for kind in (Trades, NearOriginal):
        with pytest.raises(InputError, match="adversary.start is 'picture', where .* has no gradient; accepted: random"):
            kind(adversary=Adversary(start="picture"))
    with pytest.raises(NotImplementedError):
        Adversarial().loss(lambda batch: {}, {})


def test_prompts_that_are_cut_before_the_class_are_refused():
    encoder = vit()
    assert encoder.tokenize(["a"]).shape[1] == 8, "too short for the published prompt"
    with pytest.raises(InputError, match=r"template is 'This is a photo of a .*: cut to the model's 8 tokens, .* 4 classes are the same"):
        AgainstClasses(class_names=CLASSES).begin(encoder, rng(0))
    AgainstClasses(class_names=("red", "red"), template="the {}").begin(encoder, rng(0))  # ImageNet has two classes of one name
