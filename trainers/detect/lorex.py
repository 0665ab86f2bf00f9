"""Score along the strongest direction that trusted pictures lack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.component import Natural
from datasets.errors import InputError
from trainers.detect.base import Compared, Features, Reference

RIDGE = 1e-3
"""Added to the covariance's diagonal, as a share of the mean variance."""


@dataclass(frozen=True, kw_only=True)
class LoREx(Compared):
    """|⟨L⁻¹(x − μ), q⟩|, where x is the picture's unit feature. μ and Σ = LLᵀ are the mean and covariance of the trusted pictures, the
    covariance with a ridge of 1e-3 · tr Σ / D. q is the first right singular vector of the reference's pictures after the same whitening.
    High values are suspect.

    LoREx (calibretaliation). There q is computed from all pairs, here from the m pairs of the reference.
    """

    trusted: Natural | tuple[str, ...] = 0
    """Keys of pairs known to be clean; or how many pairs to draw, by hash of (seed, key), from those that are not victims."""

    def __post_init__(self) -> None:
        count = self.trusted if isinstance(self.trusted, int) else len(set(self.trusted))
        if count < 2:
            raise InputError(
                f"LoREx.trusted gives {count} pairs; it needs at least two that are known to be clean: their keys, or how many to draw."
            )

    @property
    def trusts(self) -> int | tuple[str, ...]:
        return self.trusted

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        about = ("lorex", self)
        if about not in reference.kept:
            assert reference.trusted is not None, "it asks for trusted pairs"
            reference.kept[about] = _direction(_unit(reference.trusted), _unit(reference.pairs))
        mean_D, weight_D = reference.kept[about]
        return np.abs((_unit(pairs) - mean_D) @ weight_D)


def _unit(pairs: Features) -> np.ndarray:
    return pairs.image("unit").cpu().numpy()


def _direction(trusted_TD: np.ndarray, mixed_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(μ, L⁻ᵀq), so that ⟨L⁻¹(x − μ), q⟩ = ⟨x − μ, L⁻ᵀq⟩."""
    from scipy.linalg import solve_triangular

    mean_D = trusted_TD.mean(axis=0)
    covariance_DD = np.cov(trusted_TD, rowvar=False, bias=True)
    size = len(mean_D)
    ridge = max(RIDGE * float(np.trace(covariance_DD)) / size, np.finfo(float).tiny)
    lower_DD = np.linalg.cholesky(covariance_DD + ridge * np.eye(size))
    white_MD = solve_triangular(lower_DD, (mixed_MD - mean_D).T, lower=True).T
    first_D = np.linalg.svd(white_MD, full_matrices=False)[2][0]
    return mean_D, solve_triangular(lower_DD, first_D, lower=True, trans="T")
