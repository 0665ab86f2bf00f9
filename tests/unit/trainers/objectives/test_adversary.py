"""The inner attack: where it stays, what it reaches, what it leaves alone."""

import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import rng
from tests.parity.toys import ToyFeed, resnet, vit
from trainers.batch import to_device
from trainers.encoder import Encoder
from trainers.objectives.adversary import Adversary, evaluating, noise

IMAGES = torch.from_numpy(rng("adversary").integers(0, 256, (6, 32, 32, 3)).astype("uint8"))
IMAGES[0], IMAGES[1] = 0, 255
DRAWS = torch.arange(6)


def towards(encoder: Encoder, text_BD: torch.Tensor):
    """Minus the summed cosine to the captions: each picture by itself."""
    return lambda image_BHWC: -(encoder.encode_image(image_BHWC) * text_BD).sum()


def setting(encoder: Encoder):
    batch = to_device(ToyFeed(batch_size=6).batch(0), encoder, False)
    with torch.no_grad():
        return towards(encoder, encoder.eval().encode_text(batch["text"]))


@pytest.mark.parametrize("build", [resnet, vit])
@pytest.mark.parametrize("adversary", [Adversary(), Adversary(eps=8 / 255, steps=3, step=4 / 255, momentum=0), Adversary(start="picture")])
def test_it_stays_near_the_picture_and_raises_the_loss(build, adversary):
    encoder = build().double()
    loss = setting(encoder)
    found = adversary.attack(encoder, IMAGES, DRAWS, loss)
    assert found.dtype == torch.float64 and found.shape == IMAGES.shape and not found.requires_grad
    assert found.min() >= 0 and found.max() <= 255
    change = found - IMAGES
    assert change.abs().max() <= 255 * adversary.eps * (1 + 1e-12)
    assert (change[0] >= 0).all() and (change[1] <= 0).all() and (change.abs() > 0.9 * 255 * adversary.eps).double().mean() > 0.2
    with torch.no_grad():
        start = (IMAGES + 255 * adversary.eps * noise(DRAWS, change)).clamp(0, 255)
        assert loss(found) > loss(IMAGES) and loss(found) > loss(start)


def test_the_weights_the_buffers_and_the_modes_stay_as_they_are():
    encoder = resnet().train()
    loss = setting(encoder)
    encoder.train()
    encoder.model.visual.layer1.eval()  # a part that is in another mode than the rest
    encoder.model.visual.conv1.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    modes = {name: part.training for name, part in encoder.named_modules()}
    seen = []

    def noted(image_BHWC):
        seen.append({part.training for part in encoder.modules()})
        return loss(image_BHWC)

    generator = torch.random.get_rng_state()
    Adversary(steps=2).attack(encoder, IMAGES, DRAWS, noted)
    assert seen == [{False}, {False}], "attacked in evaluation mode"
    assert {name: part.training for name, part in encoder.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(weight.grad is None for weight in encoder.parameters())
    assert [name for name, weight in encoder.model.named_parameters() if not weight.requires_grad] == ["visual.conv1.weight"]
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_the_modes_come_back_after_an_error():
    encoder = resnet().train()
    with pytest.raises(ZeroDivisionError), evaluating(encoder):
        assert not encoder.model.visual.bn1.training
        raise ZeroDivisionError
    assert encoder.training and encoder.model.visual.bn1.training


def reference(clean, draws, gradient_of, eps, step, steps, momentum):
    """The published update in float64, in units of 0 … 1; the start is the only thing it shares."""
    x0 = clean.double() / 255
    delta = (x0 + eps * noise(draws, x0)).clamp(0, 1) - x0
    velocity = torch.zeros_like(x0)
    for _ in range(steps):
        velocity = torch.sign(momentum * velocity + torch.sign(gradient_of(255 * (x0 + delta))))
        delta = torch.minimum(torch.maximum(delta + step * velocity, -torch.full_like(x0, eps)), torch.full_like(x0, eps))
        delta = (x0 + delta).clamp(0, 1) - x0
    return 255 * (x0 + delta)


def test_the_update_is_the_published_one():
    encoder = vit().double()
    loss = setting(encoder)

    def gradient_of(image):
        image = image.clone().requires_grad_()
        loss(image).backward()
        return image.grad

    own = {"eps": 6 / 255, "step": 2.5 / 255, "steps": 4, "momentum": 0.9}
    found = Adversary(**own).attack(encoder, IMAGES, DRAWS, loss)
    torch.testing.assert_close(found, reference(IMAGES, DRAWS, gradient_of, **own), rtol=0, atol=1e-9)


def test_a_linear_loss_is_led_to_its_maximum():
    encoder = vit().double()
    weight = torch.from_numpy(rng("linear").standard_normal(IMAGES.shape))
    for adversary in (Adversary(), Adversary(start="picture", steps=1, step=2 / 255), Adversary(momentum=0, steps=4)):
        found = adversary.attack(encoder, IMAGES, DRAWS, lambda image: (image * weight).sum())
        torch.testing.assert_close(found, (IMAGES + 2 * weight.sign()).clamp(0, 255), rtol=0, atol=1e-9)


def test_the_momentum_decides_where_the_gradient_is_zero():
    """A loss that is flat beyond 0.6 above a picture of greys: after the first step its gradient is 0."""
    encoder, grey = vit().double(), torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)

    def flat(image):
        return (image - 100).clamp(max=0.6).sum()

    own = {"eps": 4 / 255, "steps": 3, "start": "picture"}
    assert (Adversary(momentum=0.9, **own).attack(encoder, grey, torch.arange(2), flat) == 103).all()
    assert (Adversary(momentum=0, **own).attack(encoder, grey, torch.arange(2), flat) == 101).all()


def test_a_pair_has_its_own_start_wherever_it_lies():
    encoder = vit().double()
    loss, order = (lambda image: 0 * image.sum()), torch.tensor([3, 0, 5, 1, 4, 2])
    one = Adversary(eps=0.1).attack(encoder, IMAGES, DRAWS, loss)
    other = Adversary(eps=0.1).attack(encoder, IMAGES[order], DRAWS[order], loss)
    assert torch.equal(one[order], other)
    assert not torch.equal(one, Adversary(eps=0.1).attack(encoder, IMAGES, DRAWS + 6, loss))
    drawn = noise(torch.arange(200), torch.zeros(200, 8, 8, 3, dtype=torch.float64))
    assert drawn.min() > -1 and drawn.max() < 1 and abs(drawn.mean()) < 0.02 and abs(drawn.var() - 1 / 3) < 0.01
    assert len({float(one[0, 0, 0]) for one in drawn}) == 200


def test_without_a_radius_it_is_the_picture():
    def never(image):
        raise AssertionError("asked for a loss")

    assert torch.equal(Adversary(eps=0).attack(vit(), IMAGES, DRAWS, never), IMAGES.float())


@pytest.mark.parametrize(("fields", "words"), [
    ({"eps": 2}, r"Adversary.eps is 2; accepted: a number \(at least 0 and at most 1\)"),
    ({"steps": 0}, "Adversary.steps"), ({"momentum": 1.0}, "below 1"), ({"start": "zero"}, "random, picture"),
])  # fmt: skip
def test_wrong_fields_are_named(fields, words):
    with pytest.raises(InputError, match=words):
        Adversary(**fields)
