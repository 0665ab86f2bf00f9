"""Randomness as a function of names: the same in any order, in any worker and with any number of processes."""

import hashlib

import numpy as np


def hash64(*parts: object) -> int:
    """An unsigned 64-bit integer from the parts: the blake2b hash of their texts joined by `|`."""
    text = "|".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def rng(*parts: object) -> np.random.Generator:
    """A fresh generator that depends on the parts alone, e.g. `rng(seed, "trigger", key)`."""
    return np.random.Generator(np.random.PCG64(hash64(*parts)))
