"""Hashes of names: of one, and of many with one salt."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from datasets.seeding import hash64, hashes64

PARTS = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers())


@given(st.lists(PARTS, max_size=3), st.lists(PARTS, max_size=5))
def test_many_hashes_are_those_of_one_key_after_the_other(salt, keys):
    hashes = hashes64(*salt, keys=keys)
    assert hashes.dtype == "uint64" and hashes.tolist() == [hash64(*salt, key) for key in keys]


def test_a_hash_is_blake2b_of_the_joined_parts():
    digest = hashlib.blake2b("7|poison|kéy".encode(), digest_size=8).hexdigest()
    assert hash64(7, "poison", "kéy") == int(digest, 16) == hashes64(7, "poison", keys=["other", "kéy"])[1]
