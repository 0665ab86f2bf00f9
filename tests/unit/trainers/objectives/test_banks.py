"""Losses with a memory against float64 references written from the formulas in numpy, which share no code with the project."""

import numpy as np
import pytest
import torch

from datasets.seeding import rng
from tests.parity.toys import vit
from trainers.objectives.bank import Bank, shared
from trainers.objectives.roclip import Pooled
from trainers.objectives.safeclip import CrossView, Split, Unimodal

WIDTH = 16
SCALE = 11.5


def unit(rows: int, *names: object) -> np.ndarray:
    drawn = rng("banks", *names).normal(size=(rows, WIDTH))
    return drawn / np.sqrt((drawn**2).sum(1, keepdims=True))


def leaves(step: int = 0, rows: int = 6) -> dict[str, torch.Tensor]:
    """Made-up features of a batch."""
    values = {name: unit(rows, name, step) for name in ("image", "text", "image_aug", "text_aug")} | {"logit_scale": np.float64(SCALE)}
    return {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}


def started(objective, features):
    """The objective's memory on a float64 model, and its rows as numpy arrays before a step."""
    running = objective.begin(vit().double(), rng("start"))
    return running, {name: value.numpy().copy() for name, value in running.named_buffers()}, lambda batch: features


def rowwise(query: np.ndarray, key: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """−mean log softmax(s·q·k)ᵢᵢ; its derivatives by q and k."""
    z = SCALE * query @ key.T
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    d = SCALE * (p - np.eye(len(p))) / len(p)
    return float(-np.log(np.diag(p)).mean()), d @ key, d.T @ query


def closest(query: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Row of the largest inner product for each query, and the percentage of queries that share theirs."""
    at = [max(range(len(rows)), key=lambda r: float(q @ rows[r])) for q in query]
    return rows[at], 100 * float(np.mean([at.count(one) > 1 for one in at]))


def check(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10, atol=1e-14)


def test_neighbours_that_are_equal_but_for_rounding_are_one():
    rows = torch.from_numpy(unit(4, "neighbours")).float()
    assert shared(rows).item() == 0
    assert shared(torch.stack([rows[0], rows[1], rows[0] + 1e-7, rows[2], rows[1], rows[3]])).item() == pytest.approx(100 * 4 / 6)
    assert shared(torch.nn.functional.normalize(torch.stack([rows[0], rows[0] + 0.05]), dim=1)).item() == 0


def test_unimodal_goes_from_the_augmented_view_to_the_nearest_row_and_no_further():
    f = leaves()
    running, before, model = started(Unimodal(bank=9), f)
    found = running.loss(model, {})
    found["loss"].backward()
    losses, shares = [], []
    for side in ("image", "text"):
        near, share = closest(f[side].detach().numpy(), before[f"sides.{side}.rows"])
        loss, by_query, _ = rowwise(f[f"{side}_aug"].detach().numpy(), near)
        losses.append(loss)
        shares.append(share)
        check(f[f"{side}_aug"].grad, by_query / 2)
        assert f[side].grad is None, "the neighbours are constants"
        check(running.sides[side].rows, np.concatenate([f[side].detach().numpy(), before[f"sides.{side}.rows"][6:]]))
    assert found["unimodal"].item() == found["loss"].item() == pytest.approx(sum(losses) / 2, rel=1e-13)
    assert found["duplicates"].item() == pytest.approx(sum(shares) / 2)


def test_unimodal_without_a_bank_takes_the_batch_itself_with_its_gradient():
    f = leaves()
    running, before, model = started(Unimodal(bank=0), f)
    found = running.loss(model, {})
    found["loss"].backward()
    assert before == {} and set(found) == {"loss", "unimodal"}
    for side in ("image", "text"):
        _, by_query, by_key = rowwise(f[f"{side}_aug"].detach().numpy(), f[side].detach().numpy())
        check(f[f"{side}_aug"].grad, by_query / 2)
        check(f[side].grad, by_key / 2)


def test_cross_view_matches_each_side_with_the_other_sides_augmented_view():
    f = leaves()
    found = CrossView().loss(lambda batch: f, {})
    found["loss"].backward()
    values = {name: value.detach().numpy() for name, value in f.items()}
    one, by_image, by_text_aug = rowwise(values["image"], values["text_aug"])
    two, by_text, by_image_aug = rowwise(values["text"], values["image_aug"])
    assert found["cross_view"].item() == found["loss"].item() == pytest.approx((one + two) / 2, rel=1e-13)
    for name, expected in {"image": by_image, "text_aug": by_text_aug, "text": by_text, "image_aug": by_image_aug}.items():
        check(f[name].grad, expected / 2)


def test_a_batch_is_trained_on_by_its_side():
    f = leaves()
    running, before, model = started(Split(bank=9), f)
    safe = running.loss(model, {"safe": torch.ones(6, dtype=torch.int64)})
    assert safe.keys() == {"loss", "cross_view"} and safe["loss"] == CrossView().loss(lambda batch: f, {})["loss"]
    assert all(np.array_equal(value.numpy(), before[name]) for name, value in running.named_buffers()), "safe pairs enter no bank"
    risky = running.loss(model, {"safe": torch.zeros(6, dtype=torch.int64)})
    again, _, _ = started(Unimodal(bank=9), f)
    assert risky.keys() == {"loss", "unimodal", "duplicates"} and risky["loss"] == again.loss(model, {})["loss"]
    with pytest.raises(AssertionError, match="as a whole"):
        running.loss(model, {"safe": torch.tensor([1, 1, 0, 0, 0, 0])})


@pytest.mark.parametrize("size", [1, 4, 6, 9, 13])
def test_a_bank_wraps_and_loses_nothing(size):
    bank = Bank(size, vit().double(), rng("ring"))
    ring = list(bank.rows.numpy().copy())
    np.testing.assert_allclose(np.linalg.norm(ring, axis=1), 1, rtol=1e-12)
    place = 0
    for step in range(5):
        batch = unit(6, "ring", step)
        bank.put(torch.from_numpy(batch))
        for row in batch:  # one by one, as a ring is defined
            ring[place] = row
            place = (place + 1) % size
        assert np.array_equal(bank.rows.numpy(), np.stack(ring)) and int(bank.place) == place


@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize(("matched", "filling"), [(1, 0), (0, 1), (0, 0)])
def test_roclip(matched, filling, augmented):
    whole = leaves()
    image, text = (("image_aug", "text_aug") if augmented else ("image", "text"))
    seen = {"image": whole[image], "text": whole[text], "logit_scale": whole["logit_scale"]}
    running, before, _ = started(Pooled(pool=8, augmented=augmented), seen)
    flags = {"matched": torch.full((6,), matched), "filling": torch.full((6,), filling)}
    batch = {"image": 1, "text": 2, "image_aug": 3, "text_aug": 4, **flags}
    asked = []
    found = running.loss(lambda inputs: asked.append(inputs) or seen, batch)
    found["loss"].backward()
    assert [(one["image"], one["text"]) for one in asked] == [(3, 4) if augmented else (1, 2)]
    i, t = whole[image].detach().numpy(), whole[text].detach().numpy()
    key, share = closest(i, before["captions.rows"]) if matched else (t, None)
    one, by_key, by_image = rowwise(key, i)
    two, again_by_image, again_by_key = rowwise(i, key)
    assert found["loss"].item() == pytest.approx((one + two) / 2, rel=1e-13)
    check(whole[image].grad, (by_image + again_by_image) / 2)
    check(whole[text].grad, 0 * t if matched else (by_key + again_by_key) / 2)
    expected = np.concatenate([t, before["captions.rows"][6:]]) if matched or filling else before["captions.rows"]
    check(running.captions.rows, expected)
    assert set(found) == ({"loss", "roclip", "duplicates"} if matched else {"loss", "mmcl"})
    assert not matched or found["duplicates"].item() == pytest.approx(share)
    in_parts = Pooled(pool=8, augmented=augmented).begin(vit().double(), rng("start")).loss(lambda inputs: leaves(), batch)
    assert in_parts["loss"].item() == pytest.approx(found["loss"].item(), rel=1e-13), "a batch in parts comes with all its views"
