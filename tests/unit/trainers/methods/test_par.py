"""PAR: its loss against the formula, what stays still, and a kill."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import rng
from orchestrator.experiment.fingerprint import fingerprint
from tests.parity.toys import RESNET, ToyFeed, resnet
from trainers.batch import to_device
from trainers.loop import fit
from trainers.methods.base import Run
from trainers.methods.par import PAR, seen
from trainers.objectives.apart import Apart
from trainers.schedule import Training, learning_rate

TRAINING = Training(epochs=2, batch_size=8, lr=1e-3, warmup_steps=0)
METHOD = PAR()


def reference(now, before, scale: float, limit: float) -> dict[str, float]:
    """The formula in NumPy's float64, a row and a sum at a time."""
    def entropy(query, key):
        logits = [[scale * float(np.dot(q, k)) for k in key] for q in query]
        return float(np.mean([np.log(np.sum(np.exp(np.array(row) - row[i]))) for i, row in enumerate(logits)]))

    image, text = now
    mmcl = (entropy(image, text) + entropy(text, image)) / 2
    d = [float(np.mean([((a - b) ** 2).sum() for a, b in zip(*sides)])) for sides in zip(now, before)]
    return {"mmcl": mmcl, "d_image": d[0], "d_text": d[1], "loss": mmcl - 0.5 * sum(one for one in d if one <= limit)}


@pytest.mark.parametrize("limit", [4.0, 1e-9, "between"])
def test_the_loss_is_the_formula(limit):
    encoder = resnet().double().eval()
    batch = to_device(ToyFeed().batch(0), encoder, False)

    def features():
        with torch.no_grad():
            f = encoder(batch)
        return f["image"].numpy(), f["text"].numpy()

    before = features()
    losses = Apart().begin(encoder, rng(0))
    with torch.no_grad():
        for number, weight in enumerate(encoder.model.parameters()):
            weight += 0.05 * torch.from_numpy(rng("moved", number).standard_normal(weight.shape))
    now, scale = features(), float(encoder.model.logit_scale.detach().exp())
    far = reference(now, before, scale, 4.0)
    assert min(far["d_image"], far["d_text"]) > 0.01 and abs(far["d_image"] - far["d_text"]) > 1e-3
    limit = (far["d_image"] + far["d_text"]) / 2 if limit == "between" else limit
    expected = reference(now, before, scale, limit)
    found = replace_limit(losses, limit).loss(encoder, batch)
    assert float(found["loss"]) == pytest.approx(expected["loss"], rel=1e-12)
    assert float(found["mmcl"]) == pytest.approx(expected["mmcl"], rel=1e-12)
    for side in ("image", "text"):
        assert float(found[f"perturb_{side}"]) == pytest.approx(expected[f"d_{side}"], rel=1e-12)
        assert float(found[f"beyond_{side}"]) == (100 if expected[f"d_{side}"] > limit else 0)


def replace_limit(losses, limit):
    return replace(losses, objective=Apart(limit=limit))


def test_beyond_the_limit_the_gradient_is_that_of_mmcl_with_a_constant_scale():
    encoder = resnet().double().eval()
    batch = to_device(ToyFeed().batch(0), encoder, False)
    losses = Apart(limit=1e-9).begin(encoder, rng(0))
    with torch.no_grad():
        encoder.model.visual.conv1.weight.mul_(1.3)
        encoder.model.text_projection.add_(0.3 * torch.from_numpy(rng(1).standard_normal(encoder.model.text_projection.shape)))
    found = losses.loss(encoder, batch)
    assert found["beyond_image"] == found["beyond_text"] == 100
    found["loss"].backward()
    assert encoder.model.logit_scale.grad is None
    own = {name: p.grad.clone() for name, p in encoder.model.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    losses.loss(encoder, batch)["mmcl"].backward()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, dict(encoder.model.named_parameters())[name].grad, rtol=1e-12, atol=1e-15)


def reference_view(image, draw, mean):
    """The published view in NumPy's float64, a pixel at a time: brightened by half-normal noise, a square of the mean colour."""
    source = rng(draw, "view")
    brightens, erases = (float(value) < 0.5 for value in source.random(2))
    out = [[[float(value) for value in pixel] for pixel in row] for row in image]
    if brightens:
        noise = source.standard_normal(image.shape, np.float32)
        for row, column, channel in np.ndindex(*image.shape):
            out[row][column][channel] = min(255.0, out[row][column][channel] + 255 * 0.2 * max(0.0, float(noise[row, column, channel])))
    square = None
    if erases:
        side = round((image.shape[0] * image.shape[1] * float(source.uniform(0.005, 0.01))) ** 0.5)
        top, left = int(source.integers(image.shape[0] - side + 1)), int(source.integers(image.shape[1] - side + 1))
        square = top, left, side
        for row in range(top, top + side):
            for column in range(left, left + side):
                out[row][column] = [float(value) for value in mean]
    return np.array(out), brightens, square


