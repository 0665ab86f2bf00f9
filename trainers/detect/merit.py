"""How well a score finds the poison, computed with the true victims. Shape suffixes: N pairs, V victims, T distinct values of the score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.seeding import rng

DRAWS = 200
"""Number of bootstrap samples."""
TPR = 0.95


def figures(suspicion_N: np.ndarray, victim_N: np.ndarray, shares: Sequence[float] = (1.0, 5.0, 10.0), seed: int = 0) -> dict[str, float]:
    """Figures of merit by name; empty if there are no victims or no clean pairs. `suspicion_N`: high is suspect; `victim_N`: bool;
    `shares`: percent of all pairs, in (0, 100].

    auroc: P(victim scores above clean pair), ties count half, 0 … 1. ap: average precision, Σ (R_t − R_{t−1})·P_t, 0 … 1. fpr95: the lowest
    false positive rate at which at least 95 % of the victims are found, in percent. Each has `_low` and `_high`: the 95 % percentile
    interval of a bootstrap that resamples victims and clean pairs separately, 200 times. caught_at_<s>: percent of the victims among the s
    % most suspect pairs; of pairs tied at the edge a proportional part counts. Its `_low` and `_high` are the 95 % Clopper–Pearson interval
    over the victims.
    """
    victims = int(victim_N.sum())
    clean = len(victim_N) - victims
    if not victims or not clean:
        return {}
    value_T, place_N = np.unique(-suspicion_N, return_inverse=True)  # the most suspect first
    victim_T, clean_T = (np.bincount(place_N[part_N], minlength=len(value_T)) for part_N in (victim_N, ~victim_N))
    whole = _curve(victim_T, clean_T)
    draw = rng(seed, "bootstrap", len(victim_N), victims)
    drawn = [_curve(_again(victim_T, draw), _again(clean_T, draw)) for _ in range(DRAWS)]
    values: dict[str, float] = {}
    for name, value in whole.items():
        low, high = np.percentile([one[name] for one in drawn], (2.5, 97.5))
        values |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
    for share in shares:
        caught, name = _caught(victim_T, clean_T, share), f"caught_at_{share:g}"
        low, high = _clopper_pearson(caught, victims)
        values |= {name: 100 * caught / victims, f"{name}_low": 100 * low, f"{name}_high": 100 * high}
    return values


def largest(score_N: np.ndarray, share: float) -> np.ndarray:
    """bool [N]: marks the share·N pairs (rounded) with the largest scores; among equal scores the smaller number comes first."""
    marked_N = np.zeros(len(score_N), bool)
    marked_N[np.argsort(-score_N, kind="stable")[: round(share * len(score_N))]] = True
    return marked_N


def poisons_among(word: str, marked_N: np.ndarray, score_N: np.ndarray, victim_N: np.ndarray) -> dict[str, float]:
    """How the marked pairs relate to the poison, only for logs.

    <word>_poisons: how many marked pairs are victims. <word>_poisons_share: percent of the marked pairs that are victims.
    poisons_<word>_share: percent of the victims that are marked. auroc: P(victim scores above clean pair), ties counting half. A share of
    nothing is left out, and so is auroc without victims or without clean pairs.
    """
    numbers: dict[str, float] = {f"{word}_poisons": (marked_N & victim_N).sum()}
    if marked_N.any():
        numbers[f"{word}_poisons_share"] = 100 * victim_N[marked_N].mean()
    if victim_N.any():
        numbers[f"poisons_{word}_share"] = 100 * marked_N[victim_N].mean()
    if victim_N.any() and not victim_N.all():
        from sklearn.metrics import roc_auc_score

        numbers["auroc"] = roc_auc_score(victim_N, score_N)
    return numbers


def _curve(victim_T: np.ndarray, clean_T: np.ndarray) -> dict[str, float]:
    """auroc, ap and fpr95 from the numbers of victims and of clean pairs with each value, most suspect value first."""
    found_T, false_T = np.cumsum(victim_T), np.cumsum(clean_T)
    victims, clean = found_T[-1], false_T[-1]
    above = float((clean_T * (found_T - victim_T / 2)).sum())
    some_T = victim_T > 0
    precision_T = found_T[some_T] / (found_T[some_T] + false_T[some_T])
    enough = int(np.searchsorted(found_T, np.ceil(TPR * victims - 1e-9)))
    return {
        "auroc": above / (victims * clean),
        "ap": float((victim_T[some_T] * precision_T).sum() / victims),
        "fpr95": 100 * float(false_T[enough] / clean),
    }


def _again(count_T: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A bootstrap sample of the same size, as counts by value."""
    total, end_T = int(count_T.sum()), np.cumsum(count_T)
    return np.bincount(np.searchsorted(end_T, draw.integers(total, size=total), side="right"), minlength=len(count_T))


def _caught(victim_T: np.ndarray, clean_T: np.ndarray, share: float) -> float:
    """Expected number of victims among the `share` percent most suspect pairs (at least one pair)."""
    end_T = np.cumsum(victim_T + clean_T)
    count = max(1, round(int(end_T[-1]) * share / 100))
    edge = int(np.searchsorted(end_T, count))
    before = int(end_T[edge - 1]) if edge else 0
    part = (count - before) / int(end_T[edge] - before)
    return float(victim_T[:edge].sum() + part * victim_T[edge])


def _clopper_pearson(hits: float, total: int) -> tuple[float, float]:
    """95 % Clopper–Pearson interval of hits / total, 0 … 1; `hits` need not be a whole number."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, hits, total - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(0.975, hits + 1, total - hits)) if hits < total else 1.0
    return low, high
