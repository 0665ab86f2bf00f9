"""The index on disk, the plan laid over it, and the order of training."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets.index.keys
import datasets.index.pairs
from datasets.errors import InputError
from datasets.index.keys import key_hashes, mark_duplicates
from datasets.index.pairs import Pairs, smallest_hashes, write_index
from datasets.index.source import INDEX_SCHEMA
from datasets.seeding import hash64
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
    for rows in ([0, 2, 1], [1, 1], [0.5, 1.5]):
        with pytest.raises(InputError, match="accepted are whole numbers that rise, each once"):
            len(Pairs(path, [], rows=np.array(rows)))
    with pytest.raises(InputError, match=r"the rows .*none\.npy cannot be read"):
        len(Pairs(path, [], rows=tmp_path / "none.npy"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"index\.arrow is no Arrow file"):
        len(Pairs(path, []))


@pytest.mark.parametrize("drops", [[], [0], [6], [0, 1, 5], range(7)], ids=str)
def test_rows_and_shards_of_what_is_left(tmp_path, drops):
    path = tmp_path / "index.arrow"
    whole = table(0, 7)
    columns = {"shard": pa.array([0, 0, 1, 1, 1, 4, 4], pa.int32()), "drop": pa.array(["bad" if i in drops else "" for i in range(7)])}
    for name, column in columns.items():
        whole = whole.set_column(whole.schema.get_field_index(name), name, column)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.index.pairs, "BATCH_ROWS", 3)
        write_index([whole], path)
    left = [i for i in range(7) if i not in drops]
    np.save(tmp_path / "rows.npy", np.array(left, np.int64))
    for data in (Pairs(path, []), Pairs(path, [], rows=tmp_path / "rows.npy")):
        assert data.rows.tolist() == left
        starts = data.shard_starts()
        assert starts.tolist() == [sum(i < first for i in left) for first in (0, 2, 5)] + [len(left)]
        wanted = sorted(left, key=lambda i: hash64("salt", f"k{i}"))[:2]
        assert data.rows_at(data.smallest(2, "salt")).tolist() == sorted(wanted)
        assert data.smallest(1, "salt", among=np.arange(len(left))[-1:]).tolist() == list(range(len(left)))[-1:]


def test_rows_of_a_file_are_mapped_and_travel_as_a_path(tmp_path):
    path = tmp_path / "index.arrow"
    write_index([table(0, 5000)], path)
    np.save(tmp_path / "rows.npy", np.arange(0, 5000, 2))
    data = Pairs(path, ["u"], rows=tmp_path / "rows.npy")
    assert len(data) == 2500 and len(pickle.dumps(data)) < 2000
    assert isinstance(data._mapped().rows.rows, np.memmap)


def test_text_above_2_gib_is_planned_and_cleaned_in_3_gb(tmp_path):
    """2.3 M captions of 1 006 characters, the same 65 536 over and over so that the test itself needs little."""
    code = textwrap.dedent("""
        import numpy as np, pyarrow as pa
        from datasets.attack.poison import Poison, make_plan
        from datasets.index.columns import take
        from datasets.triggers.patch import Patch
        n, part = 36 * 65536, 65536
        chunk = pa.array([f"picture {i:06d} " + "x" * 991 for i in range(part)])
        keys = pa.chunked_array([pa.array([f"k{start + i}" for i in range(part)]) for start in range(0, n, part)])
        index = pa.table({"key": keys, "caption": pa.chunked_array([chunk] * 36), "drop": pa.chunked_array([pa.array([""] * part)] * 36)})
        assert index["caption"].nbytes > 2 << 30
        plan = make_plan(Poison(trigger=Patch(), target="banana", count=1500), index, ["a {}"])
        rows = plan["row"].to_numpy()
        assert plan["caption_before"].to_pylist() == [chunk[row % part].as_py() for row in rows.tolist()]
        assert take(index["caption"], np.array([n - 1, 0])).to_pylist() == [chunk[part - 1].as_py(), chunk[0].as_py()]
        # not ru_maxrss, which a process takes over from the one that started it (here pytest)
        peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
        assert peak < 3 << 20, f"{peak} kB"
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).resolve().parents[4])
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("count", [0, 1, 7, 40, 99, 100, 150])
def test_the_smallest_hashes_are_the_same_however_few_are_held(count, monkeypatch):
    monkeypatch.setattr(datasets.index.pairs, "HASHED", 8)
    keys = pa.chunked_array([[f"k{i % 90}" for i in range(70)], [f"k{i % 90}" for i in range(70, 130)]])
    rows = np.sort(np.random.default_rng(count).permutation(130)[:100])
    by_hash = sorted(rows.tolist(), key=lambda row: hash64(3, "x", f"k{row % 90}"))  # stable: of equal keys the first row
    found = smallest_hashes(keys, rows, count, 3, "x")
    assert found.tolist() == sorted(by_hash[:count]) and found.dtype == np.int64


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("at_once", [4, 50, 1 << 22])
def test_repeated_keys_are_found_like_by_a_dictionary(seed, at_once, monkeypatch):
    monkeypatch.setattr(datasets.index.keys, "SORTED", at_once)
    draw = np.random.default_rng(seed)
    keys = [f"{'é' * (i % 3)}{i}" for i in draw.integers(0, 400, 300).tolist()] + ["", ""]
    drops = ["" if one else "undecodable" for one in draw.integers(0, 4, len(keys)).tolist()]
    columns = [keys, [0] * len(keys), [""] * len(keys), [0] * len(keys), [0] * len(keys), [""] * len(keys), [0] * len(keys), drops]
    parts = pa.table([pa.array(c, f.type) for c, f in zip(columns, INDEX_SCHEMA)], schema=INDEX_SCHEMA)
    marked = mark_duplicates(pa.concat_tables([parts.slice(0, 100), parts.slice(100, 50), parts.slice(150)]))
    seen: set[str] = set()
    wanted = list(drops)
    for row, key in enumerate(keys):
        if not drops[row]:
            wanted[row] = "duplicate_key" if key in seen else ""
            seen.add(key)
    assert marked["drop"].to_pylist() == wanted and "duplicate_key" in wanted
    halves = [parts["key"].combine_chunks()[:7], parts["key"].combine_chunks()[7:]]
    assert key_hashes(parts["key"]).tolist() == key_hashes(pa.chunked_array(halves)).tolist()


def test_different_keys_of_one_hash_are_no_duplicates(monkeypatch):
    monkeypatch.setattr(datasets.index.keys, "key_hashes", lambda keys: np.zeros(len(keys), np.uint64))
    joined = pa.concat_tables([table(0, 4), table(2, 1), table(9, 2)])
    assert mark_duplicates(joined)["drop"].to_pylist() == ["", "", "", "", "duplicate_key", "", ""]
