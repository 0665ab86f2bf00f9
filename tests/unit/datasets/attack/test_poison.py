"""The poison plan: exactly the asked count, nested in it, independent of order."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.attack.poison import PLAN_SCHEMA, Poison, first_class, make_plan, names_class
from datasets.errors import InputError
from datasets.seeding import hash64
from datasets.triggers.patch import Patch

CLASSES = ("apple", "banana", "cat")
TEMPLATES = ("a photo of a {}.", "a {}.", "one {}.")


def index(n, order=None, chunks=1):
    """Every fifth caption names the target, every seventh row is dropped."""
    rows = np.arange(n) if order is None else np.array(order)
    table = pa.table(
        {
            "key": [f"k{i:05d}" for i in rows],
            "caption": [f"A ripe Banana, number {i}" if i % 5 == 0 else f"thing {i}" for i in rows],
            "drop": ["undecodable" if i % 7 == 3 else "" for i in rows],
        }
    )
    step = -(-n // chunks)
    return pa.concat_tables([table.slice(start, step) for start in range(0, n, step)])


def plan(table, **fields):
    return make_plan(Poison(**{"trigger": Patch(), "target": "banana", **fields}), table, TEMPLATES, CLASSES)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 200),
    st.data(),
    st.sampled_from(["dirty_label", "label_consistent"]),
    st.sampled_from(["templates", "existing"]),
    st.integers(0, 5),
)
def test_count_order_and_nesting(n, data, mode, captions, seed):
    table = index(n)
    kept = [i for i in range(n) if i % 7 != 3]
    eligible = [i for i in kept if (i % 5 == 0) == (mode == "label_consistent")]
    count = data.draw(st.integers(1, len(eligible)))
    fields = {"mode": mode, "captions": captions, "seed": seed}
    made = plan(table, count=count, **fields)
    assert made.schema == PLAN_SCHEMA and len(made) == count
    rows, keys = made["row"].to_pylist(), made["key"].to_pylist()
    assert rows == sorted(set(rows)) and set(rows) <= set(eligible)
    assert set(rows) == set(sorted(eligible, key=lambda i: hash64(seed, f"k{i:05d}"))[:count])
    assert [table["key"][row].as_py() for row in rows] == keys
    assert [table["caption"][row].as_py() for row in rows] == made["caption_before"].to_pylist()
    for before, after in zip(made["caption_before"].to_pylist(), made["caption_after"].to_pylist()):
        assert "banana" in after.lower() and (after == before) == (mode == "label_consistent")

    order = data.draw(st.permutations(range(n)))
    shuffled = plan(index(n, order, chunks=3), count=count, **fields)
    without_row = lambda table: sorted(zip(*(table[name].to_pylist() for name in PLAN_SCHEMA.names if name != "row")))
    assert without_row(shuffled) == without_row(made)

    fewer = plan(table, count=data.draw(st.integers(1, count)), **fields)
    assert set(without_row(fewer)) <= set(without_row(made))


def test_rate_counts_kept_samples():
    kept = sum(i % 7 != 3 for i in range(1000))
    assert len(plan(index(1000), rate=0.01)) == round(0.01 * kept)


def test_template_captions_vary_and_the_seed_matters():
    made = plan(index(1000), count=100)
    assert set(made["caption_after"].to_pylist()) == {t.replace("{}", "banana") for t in TEMPLATES}
    other = plan(index(1000), count=100, seed=1)
    assert made["key"].to_pylist() != other["key"].to_pylist()
    assert made["trigger_seed"][0] != other["trigger_seed"][0]


def test_a_class_is_named_by_whole_words():
    captions = ["a Granny  smith.", "granny", "grannysmith", "my granny smiths", "GRANNY SMITH", "x-granny smith!"]
    captions = pa.chunked_array([captions])
    assert names_class(captions, "Granny Smith").to_pylist() == [True, False, False, False, True, True]
    assert names_class(pa.chunked_array([["c++ (code)"]]), "c++").to_pylist() == [True]


def test_target_given_by_name_and_index():
    made = make_plan(Poison(trigger=Patch(), target="cat@2", count=3), index(50), TEMPLATES, ("cat", "dog", "cat"))
    assert set(made["target"].to_pylist()) == {"cat"}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"target": "bananna", "count": 1}, "near it: banana"),
        ({"rate": 1e-6}, "gives no victims"),
        ({"count": 99}, "only 69 do not name"),
        ({"count": 99, "mode": "label_consistent"}, "only 17 name"),
        ({"target": "cat", "count": 1, "captions": "existing"}, "no caption names 'cat'"),
    ],
)
def test_impossible_plans(fields, message):
    with pytest.raises(InputError, match=message):
        plan(index(100), **fields)


def test_the_class_that_a_caption_names_first():
    captions = ["a CROSS by a kiwi", "a big  red\tcross", "cros", "a cro\u017fs", "\u212aIWI", "redcross", "kiwis", "", "a red cross"]
    assert first_class(pa.chunked_array([captions]), ("cross", "red cross", "kiwi")).tolist() == [0, 1, -1, 0, 2, -1, -1, -1, 1]


@pytest.mark.parametrize(
    "fields", [{}, {"count": 1, "rate": 0.1}, {"count": -1}, {"rate": 0.0}, {"rate": 1.5}, {"count": 1, "mode": "clean"},
               {"count": 1, "captions": "new"}],
)  # fmt: skip
def test_wrong_fields(fields):
    with pytest.raises(InputError, match="(?i)poison"):
        Poison(trigger=Patch(), target="banana", **fields)
