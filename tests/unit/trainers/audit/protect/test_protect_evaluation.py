"""What is measured of protected pictures: against closed forms and loops that share no code with it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg
from torch import Tensor

from trainers.audit.protect.base import grown, ring
from trainers.audit.protect.distances import distances, features, frechet, kernel_distance
from trainers.audit.protect.evaluate import Evaluation, gain, masks_of, psnr, ssim, treated
from trainers.audit.protect.linear_gain import LinearGain
from trainers.audit.protect.protect import Protect, Protected
from trainers.model import TinyCLIP

EPS, KEYS = 6 / 255, ("a", "b")


def pictures(seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(40, 210, (2, 3, 40, 44))).float() / 255


def mask() -> Tensor:
    made = torch.zeros(2, 1, 40, 44)
    made[0, :, 14:25, 13:26], made[1, :, 12:20, 20:31] = 1, 1
    return made


def test_ssim_agrees_with_loops_over_windows():
    a, b = pictures(), (0.6 * pictures() + 0.4 * pictures(1))
    place = np.arange(-5, 6)
    line = np.exp(-(place**2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2
    wanted = []
    for one, two in zip(a.double().numpy(), b.double().numpy()):
        values = []
        for c, y, x in np.ndindex(3, 40 - 10, 44 - 10):
            p, q = one[c, y : y + 11, x : x + 11], two[c, y : y + 11, x : x + 11]
            mean_p, mean_q = (weight * p).sum(), (weight * q).sum()
            var_p, var_q = (weight * (p - mean_p) ** 2).sum(), (weight * (q - mean_q) ** 2).sum()
            both = (weight * (p - mean_p) * (q - mean_q)).sum()
            values.append((2 * mean_p * mean_q + 1e-4) * (2 * both + 9e-4) / ((mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4)))
        wanted.append(np.mean(values))
    assert ssim(a, b) == pytest.approx(wanted, abs=1e-6) and ssim(a, a) == pytest.approx([1, 1])


def test_psnr_and_gain():
    a = pictures()
    assert psnr(a, a + 0.1) == pytest.approx([20, 20], abs=1e-4) and psnr(a, a) == [100, 100]
    moved = a + 0.02 * mask() + 0.3 * (1 - mask())
    assert gain(moved, a, mask(), 0.01).tolist() == pytest.approx([2, 2], abs=1e-4)


def test_pictures_are_rounded_and_treated_as_files_would_be():
    picture = pictures() + 0.6 / 255
    eight = treated(picture, "8bit")
    assert torch.allclose(eight, pictures() + 1 / 255, atol=1e-6), "rounded, not cut off"
    image = (255 * eight[0]).round().byte().permute(1, 2, 0).numpy()
    for quality in (95, 75):
        data = io.BytesIO()
        Image.fromarray(image).save(data, "JPEG", quality=quality)
        assert np.array_equal((255 * treated(picture, f"jpeg{quality}")[0]).round().permute(1, 2, 0).numpy(), np.asarray(Image.open(data)))
    levels = (31 * treated(picture, "bits5")).numpy()
    assert np.abs(levels - np.rint(levels)).max() < 0.07 and len(np.unique(levels)) <= 32
    assert torch.equal(treated(treated(picture, "bits5"), "bits5"), treated(picture, "bits5"))
    blurred = treated(picture, "blur")
    assert blurred.std() < 0.5 * picture.std() and float(blurred.mean()) == pytest.approx(float(picture.mean()), abs=0.01)


def test_masks_of_each_kind():
    m = mask()
    assert [one.tolist() for one in masks_of(m, "malicious")] == [m.tolist()]
    assert len(masks_of(m, "incomplete")) == 6 and len(masks_of(m, "benign")) == 3
    assert all((one * grown(m)).equal(one) for one in masks_of(m, "incomplete"))
    assert all((one * ring(m)).equal(one) and one.any() for one in masks_of(m, "benign"))
    unseen = masks_of(m, "unseen")
    assert len(unseen) == 4 and all(one.shape == m.shape and set(one.unique().tolist()) == {0, 1} for one in unseen)
    assert torch.equal(unseen[0][:, :, 6:, 6:], m[:, :, :-6, :-6])
    assert all((one * grown(m)).equal(one) for one in unseen[1:])
    top, left = 14 - 8, 13 - 8  # the box of the first E(m)
    assert unseen[3][0, 0, top, left] == 1 and unseen[3][0, 0, top, left + 1] == 0, "a triangle below the box's diagonal"


def test_rows_of_a_model_whose_change_is_known():
    painter, picture = LinearGain(kappa=3), pictures()
    found = Protect(eps=EPS, incomplete=0, hide=0, augment=0).run(painter, picture, mask(), KEYS)
    rows = Evaluation(kinds=("malicious", "benign"), treatments=("8bit", "jpeg75")).rows(painter, picture, mask(), found, EPS, KEYS)
    assert [(row["noise"], row["treatment"], row["mask"]) for row in rows] == [
        (noise, treatment, kind)
        for treatment in ("8bit", "jpeg75")
        for kind in ("malicious", "benign")
        for noise in ("protected", "random")
    ]
    first, random = rows[0], rows[1]
    assert (first["n"], first["masks"], rows[2]["masks"]) == (2, 1, 3)
    assert first["gain"] == pytest.approx(3, rel=1e-3) and random["gain"] < 0.5  # ±6 steps of 8 bits, everywhere that is visible
    before, after = painter(picture, mask()), painter(found.picture_BCHW, mask())
    share = mask().expand_as(picture) > 0
    wanted = [float(((one - found.target_BCHW) ** 2)[i][share[i]].mean()) for one in (after, before) for i in (0, 1)]
    assert first["mse_target"] == pytest.approx(np.mean(wanted[:2]), abs=1e-5)
    assert first["mse_target_without"] == pytest.approx(np.mean(wanted[2:]), abs=1e-5) and first["mse_target"] < first["mse_target_without"]
    assert first["ssim"] == pytest.approx(np.mean(ssim(after, before)), abs=1e-5)
    assert first["ssim_original"] == pytest.approx(np.mean(ssim(after, picture)), abs=1e-5)
    assert first["psnr"] == pytest.approx(np.mean(psnr(after, before)), abs=1e-3)
    assert random["psnr_picture"] == pytest.approx(-20 * np.log10(EPS), abs=1e-3)
    assert "clip_kid" not in first


def test_without_noise_nothing_changes():
    picture = pictures()
    same = Protected(picture, 0 * picture, picture)
    for row in Evaluation(treatments=("8bit", "blur")).rows(LinearGain(), picture, mask(), same, EPS, KEYS):
        if row["noise"] == "protected":
            assert row["gain"] == 0 and row["psnr"] == row["psnr_picture"] == 100 and row["ssim"] == pytest.approx(1)


def test_distances_agree_with_a_matrix_root_and_loops():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(40, 5)), draw.normal(size=(30, 5)) @ draw.normal(size=(5, 5)) + 0.3
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-8) and frechet(a, a) == pytest.approx(0, abs=1e-9)
    kernel = lambda x, y: (float(x @ y) / 5 + 1) ** 3
    within = [np.mean([kernel(x, y) for i, x in enumerate(one) for j, y in enumerate(one) if i != j]) for one in (a, b)]
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * between, rel=1e-10)
    assert np.isnan(kernel_distance(a[:1], b))


def test_there_is_no_fid_with_fewer_pictures_than_features():
    draw = np.random.default_rng(0)
    few = distances(draw.normal(size=(5, 5)), draw.normal(size=(9, 5)))
    assert np.isnan(few.fid) and np.isfinite(few.kid) and (few.n, few.d) == (5, 5)
    assert "needs more pictures than features" in few.note and "5 pictures and 5 features" in few.note
    enough = distances(draw.normal(size=(6, 5)), draw.normal(size=(9, 5)))
    assert np.isfinite(enough.fid) and not enough.note


def test_an_encoder_adds_clip_distances():
    encoder = TinyCLIP(embed_dim=8, vision_width=8).build(0).eval()
    found = features(encoder, pictures())
    assert found.shape == (2, 8) and np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    own = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    with torch.no_grad():
        wanted = encoder.encode_image(own).double().numpy()
    assert features(encoder, own.permute(0, 3, 1, 2).float() / 255) == pytest.approx(wanted, abs=1e-4)
    picture = pictures()
    same = Protected(picture, 0 * picture, picture)
    (row, _) = Evaluation(kinds=("malicious",), treatments=("8bit",)).rows(LinearGain(), picture, mask(), same, EPS, KEYS, encoder)
    assert np.isnan(row["clip_fid"]) and "2 pictures and 8 features" in row["clip_note"] and np.isfinite(row["clip_kid"])
