"""In which order a training takes its pairs: one file for all orders, each a component.

An order is a matter of positions alone, 0 … n − 1 in the order of the index. An epoch is a permutation drawn from (seed, epoch), a step a
slice of it, and a rank's share a slice of the step. So training can begin at any step, and any feed can look up the same samples.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from datasets.component import Component, Count
from datasets.errors import InputError
from datasets.seeding import hash64, rng

ROUNDS = 8
"""Half-rounds of the permutation by formula. Four suffice for a pseudorandom permutation with perfect round functions (Luby and Rackoff
1988); ours are cheap ones."""


@dataclass(frozen=True, kw_only=True)
class Order(Component, ABC):
    """How an epoch is shuffled. A subclass says which positions a stretch of an epoch has."""

    by_shard: ClassVar[bool] = False
    """Whether the order depends on where shards begin."""

    @abstractmethod
    def positions(self, starts: np.ndarray, seed: int, epoch: int, first: int, last: int) -> np.ndarray:
        """int64 [last − first]: positions of the epoch's places `first` … `last` − 1, each position once in an epoch.

        `starts`: int64, rising, from 0: the position at which each shard begins, and at the end the number of positions.
        """


@dataclass(frozen=True, kw_only=True)
class Drawn(Order):
    """A permutation drawn at the beginning of an epoch and kept in memory: 8 bytes a pair in each process that reads."""

    def positions(self, starts: np.ndarray, seed: int, epoch: int, first: int, last: int) -> np.ndarray:
        return epoch_order(int(starts[-1]), seed, epoch)[first:last]


@dataclass(frozen=True, kw_only=True)
class Formula(Order):
    """A permutation computed where it is needed: an epoch begins at once, and nothing is kept however many pairs there are.

    A Feistel network on the bits of the place (Luby and Rackoff 1988), walked again while it leads out of 0 … n − 1 (cycle walking, Black
    and Rogaway 2002).
    """

    def positions(self, starts: np.ndarray, seed: int, epoch: int, first: int, last: int) -> np.ndarray:
        return permuted(np.arange(first, last), int(starts[-1]), seed, "order", epoch)


@dataclass(frozen=True, kw_only=True)
class Windows(Order):
    """Shards are shuffled, then the pairs of some shards at a time: so that what is read lies together, as object stores and network file
    systems like it. Less is mixed: a batch holds pairs of one window, or of two where one ends."""

    by_shard = True
    shards: Count = 16
    """How many shards make a window. Larger ones mix better; smaller ones fit a smaller page cache."""

    def positions(self, starts: np.ndarray, seed: int, epoch: int, first: int, last: int) -> np.ndarray:
        sizes_S = np.diff(starts)
        order_S = permuted(np.arange(len(sizes_S)), len(sizes_S), seed, "shards", epoch)
        ends_S = np.cumsum(sizes_S[order_S])
        found = [np.zeros(0, np.int64)]
        for number, begin in enumerate(range(0, len(order_S), self.shards)):
            own_K = order_S[begin : begin + self.shards]
            low, high = (int(ends_S[begin - 1]) if begin else 0), int(ends_S[begin + len(own_K) - 1])
            if low < last and first < high:
                places = np.arange(max(first, low), min(last, high)) - low
                within = permuted(places, high - low, seed, "window", epoch, number)
                ends_K = np.cumsum(sizes_S[own_K])
                which = np.searchsorted(ends_K, within, "right")
                found.append(starts[own_K[which]] + within - (ends_K - sizes_S[own_K])[which])
        return np.concatenate(found)


@functools.lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [n]: a drawn order of positions; read-only, because it is cached."""
    order = rng(seed, "order", epoch).permutation(n)
    order.flags.writeable = False
    return order


def permuted(place_N: np.ndarray, n: int, *salt: object) -> np.ndarray:
    """int64 [N]: where a permutation of 0 … n − 1 takes these places. It depends on `n` and the salt alone."""
    low = max(1, (n - 1).bit_length() // 2)
    high = max(1, (n - 1).bit_length() - low)
    keys = [np.uint64(hash64(*salt, "round", number)) for number in range(ROUNDS)]
    out_N = place_N.astype(np.uint64)
    todo = np.arange(len(out_N))
    while len(todo):
        value_M = _feistel(out_N[todo], low, high, keys)
        out_N[todo] = value_M
        todo = todo[value_M >= n]
    return out_N.astype(np.int64)


def _feistel(value_N: np.ndarray, low: int, high: int, keys: list[np.uint64]) -> np.ndarray:
    """A permutation of the numbers of low + high bits: in turn, each half is changed by what the other half is."""
    below, above = np.uint64((1 << low) - 1), np.uint64((1 << high) - 1)
    right_N, left_N = value_N & below, value_N >> np.uint64(low)
    for number, key in enumerate(keys):
        if number % 2:
            right_N = right_N ^ (_mixed(left_N ^ key) & below)
        else:
            left_N = left_N ^ (_mixed(right_N ^ key) & above)
    return left_N << np.uint64(low) | right_N


def _mixed(value_N: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit of the value."""
    value_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_N = (value_N ^ (value_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_N ^ (value_N >> np.uint64(31))


def step_positions(
    starts: np.ndarray, batch_size: int, seed: int, step: int, order: Order = Drawn()
) -> tuple[int, np.ndarray]:
    """(epoch, int64 [batch_size] positions) of a global step. An epoch has n // batch_size steps; the samples left over have their chance
    in other epochs, whose order differs.

    `starts`: as for `Order.positions`. InputError if there are fewer samples than one batch.
    """
    n = int(starts[-1])
    if not n:
        raise InputError("the data set has no sample left to train on: all are dropped.")
    if not 0 < batch_size <= n:
        raise InputError(f"batch_size is {batch_size}, but the data set has {n} samples; accepted are 1 … {n}.")
    epoch, within = divmod(step, n // batch_size)
    return epoch, order.positions(starts, seed, epoch, within * batch_size, (within + 1) * batch_size)


def rank_slice(positions: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The part of a global batch that one of `world` ranks takes: equal, adjacent parts. Raises `InputError` if they cannot be equal."""
    if len(positions) % world:
        raise InputError(f"batch_size is {len(positions)}, which {world} workers cannot share equally.")
    share = len(positions) // world
    return positions[rank * share : (rank + 1) * share]
