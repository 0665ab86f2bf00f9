"""Randomness as a function of names: the same in any order, in any worker and with any number of processes."""

import hashlib
from collections.abc import Callable

import numpy as np


def hash64(*parts: object) -> int:
    """An unsigned 64-bit integer from the parts: the blake2b hash of their texts joined by `|`."""
    text = "|".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def hasher(*salt: object) -> Callable[[object], int]:
    """`hash64(*salt, part)` as a function of the part, for many parts: the salt is hashed once."""
    begun = hashlib.blake2b("".join(f"{part}|" for part in salt).encode(), digest_size=8)

    def hashed(part: object) -> int:
        state = begun.copy()
        state.update(str(part).encode())
        return int.from_bytes(state.digest(), "big")

    return hashed


def rng(*parts: object) -> np.random.Generator:
    """A fresh generator that depends on the parts alone, e.g. `rng(seed, "trigger", key)`."""
    return np.random.Generator(np.random.PCG64(hash64(*parts)))
