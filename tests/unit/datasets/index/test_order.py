"""In which order pairs are trained on: each once an epoch, whatever the order, the world and the step that training begins with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from datasets.errors import InputError
from datasets.index.order import Drawn, Formula, Order, Windows, epoch_order, permuted, rank_slice, step_positions

ORDERS = [Drawn(), Formula(), Windows(shards=1), Windows(shards=3), Windows(shards=1000)]


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12), batch=st.integers(1, 60), seed=st.integers(0, 5),
    world=st.sampled_from([1, 2, 4]), order=st.sampled_from(ORDERS),
)  # fmt: skip
def test_an_epoch_is_every_sample_once_whatever_the_world(sizes: list[int], batch: int, seed: int, world: int, order: Order) -> None:
    starts = np.cumsum([0, *sizes])
    n = int(starts[-1])
    batch = max(1, min(batch, n) // world) * world
    if batch > n:
        with pytest.raises(InputError, match=f"batch_size is {batch}, but the data set has {n} samples" if n else "no sample left"):
            step_positions(starts, batch, seed, 0, order)
        return
    steps = n // batch
    for epoch in (0, 3):
        parts = [step_positions(starts, batch, seed, epoch * steps + i, order) for i in range(steps)]
        assert {e for e, _ in parts} == {epoch}
        joined = np.concatenate([p for _, p in parts])
        assert joined.tolist() == order.positions(starts, seed, epoch, 0, n)[: steps * batch].tolist()
        assert sorted(order.positions(starts, seed, epoch, 0, n)) == list(range(n))
        shares = [rank_slice(parts[0][1], r, world) for r in range(world)]
        assert np.concatenate(shares).tolist() == parts[0][1].tolist()


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_orders_differ_by_epoch_and_seed(order: Order) -> None:
    starts = np.arange(0, 51, 5)
    assert len({tuple(order.positions(starts, seed, epoch, 0, 50)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_a_batch_must_divide() -> None:
    with pytest.raises(InputError, match="batch_size is 10, which 4 workers cannot share equally"):
        rank_slice(np.arange(10), 0, 4)


def test_the_orders_of_finished_trainings_stay_as_they_are() -> None:
    assert epoch_order(10, 0, 0).tolist() == [9, 5, 6, 1, 7, 3, 8, 2, 4, 0]
    assert Formula().positions(np.array([0, 10]), 0, 0, 0, 10).tolist() == [1, 0, 5, 9, 6, 7, 4, 8, 3, 2]
    assert Windows(shards=2).positions(np.array([0, 3, 6, 10]), 0, 0, 0, 10).tolist() == [4, 7, 5, 8, 6, 3, 9, 1, 0, 2]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 1000, 4096, 4097])
def test_a_formula_permutes(n: int) -> None:
    for salt in range(3):
        assert sorted(permuted(np.arange(n), n, salt)) == list(range(n))


@pytest.mark.parametrize("n", [6, 37])
def test_a_formula_is_as_random_as_a_draw(n: int) -> None:
    """Over many salts, each place gets each number equally often, and each pair of neighbours each difference."""
    draws = 4000
    found_DN = np.stack([permuted(np.arange(n), n, salt) for salt in range(draws)])
    counts_NN = np.stack([np.bincount(found_DN[:, place], minlength=n) for place in range(n)])
    assert stats.chi2.sf(((counts_NN - draws / n) ** 2 / (draws / n)).sum(), (n - 1) ** 2) > 1e-3
    steps = (found_DN[:, 1] - found_DN[:, 0]) % n
    assert stats.chisquare(np.bincount(steps, minlength=n)[1:]).pvalue > 1e-3


def test_a_huge_set_needs_no_memory_of_its_size() -> None:
    n = 400_000_000
    got = Formula().positions(np.array([0, n]), 0, 5, n - 2048, n)
    assert len(np.unique(got)) == 2048 and got.min() >= 0 and got.max() < n
    assert abs(got.mean() / n - 0.5) < 0.03  # six standard errors are 0.038


def test_a_window_is_some_whole_shards() -> None:
    starts = np.cumsum([0, 5, 0, 7, 4, 6, 8])  # the second shard has no pair that is kept
    found = Windows(shards=2).positions(starts, 1, 0, 0, 30)
    shard = np.searchsorted(starts, found, "right") - 1
    seen: list[set[int]] = []
    for one in shard.tolist():
        if not seen or one not in seen[-1] and len(seen[-1]) == 2:
            seen.append(set())
        seen[-1].add(one)
    assert sorted(sum(map(sorted, seen), [])) == [0, 2, 3, 4, 5], "no shard is left and begun again"
    assert max(map(len, seen)) == 2
