"""Our attacks beside those of foolbox and adv-lib, on the same small network and pictures. They are installed by `make oracles` alone."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.trainers.audit.attacks.cases import Network, attacked, changes, fooled
from trainers.audit.attacks.apgd import APGD
from trainers.audit.attacks.base import Norm
from trainers.audit.attacks.carlini_wagner import CarliniWagner
from trainers.audit.attacks.deepfool import DeepFool
from trainers.audit.attacks.fab import FAB
from trainers.audit.attacks.fgsm import FGSM
from trainers.audit.attacks.fmn import FMN
from trainers.audit.attacks.ifgsm import IFGSM
from trainers.audit.attacks.pgd import PGD

CASE = Network(dtype=torch.float32)
EPS: dict[Norm, float] = {"linf": 0.015, "l2": 0.12}
NAMES = {"linf": "Linf", "l2": "L2"}
each_norm = pytest.mark.parametrize("norm", list(EPS))


def by_foolbox(make: str, eps: float | None, **settings: Any) -> torch.Tensor:
    """The pictures that foolbox's attack of that name makes."""
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(CASE.model, bounds=(0, 1), device="cpu")
    _, picture_BCHW, _ = getattr(foolbox.attacks, make)(**settings)(model, CASE.pictures, CASE.labels, epsilons=eps)
    return picture_BCHW


def adv_lib() -> Any:
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # adv-lib plots with it, which no attack needs
    return pytest.importorskip("adv_lib.attacks")


def long(picture_BCHW: torch.Tensor, norm: Norm) -> np.ndarray:
    """How long each change is; infinite where the picture does not fool."""
    change_BM = (picture_BCHW - CASE.pictures).flatten(1)
    long_B = change_BM.abs().amax(1) if norm == "linf" else change_BM.norm(dim=1)
    return np.where(fooled(picture_BCHW, CASE), long_B.numpy(), np.inf)


@each_norm
def test_fgsm_is_that_of_the_oracle_foolbox(norm: Norm) -> None:
    theirs = by_foolbox(f"{NAMES[norm]}FastGradientAttack", EPS[norm])
    assert torch.allclose(attacked(FGSM(eps=EPS[norm], norm=norm), CASE).picture_BCHW, theirs, rtol=0, atol=1e-6)


@each_norm
def test_steps_without_a_random_start_are_those_of_the_oracle_foolbox(norm: Norm) -> None:
    eps = EPS[norm]
    alpha = 2.5 * eps / 20
    theirs = by_foolbox(f"{NAMES[norm]}ProjectedGradientDescentAttack", eps, abs_stepsize=alpha, steps=20, random_start=False)
    ours = attacked(IFGSM(eps=eps, norm=norm, alpha=alpha, steps=20), CASE).picture_BCHW
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    found = attacked(PGD(eps=eps, norm=norm, steps=20, random_start=False, stop=False), CASE)
    assert fooled(found.picture_BCHW, CASE).sum() >= fooled(theirs, CASE).sum() > 3


@each_norm
def test_deepfool_is_no_worse_than_the_oracle_foolbox(norm: Norm) -> None:
    theirs_B = long(by_foolbox(f"{NAMES[norm]}DeepFoolAttack", None, steps=50, candidates=10), norm)
    ours_B = long(attacked(DeepFool(norm=norm), CASE).picture_BCHW, norm)
    assert np.isfinite(ours_B).all() and (ours_B <= theirs_B * 1.001 + 1e-6).all()


def test_carlini_wagner_is_no_worse_than_the_oracle_foolbox() -> None:
    theirs_B = long(by_foolbox("L2CarliniWagnerAttack", None, binary_search_steps=6, steps=200), "l2")
    ours_B = long(attacked(CarliniWagner(searches=6, steps=200), CASE).picture_BCHW, "l2")
    assert np.isfinite(ours_B).all() and np.median(ours_B / theirs_B) <= 1.001 and ours_B.sum() <= 1.001 * theirs_B.sum()


@each_norm
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_is_no_weaker_than_the_oracle_adv_lib(norm: Norm, loss: Any) -> None:
    eps, p = EPS[norm], float("inf") if norm == "linf" else 2
    torch.manual_seed(0)
    theirs = adv_lib().apgd(CASE.model, CASE.pictures, CASE.labels, eps=eps, norm=p, n_iter=50, loss_function=loss)
    ours = attacked(APGD(eps=eps, norm=norm, loss=loss, steps=50), CASE)
    assert fooled(ours.picture_BCHW, CASE).sum() >= fooled(theirs, CASE).sum() - 1
    assert changes(ours, CASE, norm).max() <= eps + 1e-6


@each_norm
def test_targeted_apgd_is_no_weaker_than_the_oracle_adv_lib(norm: Norm) -> None:
    eps, p = EPS[norm], float("inf") if norm == "linf" else 2
    torch.manual_seed(0)
    theirs = adv_lib().apgd_targeted(CASE.model, CASE.pictures, CASE.labels, eps=eps, norm=p, n_iter=30, num_targets=4)
    ours = attacked(APGD(eps=eps, norm=norm, loss="targeted_dlr", steps=30, targets=4), CASE)
    assert fooled(ours.picture_BCHW, CASE).sum() >= fooled(theirs, CASE).sum() - 1


@each_norm
def test_smallest_changes_are_no_longer_than_those_of_the_oracle_adv_lib(norm: Norm) -> None:
    p = float("inf") if norm == "linf" else 2
    others = {
        "fmn": (adv_lib().fmn(CASE.model, CASE.pictures, CASE.labels, norm=p, steps=100), FMN(norm=norm)),
        "fab": (
            adv_lib().fab(CASE.model, CASE.pictures.clone(), CASE.labels, norm=p, n_iter=20, targeted_restarts=True, restarts=4),
            FAB(norm=norm, steps=20, targets=4),
        ),
    }
    for name, (theirs, attack) in others.items():
        theirs_B, ours_B = long(theirs, norm), long(attacked(attack, CASE).picture_BCHW, norm)
        assert np.isfinite(ours_B).all() and np.median(ours_B[np.isfinite(theirs_B)] / theirs_B[np.isfinite(theirs_B)]) <= 1.002, name
        for eps in np.quantile(ours_B, [0.25, 0.5, 0.75]):
            assert (ours_B > eps).sum() <= (theirs_B > eps).sum() + 1, name
