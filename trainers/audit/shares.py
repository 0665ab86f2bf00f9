"""Counted shares as metrics."""

from __future__ import annotations

from trainers.evaluate.zeroshot import wilson


def share(name: str, count: int, n: int) -> dict[str, float]:
    """A share in percent with its 95 % Wilson interval: `name`, `name`_low, `name`_high. Empty if n is 0."""
    if not n:
        return {}
    low, high = wilson(count, n)
    return {name: 100 * count / n, f"{name}_low": low, f"{name}_high": high}
