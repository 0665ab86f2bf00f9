"""Counted shares as metrics, and whether two of them differ by more than chance."""

from __future__ import annotations

from trainers.evaluate.zeroshot import wilson

LEVEL = 0.05
"""The sign test's level."""


def share(name: str, count: int, n: int) -> dict[str, float]:
    """A share in percent with its 95 % Wilson interval: `name`, `name`_low, `name`_high. Empty if n is 0."""
    if not n:
        return {}
    low, high = wilson(count, n)
    return {name: 100 * count / n, f"{name}_low": low, f"{name}_high": high}


def beyond_chance(gained: int, lost: int) -> bool:
    """Whether of two results for the same pictures the first holds for more of them than chance explains: one-sided exact sign test at 5 %.

    `gained`: pictures for which the first holds alone; `lost`: those for which the second does. Pictures with both or neither say nothing.
    """
    from scipy.stats import binomtest

    return gained > lost and bool(binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue <= LEVEL)
