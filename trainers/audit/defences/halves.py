"""Clean pictures for defences that need some, without rebuilding a picture from itself."""

from __future__ import annotations

import numpy as np

from datasets.errors import InputError
from datasets.seeding import hash64
from trainers.audit.base import Pictures
from trainers.audit.defences.base import Defence


def halves(defence: Defence, pictures: Pictures) -> list[tuple[np.ndarray, Defence]]:
    """Positions of audited pictures, int64 [n], and the defence that stands before them.

    All pictures and the defence itself; or, if it needs clean pictures (`Defence.ready`), two halves by the hashes of (seed, key), each
    with the defence made from the clean pictures of the other half, in the order of their keys. InputError if a half is empty.
    """
    if type(defence).ready is Defence.ready:
        return [(np.arange(len(pictures)), defence)]
    second_N = np.array([hash64(defence.seed, "half", key) % 2 == 1 for key in pictures.keys], bool)
    if second_N.all() or not second_N.any():
        raise InputError(
            f"{defence.label} needs clean pictures beside those before which it stands, and there are {len(pictures)}; accepted: more."
        )
    order_N = np.array(sorted(range(len(pictures)), key=lambda number: pictures.keys[number]))
    first_n, second_n = order_N[~second_N[order_N]], order_N[second_N[order_N]]
    return [(np.sort(own_n), defence.ready(pictures.image_NHWC[other_n])) for own_n, other_n in ((second_n, first_n), (first_n, second_n))]
