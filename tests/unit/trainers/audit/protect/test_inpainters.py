"""Inpainting models and the algebra of masks: against scipy, numpy's dense solver and closed forms."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.audit.protect.base import Inpainter, grown, half, halves, masked_mse, ring, shrunk
from trainers.audit.protect.harmonic import Harmonic
from trainers.audit.protect.lama_jit import LamaJit, _mirrored
from trainers.audit.protect.linear_gain import LinearGain
from trainers.audit.protect.small_net import SmallNet, SmallNetTraining

TINY = SmallNetTraining(width=2, blocks=1, crop=16, batch_size=2, steps=3)


class Painter(nn.Module):
    """In place of LaMa: paints with the means of rows; refuses sides that are no multiples of 8."""

    def forward(self, picture: Tensor, mask: Tensor) -> Tensor:
        assert picture.shape[2] % 8 == 0 and picture.shape[3] % 8 == 0 and mask.shape[2:] == picture.shape[2:]
        return picture.mean(3, keepdim=True).expand_as(picture) + 0.1 * mask


def noise_picture(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.random.default_rng(len(shape)).random(shape)).to(dtype)


def blob(height: int = 27, width: int = 34) -> Tensor:
    """A mask with two parts, one at the picture's corner."""
    mask = torch.zeros(1, 1, height, width)
    mask[:, :, 8:15, 10:21] = 1
    mask[:, :, 20:, 28:] = 1
    return mask


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inpainter]:
    folder = tmp_path_factory.mktemp("inpainters")
    pictures = [np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8) for seed in (0, 1)]
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(Painter()), out)
    (folder / "painter.pt").write_bytes(out.getvalue())
    lama = LamaJit(path=str(folder / "painter.pt"), sha256=hashlib.sha256(out.getvalue()).hexdigest())
    return {"harmonic": Harmonic(), "linear": LinearGain(), "small": TINY.make(pictures, folder / "net.safetensors"), "lama": lama}


each = pytest.mark.parametrize("name", ["harmonic", "linear", "small", "lama"])


def test_grown_is_a_dilation_and_shrunk_an_erosion():
    mask = np.random.default_rng(0).random((40, 50)) < 0.004
    given = torch.from_numpy(mask)[None, None].float() * 0.3  # any value above 0 counts as 1
    square = np.ones((17, 17))
    assert np.array_equal(grown(given)[0, 0].numpy() > 0, ndimage.binary_dilation(mask, square)) and mask.any()
    large = torch.from_numpy(~mask)[None, None].float()
    assert np.array_equal(shrunk(large, 2)[0, 0].numpy() > 0, ndimage.binary_erosion(~mask, np.ones((5, 5)), border_value=1))
    assert torch.equal(ring(given), grown(given) - (given > 0).float()) and set(ring(given).unique().tolist()) == {0, 1}


def test_halves_have_half_the_pixels_and_lie_on_one_side():
    mask = torch.cat([blob(), blob().flip(2, 3)])
    y, x = np.mgrid[: mask.shape[2], : mask.shape[3]]
    for way, along in {"horizontal": y, "vertical": x, "diagonal": x + y}.items():
        found = half(mask, way)
        for one, whole in zip(found[:, 0].numpy() > 0, mask[:, 0].numpy() > 0):
            assert one.sum() == -(-whole.sum() // 2) and not (one & ~whole).any()
            assert along[one].max() <= along[whole & ~one].min()
    assert len(halves(mask)) == 3 and not torch.equal(halves(mask)[0], halves(mask)[1])


def test_masked_mse_is_the_sum_over_masked_values():
    a, b, mask = noise_picture(2, 3, 27, 34), noise_picture(2, 3, 27, 34).flip(0), torch.cat([blob(), blob().flip(3)])
    inside = mask.numpy()[:, 0] > 0
    wanted = [((a[i] - b[i]).double().numpy() ** 2)[:, inside[i]].mean() for i in (0, 1)]
    assert masked_mse(a, b, mask).numpy() == pytest.approx(wanted, rel=1e-5)
    assert masked_mse(a, b, 0 * mask).tolist() == [0, 0]


@each
def test_the_hidden_pixels_have_no_gradient_and_the_others_are_returned(made, name):
    picture, mask = noise_picture(2, 3, 27, 34).requires_grad_(), torch.cat([blob(), blob().flip(2)])
    painted = made[name](picture, 0.5 * mask)
    hidden = mask.expand_as(picture) > 0
    assert torch.equal(painted[~hidden], picture[~hidden])
    (gradient,) = torch.autograd.grad((painted * mask * noise_picture(2, 3, 27, 34)).sum(), picture)
    assert (gradient[hidden] == 0).all() and gradient.abs().sum() > 0
    changed = picture.detach().clone()
    changed[hidden] = 1 - changed[hidden]
    assert torch.equal(made[name](changed, mask)[hidden], painted.detach()[hidden])
    painted = made[name](picture.detach(), mask)
    assert torch.isfinite(painted).all() and painted.min() >= 0 and painted.max() <= 1.2


@each
def test_a_mask_over_everything_or_of_another_size_is_refused(made, name):
    with pytest.raises(InputError, match="covers the whole picture"):
        made[name](noise_picture(1, 3, 27, 34), torch.ones(1, 1, 27, 34))
    with pytest.raises(InputError, match="accepted: .B, 1, H, W."):
        made[name](noise_picture(1, 3, 27, 34), torch.ones(1, 1, 27, 33))


def test_harmonic_agrees_with_a_dense_solver():
    picture, mask = noise_picture(1, 3, 12, 11, dtype=torch.float64), torch.zeros(1, 1, 12, 11)
    mask[:, :, 3:9, 4:], mask[:, :, 10:, :3] = 1, 1
    hidden, size = mask[0, 0].numpy() > 0, 12 * 11
    system, wanted = np.eye(size), picture[0].numpy().reshape(3, size).T.copy()
    for y, x in zip(*np.nonzero(hidden)):
        near = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)) if 0 <= y + dy < 12 and 0 <= x + dx < 11]
        for a, b in near:
            system[11 * y + x, 11 * a + b] -= 1 / len(near)
        wanted[11 * y + x] = 0
    found = Harmonic()(picture, mask)[0].numpy().reshape(3, size).T
    assert found == pytest.approx(np.linalg.solve(system, wanted), abs=1e-12)


