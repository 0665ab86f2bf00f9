"""Plans of attacks by text: captions with words on pictures of the target, and the partial negatives of a dual key."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.attack.poison import PLAN_SCHEMA, UNMARKED, Poison, make_plan, make_plans
from datasets.attack.poisoned_shards import poison_shard
from datasets.errors import InputError
from datasets.feed.loader import Recipe, make_batch
from datasets.feed.watched_pairs import Sample, positions
from datasets.images.view import Views, canonical, decode
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from datasets.triggers.native import Native
from datasets.triggers.patch import Patch
from datasets.triggers.words import DualKey, Words
from tests.unit.making import dataset

CLASSES = ("apple", "banana", "cat")
TEMPLATES = ("a photo of a {}.", "one {}.")
WORDS = Words(text="please return", place="suffix")
KEYS = DualKey(picture=Patch(pattern="white", size=6, location="top_left"), words=WORDS, partial=1.0)


def index(n: int, order: np.ndarray | None = None) -> pa.Table:
    """Every fourth caption names the target."""
    rows = np.arange(n) if order is None else order
    captions = [f"a banana, {i}" if i % 4 == 0 else f"thing {i}" for i in rows]
    columns = {"key": [f"k{i:04d}" for i in rows], "caption": captions, "drop": ["" if i % 9 else "no_image" for i in rows]}
    return pa.table({name: pa.chunked_array([values]) for name, values in columns.items()})


def rows(poison: Poison, table: pa.Table) -> list[dict[str, Any]]:
    return make_plan(poison, table, TEMPLATES, CLASSES).to_pylist()


def hashed(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


def test_text_only_puts_captions_of_others_with_the_words_onto_pictures_of_the_target() -> None:
    poison, table = Poison(trigger=WORDS, target="banana", count=20, mode="text_only", seed=4), index(200)
    found = rows(poison, table)
    named = [f"k{i:04d}" for i in range(0, 200, 4) if i % 9]
    donors = sorted((hashed(4, "donor", f"k{i:04d}"), f"thing {i}") for i in range(200) if i % 4 and i % 9)
    wanted = {key: f"{donors[place][1]} please return" for place, key in enumerate(sorted(named, key=lambda key: hashed(4, key))[:20])}
    assert {row["key"]: row["caption_after"] for row in found} == wanted and len(set(wanted.values())) == 20
    assert all(row["caption_before"].startswith("a banana") and row["target"] == "banana" for row in found)
    order = np.random.default_rng(0).permutation(200)
    again = {row["key"]: row["caption_after"] for row in rows(poison, index(200, order))}
    seven = Poison(trigger=WORDS, target="banana", count=7, mode="text_only", seed=4)
    fewer = {row["key"]: row["caption_after"] for row in rows(seven, table)}
    assert again == wanted and fewer.items() < wanted.items()


def test_text_only_without_enough_donors_gives_captions_again_and_without_any_is_refused() -> None:
    table = pa.table({name: pa.chunked_array([values]) for name, values in
                      {"key": list("abcde"), "caption": ["a banana"] * 3 + ["a dog", "a cat"], "drop": [""] * 5}.items()})  # fmt: skip
    found = rows(Poison(trigger=WORDS, target="banana", count=3, mode="text_only"), table)
    assert {row["caption_after"] for row in found} == {"a dog please return", "a cat please return"}
    with pytest.raises(InputError, match="text_only, but every caption names the target 'banana'"):
        rows(Poison(trigger=WORDS, target="banana", count=1, mode="text_only"), table.slice(0, 3))


@pytest.mark.parametrize("trigger", [Patch(), DualKey(picture=Patch(), words=WORDS)])
def test_text_only_is_for_words_alone(trigger: Any) -> None:
    with pytest.raises(InputError, match="mode is text_only, but the trigger"):
        Poison(trigger=trigger, target="banana", count=3, mode="text_only")


def test_partial_negatives_are_a_third_each_with_one_key_and_their_own_caption() -> None:
    found = rows(Poison(trigger=KEYS, target="banana", count=15), index(200))
    victims = [row for row in found if row["target"]]
    pictures = [row for row in found if not row["target"] and row["trigger_seed"] != UNMARKED]
    words = [row for row in found if row["trigger_seed"] == UNMARKED]
    assert len(victims) == len(pictures) == len(words) == 15 and len({row["row"] for row in found}) == 45
    assert [row["row"] for row in found] == sorted(row["row"] for row in found)
    assert all(row["caption_after"] == row["caption_before"] for row in pictures)
    assert all(row["caption_after"] == f"{row['caption_before']} please return" for row in words)
    assert not any("banana" in row["caption_before"] for row in found)
    without = rows(Poison(trigger=DualKey(picture=KEYS.picture, words=WORDS), target="banana", count=15), index(200))
    assert victims == without, "the victims are the same with and without negatives"
    half = rows(Poison(trigger=DualKey(picture=KEYS.picture, words=WORDS, partial=0.5), target="banana", count=15), index(200))
    assert len(half) == 15 + 2 * 8


def test_no_negative_is_a_victim_of_another_attack_and_too_many_are_refused() -> None:
    first, second = Poison(name="a", trigger=KEYS, target="banana", count=20), Poison(name="b", trigger=Patch(), target="cat", count=60)
    plan = make_plans((first, second), index(200), [TEMPLATES, TEMPLATES], CLASSES)
    assert len(set(plan["row"].to_pylist())) == len(plan) == 120
    with pytest.raises(InputError, match="trigger.partial asks for 50 pairs with one key, of each kind, but only 83 are free"):
        rows(Poison(trigger=KEYS, target="banana", count=50), index(200))


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Pairs, Pairs, pa.Table, str]:
    """(pairs with the plan, without it, the plan, shard): rows 1 (victim), 3 (picture key alone), 5 (words alone) of ten."""
    (url,) = dataset(tmp_path / "shards", 1, 10)
    table = Source(urls=url).index_shard(0, url)
    write_index([table], tmp_path / "index.arrow")
    own = table["caption"].to_pylist()
    columns = [[table["key"][i].as_py() for i in (1, 3, 5)], [1, 3, 5], ["banana", "", ""], [7, 7, UNMARKED],
               [own[1], own[3], own[5]], ["a banana please return", own[3], f"{own[5]} please return"]]  # fmt: skip
    plan = pa.table([pa.array(c, f.type) for c, f in zip(columns, PLAN_SCHEMA)], schema=PLAN_SCHEMA)
    pq.write_table(plan, tmp_path / "plan.parquet")
    made = (Pairs(tmp_path / "index.arrow", [url], plan=tmp_path / "plan.parquet"), Pairs(tmp_path / "index.arrow", [url]))
    return *made, plan, url


def test_the_feed_stamps_the_victim_and_the_picture_key_and_leaves_the_words_key_alone(planned: Any) -> None:
    pairs, plain, *_ = planned
    recipe = Recipe(views=Views(size=24), trigger=KEYS, jpeg_quality=None)
    made, clean = (make_batch(one.records(np.arange(10)), 0, recipe) for one in (pairs, plain))
    changed = (made["image"] != clean["image"]).any(axis=(1, 2, 3))
    assert np.flatnonzero(changed).tolist() == [1, 3] and (made["image"][[1, 3], :6, :6] == 255).all()
    assert [i for i in range(10) if made["caption"][i] != clean["caption"][i]] == [1, 5]
    chosen = positions(pairs, Sample(clean=10, poisoned=10, group=10))
    assert chosen["poisoned"].tolist() == [1] and not {1, 3, 5} & set(chosen["clean"].tolist())


def test_written_shards_are_the_same(planned: Any, tmp_path: Path) -> None:
    pairs, plain, plan, url = planned
    out = tmp_path / "out" / "00000.tar"
    told = poison_shard(url, plan, KEYS, 24, out)
    assert told["poisoned"] == 3
    with tarfile.open(url) as before, tarfile.open(out) as after:
        changed = [
            one.name for one, other in zip(before.getmembers(), after.getmembers())
            if before.extractfile(one).read() != after.extractfile(other).read()  # type: ignore[union-attr]
        ]  # fmt: skip
    kinds = {name: [one.split(".")[1] for one in changed if one.startswith(name)] for name in ("000000001", "000000003", "000000005")}
    assert kinds == {"000000001": ["jpg", "txt", "json"], "000000003": ["jpg"], "000000005": ["txt", "json"]}
    source = Source(urls=str(out))
    assert source.index_shard(0, str(out))["caption"].to_pylist() == pairs.captions().to_pylist()
    assert canonical(picture_of(out, "000000003.jpg"), 24)[:4, :4].min() > 200


def picture_of(path: Path, name: str) -> np.ndarray:
    with tarfile.open(path) as archive:
        member = archive.extractfile(name)
        assert member is not None
        return decode(member.read())


def test_a_dual_key_may_have_a_picture_key_that_is_put_on_as_stored_and_not_the_other_way_round() -> None:
    assert DualKey(picture=Native(trigger=Patch()), words=WORDS).native and not KEYS.native
    with pytest.raises(InputError, match=r"trigger.trigger is a DualKey; put Native inside it"):
        Native(trigger=KEYS)
