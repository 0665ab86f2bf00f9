"""Cleaning sets: by key, nested, and without victims unless they are asked for."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from ray import tune

from datasets.errors import InputError
from orchestrator.experiment.cleanset import choose_rows, read_keys, require
from orchestrator.experiment.identity import IDENTITIES, clean_pairs
from orchestrator.experiment.override import override, override_all
from orchestrator.experiment.spec import Compute, Sweep
from orchestrator.running import driver
from orchestrator.stages.attack import AttackPlan
from orchestrator.stages.base import At, ensure
from orchestrator.stages.cleanset import CleaningSet
from orchestrator.stages.graph import stages
from orchestrator.store import Store
from orchestrator.sweep.plan import make_plan
from sweeps.quickstart import BASE
from tests.unit.making import pairs

KEYS = [f"k{i:03d}" for i in range(100)]
DROP = ["", *["no_caption"] * 3, *[""] * 96]
INDEX = pa.table({"key": pa.chunked_array([KEYS]), "drop": pa.chunked_array([DROP])})
KEPT = np.flatnonzero(np.array(DROP) == "")
VICTIMS = np.arange(60, 90)
assert BASE.clean is not None


def clean(**fields):
    return replace(BASE.clean, batch_size=4, warmup_steps=0, **fields)


def rows(**fields):
    return choose_rows(clean(**fields), INDEX, KEPT, VICTIMS)


@pytest.mark.parametrize("choice", ["random", "last"])
def test_no_victim_is_chosen_and_larger_sets_hold_the_smaller(choice):
    small, large = (rows(pairs=n, choice=choice) for n in (20, 66))
    assert len(small) == 20 and len(large) == 66 and set(small) < set(large) <= set(KEPT) - set(VICTIMS)
    assert (np.diff(large) > 0).all()


def test_the_last_are_the_last_clean_ones_and_the_random_ones_follow_the_seed():
    assert rows(pairs=12, choice="last").tolist() == [58, 59, *range(90, 100)]
    assert rows(pairs=20).tolist() == rows(pairs=20).tolist() != rows(pairs=20, seed=1).tolist()


@pytest.mark.parametrize("choice", ["random", "last"])
def test_poisons_take_the_place_of_clean_pairs_and_are_nested_in_their_number(choice):
    before: set[int] = set()
    for count in (0, 1, 2, 3, 4, 5, 10, 25):
        chosen = set(rows(pairs=40, choice=choice, poisons=count))
        victims = chosen & set(VICTIMS)
        assert len(chosen) == 40 and len(victims) == count and before <= victims
        assert chosen - victims <= set(rows(pairs=40, choice=choice))
        before = victims


def test_too_many_are_refused():
    with pytest.raises(InputError, match="68 clean pairs, but only 67"):
        rows(pairs=68)
    with pytest.raises(InputError, match="only 30 victims"):
        rows(pairs=66, poisons=31)


def keys_file(folder, keys):
    file = folder / "keys.txt"
    file.write_text("\n".join(keys) + "\n")
    return str(file)


def test_keys_are_the_set_itself_in_any_order(tmp_path):
    file = keys_file(tmp_path, ["k099", "k000", "", "k007"])
    assert rows(pairs=50, keys=file).tolist() == [0, 7, 99]
    assert clean_pairs(clean(pairs=50, keys=file)) == 3


@pytest.mark.parametrize(("keys", "said"), [
    (["k000", "k001", "zz"], r"2 of 3 keys.*'k001' \(no_caption\), 'zz' \(unknown\)"),
    (["k000", "k005", "k000"], "'k000' more than once"),
    (["k000", "k061", "k065"], r"2 victims of the poison plan \('k061', 'k065'\), but clean.poisons is 0"),
    ([], "holds no key"),
])
def test_keys_that_cannot_be_are_named_with_the_file(tmp_path, keys, said):
    file = keys_file(tmp_path, keys)
    with pytest.raises(InputError, match=said) as error:
        rows(pairs=4, keys=file)
    assert file in str(error.value)


def test_victims_among_the_keys_are_taken_when_their_number_is_asked_for(tmp_path):
    file = keys_file(tmp_path, ["k000", "k061", "k065"])
    assert rows(pairs=4, keys=file, poisons=2).tolist() == [0, 61, 65]
    with pytest.raises(InputError, match="2 victims.*clean.poisons is 1"):
        rows(pairs=4, keys=file, poisons=1)


def test_files_that_are_no_keys_are_refused(tmp_path):
    with pytest.raises(InputError, match="absolute"):
        read_keys("keys.txt")
    with pytest.raises(InputError, match="No such file"):
        read_keys(str(tmp_path / "none.txt"))
    (tmp_path / "x").write_bytes(b"k000\n\xffk001")
    with pytest.raises(InputError, match="UTF-8: line 2, byte 0xff"):
        read_keys(str(tmp_path / "x"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_keys_are_read_in_every_encoding_and_stripped(tmp_path, encoding, end):
    (tmp_path / "x").write_bytes(end.join(["k000", " käse\t", "", "k002 "]).encode(encoding))
    assert read_keys(str(tmp_path / "x")) == ["k000", "käse", "k002"]


def test_rows_that_overlap_the_victims_are_refused():
    with pytest.raises(InputError, match="holds 1 victims.*'k060'.*clean.poisons is 0"):
        require(np.array([5, 60]), INDEX, VICTIMS, clean(pairs=4), "cleanset x")
    with pytest.raises(InputError, match="no victim.*clean.poisons is 2"):
        require(np.array([5]), INDEX, VICTIMS, clean(pairs=4, poisons=2), "cleanset x")


def test_a_stored_set_that_overlaps_is_refused_when_it_is_used(tmp_path, monkeypatch):
    found = pairs(tmp_path / "data", plan={3: "a banana", 9: "a banana"})
    inputs = SimpleNamespace(index=found.index, plan=found.plan, pairs=lambda: found)
    monkeypatch.setattr(AttackPlan, "read", lambda *_: inputs)
    monkeypatch.setattr(CleaningSet, "needs", ())
    at = At(store=Store(tmp_path / "store"))

    def make(**fields):
        stage = stages(replace(BASE, clean=clean(**fields)))["cleanset"]
        ensure(stage, at)
        return stage.read(at)

    file = make(pairs=20)
    assert len(np.load(file)) == 20 and not {3, 9} & set(np.load(file))
    np.save(file, np.arange(20))
    with pytest.raises(InputError, match=r"rows.npy is not as its stage wrote it"):
        make(pairs=20)
    monkeypatch.setattr("orchestrator.experiment.cleanset.choose_rows", lambda *_: np.arange(12))
    with pytest.raises(InputError, match="holds 2 victims"):
        make(pairs=12)


def test_the_set_is_known_by_what_is_in_it(tmp_path):
    def prints(**fields):
        IDENTITIES.clear()
        stages.cache_clear()
        made = stages(override_all(BASE, {"clean.warmup_steps": 0} | {f"clean.{name}": value for name, value in fields.items()}))
        return made["cleanset"].fingerprint, made["clean"].fingerprint

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = keys_file(tmp_path / "a", KEYS), keys_file(tmp_path / "b", KEYS[::-1])
    assert prints(keys=a) == prints(keys=b) == prints(keys=a, pairs=77, choice="last") != prints()
    keys_file(tmp_path / "b", KEYS[:90])
    assert prints(keys=b) != prints(keys=a)
    assert len({prints(poisons=n) for n in (0, 1, 2)}) == 3
    assert prints(choice="last", seed=1)[0] == prints(choice="last")[0] and prints(choice="last", seed=1, poisons=1)[0] != prints(
        choice="last", poisons=1)[0]


@pytest.mark.parametrize(("fields", "said"), [
    ({"clean.poisons": -1}, "0 to 500"), ({"clean.poisons": 501}, "0 to 500"), ({"clean.keys": "k.txt"}, "absolute"),
])
def test_a_plan_refuses_it_before_anything_runs(fields, said):
    with pytest.raises(InputError, match=said):
        stages(override_all(BASE, fields))


def test_a_file_of_too_few_keys_is_refused_by_the_plan(tmp_path):
    with pytest.raises(InputError, match="holds 5 keys, fewer than one batch of 64"):
        stages(override(BASE, "clean.keys", keys_file(tmp_path, KEYS[:5])))


@pytest.mark.parametrize("drawn", [False, True])
def test_a_set_that_cannot_be_is_found_before_anything_is_trained(tmp_path, monkeypatch, drawn):
    found = pairs(tmp_path / "data", plan={3: "a banana"})
    inputs = SimpleNamespace(index=found.index, plan=found.plan, pairs=lambda: found)
    unknown = keys_file(tmp_path, [f"{i:09d}" for i in range(10, 20)] + ["nobody"])
    space = {"clean.lr": tune.loguniform(1e-4, 1e-2)} if drawn else {"clean.keys": tune.grid_search(["", unknown])}
    base = replace(BASE, clean=clean(pairs=8, keys=unknown if drawn else ""))
    trained = []
    monkeypatch.setattr(driver, "make_data", lambda *_: inputs)
    monkeypatch.setattr(AttackPlan, "read", lambda *_: inputs)
    monkeypatch.setattr(CleaningSet, "needs", ())
    monkeypatch.setattr(driver, "train_all", lambda *_: trained.append(1) or [])
    monkeypatch.setattr(driver.session, "require_resources", lambda *_: None)
    monkeypatch.setattr(driver.session, "has_gpu", lambda: False)
    store = Store(tmp_path / "store")
    with pytest.raises(InputError, match=r"1 of 11 keys.*'nobody' \(unknown\)"):
        driver._make(make_plan(Sweep(name="x", base=base, space=space)), store, Compute(), print)
    assert not trained and not list(store.root.glob("cleanset/.work-*"))
