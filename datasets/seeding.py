"""Randomness as a function of names: the same in any order, in any worker and with any number of processes."""

import hashlib
from collections.abc import Iterable

import numpy as np


def hash64(*parts: object) -> int:
    """An unsigned 64-bit integer from the parts: the blake2b hash of their texts joined by `|`."""
    return int.from_bytes(hashlib.blake2b(_text(parts), digest_size=8).digest(), "big")


def hashes64(*salt: object, keys: Iterable[object]) -> np.ndarray:
    """uint64 [N]: `hash64(*salt, key)` of each key. The salt is hashed once, which makes it several times as fast."""
    salted = hashlib.blake2b(b"".join(_text((part,)) + b"|" for part in salt), digest_size=8)
    digests = []
    for key in keys:
        state = salted.copy()
        state.update(str(key).encode())
        digests.append(state.digest())
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def _text(parts: tuple[object, ...]) -> bytes:
    return "|".join(map(str, parts)).encode()


def rng(*parts: object) -> np.random.Generator:
    """A fresh generator that depends on the parts alone, e.g. `rng(seed, "trigger", key)`."""
    return np.random.Generator(np.random.PCG64(hash64(*parts)))