@pytest.mark.parametrize("size", [32, 64])
def test_the_published_view_is_the_formula(size):
    encoder, images = resnet(), rng("view test").integers(0, 256, (40, size, size, 3), dtype=np.uint8)
    found = seen(torch.from_numpy(images), torch.arange(40), encoder.mean)
    assert found.dtype == torch.float32 and found.shape == (40, size, size, 3)
    kinds = set()
    for draw, (image, own) in enumerate(zip(images, found.numpy())):
        expected, brightens, square = reference_view(image, draw, encoder.mean.numpy())
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-3)
        kinds.add((brightens, square is not None))
        if brightens:
            share = float((own > image).mean())
            assert 0.3 < share < 0.6 and (own - image >= 0)[: size // 4].mean() > 0.9, "half of the noise is cut off, the rest brightens"
        if square is not None:
            top, left, side = square
            assert 0.003 < side**2 / size**2 < 0.012
            assert not ((own[top : top + side, left : left + side] - encoder.mean.numpy()) / encoder.std.numpy()).any(), "0 once normalised"
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


def test_both_models_see_the_published_view_drawn_anew_in_each_epoch(tmp_path, monkeypatch):
    given = []

    def noted(image, draw, mean):
        given.append((image.clone(), draw.tolist()))
        return seen(image, draw, mean)

    monkeypatch.setattr("trainers.methods.par.seen", noted)
    trained(tmp_path / "a", PAR(view="published"))
    assert len(given) == 6 and len({draw for _, draws in given for draw in draws}) == 8 * 2, "a pair's draw is its epoch's"
    encoder = resnet().double().eval()
    batch = {**to_device(ToyFeed().batch(0), encoder, False), "draw": torch.arange(8)}
    losses = Apart(limit=4, view=lambda batch: {**batch, "image": seen(batch["image"], batch["draw"], encoder.mean)}).begin(encoder, rng(0))
    found = losses.loss(encoder, batch)
    assert float(found["perturb_image"]) < 1e-20, "the same model, the same pictures"
    assert float(found["mmcl"]) != float(Apart(limit=4).begin(encoder, rng(0)).loss(encoder, batch)["mmcl"])


def test_the_view_of_the_stage_is_what_was_before_the_field():
    assert fingerprint(PAR()) == fingerprint(PAR(view="stage")) != fingerprint(PAR(view="published"))
    with pytest.raises(InputError, match="PAR.view published changes whole batches: training.accumulate must be 1, not 2"):
        PAR(view="published").check_training(replace(TRAINING, accumulate=2))
    PAR().check_training(replace(TRAINING, accumulate=2))


class Feed(ToyFeed):
    """The steps of one epoch after another, the same pairs in each step."""

    def batches(self, start_step=0, stop_step=None, order=None):
        for batch in super().batches(start_step):
            if batch["step"] == stop_step:
                return
            yield batch


def trained(folder, method=METHOD, stop_at=None, **fields):
    """Weights and lines after two epochs of three steps, killed before the step `stop_at`."""
    lines, phases = {}, []

    def train(model, objective, phase):
        phases.append(phase)
        feed = Feed(steps=6, stop_at=stop_at)
        fit(model, objective, phase.training, feed, folder, report=lambda line: lines.update({line["epoch"]: line}),
            begin_epoch=phase.begin_epoch)  # fmt: skip

    run = Run(trainer=train, training=replace(TRAINING, checkpoint_every_steps=2, **fields), fresh=lambda: RESNET.build(7),
              keys=lambda: list(map(str, range(8))))  # fmt: skip
    model = method.train(resnet(), run)
    return model, lines, phases[0]


@pytest.mark.parametrize("method", [METHOD, PAR(view="published")], ids=["stage", "published"])
@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_kill_at_any_moment_changes_nothing(tmp_path, stop_at, method):
    whole, lines, _ = trained(tmp_path / "whole", method)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", method, stop_at=stop_at)
    again, more, _ = trained(tmp_path / "cut", method)
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in whole.model.state_dict().items())
    for name in ("train/loss", "train/perturb_image", "train/beyond_text"):
        assert more[2]["metrics"][name] == lines[2]["metrics"][name]
    assert 0 < lines[2]["metrics"]["train/perturb_image"] <= 4


@pytest.mark.parametrize(("batch_norm", "accumulate"), [("frozen", 1), ("frozen", 2), ("train", 1)])
def test_what_stays_still(tmp_path, batch_norm, accumulate):
    before = resnet()
    model, *_ = trained(tmp_path, PAR(batch_norm=batch_norm), accumulate=accumulate)
    now, was = model.model.state_dict(), before.model.state_dict()
    assert torch.equal(now["logit_scale"], was["logit_scale"]) and model.model.logit_scale.requires_grad
    assert not torch.equal(now["visual.conv1.weight"], was["visual.conv1.weight"])
    same = [torch.equal(now[name], was[name]) for name in now if "running" in name]
    assert all(same) if batch_norm == "frozen" else not any(same)
    assert not model._forward_pre_hooks and model.train().model.visual.bn1.training


def test_parts_of_a_batch_give_the_same_training_where_batch_norm_is_frozen(tmp_path):
    one, parts = (trained(tmp_path / str(n), accumulate=n)[1] for n in (1, 2))
    assert parts[2]["metrics"]["train/loss"] == pytest.approx(one[2]["metrics"]["train/loss"], rel=1e-4)


def test_the_rate(tmp_path):
    assert trained(tmp_path / "a")[2].training.schedule == "linear_cosine"
    assert trained(tmp_path / "b", PAR(rate="stage"))[2].training.schedule == "cosine"
    fields = Training(epochs=1, batch_size=8, lr=3e-5, warmup_steps=0, schedule="linear_cosine")
    rates = [learning_rate(step, 100, fields) for step in (0, 25, 50, 75, 100)]
    assert rates == pytest.approx([3e-5, 1.65e-5, 3e-6, 1.5e-6, 0], abs=1e-20)


def test_wrong_fields_are_named():
    for fields, words in (({"limit": 0}, "PAR.limit"), ({"batch_norm": "eval"}, "frozen, train"), ({"rate": "cosine"}, "published, stage"),
                          ({"view": "noisy"}, "stage, published")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            PAR(**fields)