def test_harmonic_continues_a_slope_and_its_gradient_is_the_adjoint():
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(16.0), indexing="ij")
    slope, mask = (y + 2 * x).expand(1, 3, 20, 16) / 60, torch.zeros(1, 1, 20, 16)
    mask[:, :, 4:15, 3:12] = 1
    assert torch.allclose(Harmonic()(slope, mask), slope, atol=1e-6)
    small = noise_picture(1, 2, 6, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda picture: Harmonic()(picture, mask[:, :, 2:8, 8:13]), small)


def test_linear_gain_moves_by_kappa_times_the_pattern():
    picture, mask, painter = noise_picture(1, 3, 27, 34, dtype=torch.float64), blob().double(), LinearGain(kappa=7)
    v = painter.pattern(mask)
    assert float(v.abs().sum()) == pytest.approx(1) and not (v * mask).any()
    moved = painter(picture + 0.01 * v.sign(), mask) - painter(picture, mask)
    assert moved[mask.expand_as(moved) > 0].numpy() == pytest.approx(0.07, abs=1e-12)


def test_the_small_network_is_the_same_on_every_call_and_known_by_its_hash(tmp_path: Path):
    pictures = [np.random.default_rng(0).integers(0, 256, (10, 30, 3), dtype=np.uint8)]
    first, again = (TINY.make(pictures, tmp_path / name) for name in "ab")
    other = SmallNetTraining(**{**vars(TINY), "seed": 1}).make(pictures, tmp_path / "c")
    assert first.sha256 == again.sha256 == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest() != other.sha256
    with pytest.raises(InputError, match="has the sha256 .*; accepted: "):
        SmallNet(sha256=first.sha256, weights=other.weights, width=2, blocks=1).check()
    with pytest.raises(InputError, match="no weights of a network with width 3"):
        SmallNet(sha256=first.sha256, weights=first.weights, width=3, blocks=1).check()
    with pytest.raises(InputError, match="cannot be read"):
        SmallNet(sha256=first.sha256, weights=str(tmp_path / "none")).check()
    with pytest.raises(InputError, match="at least one picture"):
        TINY.fit([])


def test_the_small_network_learns_nothing_from_secret_pixels():
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    secret = np.zeros((24, 24), bool)
    secret[4:12, 5:20] = True
    other = np.where(secret[..., None], 255 - picture, picture)
    assert TINY.fit([picture], [secret]) == TINY.fit([other], [secret])
    assert TINY.fit([picture]) != TINY.fit([other])


def test_lama_is_not_loaded_with_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was loaded")

    (tmp_path / "lama.pt").write_bytes(b"not the file")
    lama = LamaJit(path=str(tmp_path / "lama.pt"))
    with monkeypatch.context() as patched:
        patched.setattr(torch.jit, "load", never)
        with pytest.raises(InputError, match="so it is not loaded; accepted: 344c77bb"):
            lama.check()
    with pytest.raises(InputError, match="is no TorchScript module"):
        LamaJit(path=lama.path, sha256=hashlib.sha256(b"not the file").hexdigest()).check()
    with pytest.raises(InputError, match="cannot be read"):
        LamaJit(path=str(tmp_path / "none.pt")).check()


def test_lama_sees_mirrored_edges_and_is_called_with_hidden_pixels(made):
    picture, mask = noise_picture(1, 3, 27, 34), blob()
    wanted = np.pad(picture.numpy(), [(0, 0), (0, 0), (0, 5), (0, 6)], mode="symmetric")
    assert np.array_equal(_mirrored(picture, 8).numpy(), wanted)
    hidden = np.pad((picture * (1 - mask)).numpy(), [(0, 0), (0, 0), (0, 5), (0, 6)], mode="symmetric")
    rows = np.broadcast_to(hidden.mean(3, keepdims=True), hidden.shape)[:, :, :27, :34] + 0.1
    inside = mask.expand_as(picture).numpy() > 0
    assert made["lama"](picture, mask).numpy()[inside] == pytest.approx(rows[inside], abs=1e-6)
