"""The index on disk, the plan laid over it, and the order of training."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets.index.pairs
from datasets.errors import InputError
from datasets.index.pairs import Pairs, epoch_order, rank_slice, step_positions, write_index
from datasets.index.source import INDEX_SCHEMA
from tests.unit.making import pairs


def table(first: int, count: int, drop: str = "") -> pa.Table:
    rows = range(first, first + count)
    columns = [[f"k{i}" for i in rows], [0] * count, ["m.jpg"] * count, [512 * i for i in rows], [100] * count]
    columns += [[f"caption {i}" for i in rows], [i % 7 for i in rows], [drop] * count]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, INDEX_SCHEMA)], schema=INDEX_SCHEMA)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=6), positions=st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_records_are_the_rows_asked_for_in_their_order(tmp_path_factory, sizes, positions):
    path = tmp_path_factory.mktemp("index") / "index.arrow"
    starts = np.cumsum([0, *sizes])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.index.pairs, "BATCH_ROWS", 4)
        assert write_index((table(int(a), n) for a, n in zip(starts, sizes)), path) == sum(sizes)
    data = Pairs(path, ["u.tar"])
    assert len(data) == sum(sizes) and data.keys().to_pylist() == [f"k{i}" for i in range(sum(sizes))]
    if len(data):
        wanted = np.array(positions) % len(data)
        records = data.records(wanted)
        assert records["row"].to_pylist() == wanted.tolist()
        assert records["caption"].to_pylist() == [f"caption {i}" for i in wanted]
        assert records["offset"].to_pylist() == [512 * i for i in wanted]
        assert data.labels(wanted).tolist() == [i % 7 for i in wanted]
    assert len(data.records(np.zeros(0, np.int64))) == 0
    assert list(path.parent.iterdir()) == [path]


def test_dropped_rows_are_left_out_and_a_choice_is_kept(tmp_path):
    path = tmp_path / "index.arrow"
    write_index([table(0, 3), table(3, 2, "undecodable"), table(5, 2)], path)
    assert Pairs(path, ["u"]).rows.tolist() == [0, 1, 2, 5, 6]
    chosen = pickle.loads(pickle.dumps(Pairs(path, ["u"], rows=np.array([1, 6]))))
    assert chosen.keys().to_pylist() == ["k1", "k6"]


def test_plan_is_laid_over_the_index(tmp_path):
    data = pairs(tmp_path, plan={4: "a photo of a banana.", 25: "a banana."})
    data.records(np.array([0]))
    assert len(pickle.dumps(data)) < 2000  # opened files do not travel
    records = pickle.loads(pickle.dumps(data)).records(np.array([25, 3, 4, 29]))
    assert records["poisoned"].to_pylist() == [True, False, True, False]
    assert records["trigger_seed"].to_pylist() == [7, 0, 7, 0]
    assert records["caption"].to_pylist()[::2] == ["a banana.", "a photo of a banana."]
    assert records["url"].to_pylist()[0].endswith("00002.tar")
    assert data.captions(np.array([3, 4])).to_pylist() == ["a picture of thing number 3", "a photo of a banana."]


def test_a_plan_for_another_index_is_refused(tmp_path):
    data = pairs(tmp_path, plan={4: "a banana."})
    plan = pq.read_table(data.plan)
    for rows, match in (([5], "made for another index"), ([999], "made for another index")):
        pq.write_table(plan.set_column(1, "row", pa.array(rows)), tmp_path / "other.parquet")
        with pytest.raises(InputError, match=rf"other\.parquet.*{match}"):
            len(Pairs(data.index, data.urls, plan=tmp_path / "other.parquet"))
    pq.write_table(pa.concat_tables([plan, plan]), tmp_path / "twice.parquet")
    with pytest.raises(InputError, match=r"twice\.parquet is not sorted"):
        len(Pairs(data.index, data.urls, plan=tmp_path / "twice.parquet"))


def test_bad_index_files(tmp_path):
    path = tmp_path / "index.arrow"
    with pytest.raises(InputError, match=r"index\.arrow does not exist"):
        len(Pairs(path, []))
    write_index([table(0, 3)], path)
    with pytest.raises(InputError, match=r"rows: 1 … 3 do not all lie"):
        len(Pairs(path, [], rows=np.array([1, 3])))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"index\.arrow is no Arrow file"):
        len(Pairs(path, []))


@given(n=st.integers(1, 60), batch=st.integers(1, 60), seed=st.integers(0, 5), world=st.sampled_from([1, 2, 4]))
def test_an_epoch_is_every_sample_once_whatever_the_world(n, batch, seed, world):
    batch = max(1, min(batch, n) // world) * world
    if batch > n:
        with pytest.raises(InputError, match=f"batch_size is {batch}, but the data set has {n} samples"):
            step_positions(n, batch, seed, 0)
        return
    steps = n // batch
    for epoch in (0, 3):
        parts = [step_positions(n, batch, seed, epoch * steps + i) for i in range(steps)]
        assert {e for e, _ in parts} == {epoch}
        joined = np.concatenate([p for _, p in parts])
        assert joined.tolist() == epoch_order(n, seed, epoch)[: steps * batch].tolist()
        assert len(set(joined.tolist())) == steps * batch
        shares = [rank_slice(parts[0][1], r, world) for r in range(world)]
        assert np.concatenate(shares).tolist() == parts[0][1].tolist()


def test_orders_differ_by_epoch_and_seed_and_a_batch_must_divide():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6
    with pytest.raises(InputError, match="batch_size is 10, which 4 workers cannot share equally"):
        rank_slice(np.arange(10), 0, 4)
