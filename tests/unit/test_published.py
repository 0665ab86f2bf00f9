"""Reference results: the facts that are shipped, and files of the same form that are wrong."""

import json
from dataclasses import replace

import pytest
from ray import tune

from datasets.errors import InputError
from orchestrator.plan import make_plan
from orchestrator.report.published import SHIPPED, Mark, load_published
from orchestrator.spec import Reference
from sweeps.quickstart import SWEEP

CC3M = Reference(start="cc3m_1500", cleaning="cc3m/clean_100k")


def written(tmp_path, change):
    facts = json.loads(SHIPPED.read_text())
    change(facts)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(facts))
    return replace(CC3M, file=str(path))


def test_the_shipped_facts_are_those_of_the_study():
    found = load_published(CC3M)
    assert found.starts == {"MMCL": Mark(accuracy=16.0, asr=99.88), "MMCL+SSL": Mark(accuracy=17.04, asr=99.03)}
    assert set(found.cleanings["MMCL"]) == {"MMCL", "SSL", "CleanCLIP"} and "attack-cleanclip" in found.source
    best = {(o, m): c.best[5] and round(c.best[5].accuracy, 2) for o, ms in found.cleanings.items() for m, c in ms.items()}
    assert best["MMCL", "CleanCLIP"] == 16.49 and best["MMCL+SSL", "CleanCLIP"] == 14.16 and best["MMCL+SSL", "SSL"] == 0.61
    assert round(found.cleanings["MMCL+SSL"]["CleanCLIP"].lowest.asr, 2) == 42.41
    big = load_published(Reference(start="cc6m_3000", cleaning="cc6m/clean_100k"))
    assert big.cleanings["MMCL"]["MMCL"].best == {5: None, 10: None} and big.kept_epochs == {"MMCL": 21, "MMCL+SSL": 36}
    assert big.first_epochs["MMCL"] == Mark(accuracy=7.852, asr=93.56) and not found.first_epochs


def test_no_reference_is_none_and_a_file_alone_is_a_mistake():
    assert load_published(Reference()) is None
    with pytest.raises(InputError, match="at least one of them"):
        load_published(Reference(file="x.json"))


def test_series_of_poisons_pairs_and_counts():
    cleaning = Reference(start="cc6m_3000", cleaning="cc6m/clean_100k")
    poisons = load_published(cleaning, "clean.poisons").series["MMCL"]
    assert list(poisons) == [0, 1, 2, 3, 4, 5, 10, 25] and poisons[3].best[5] is None and poisons[0].best[5]
    assert poisons[1].points == 160  # without the runs of 10 that the released series holds
    assert list(load_published(cleaning, "clean.pairs").series["MMCL+SSL"]) == [100_000, 200_000]
    assert list(load_published(cleaning, "poison.count").series["MMCL"]) == [400, 800, 3000]
    assert not load_published(cleaning, "clean.lr").series


def remove(*keys):
    def change(facts):
        for key in keys[:-1]:
            facts = facts[key]
        del facts[keys[-1]]

    return change


def put(value, *keys):
    def change(facts):
        for key in keys[:-1]:
            facts = facts[key]
        facts[keys[-1]] = value

    return change


ENTRY = ("cleaning", "cc3m", "mmcl", "clean_100k", "mmcl")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove("start_points_pct"), "mine.json: there is no key 'start_points_pct'; found there: schema_version"),
        (remove("start_points_pct", "cc3m_1500_mmcl", "asr"), "start_points_pct.cc3m_1500_mmcl has no key 'asr'; found there: acc"),
        (remove(*ENTRY, "best_acc_at_asr_le", "5"), "clean_100k.mmcl.best_acc_at_asr_le has no key '5'; found there: 10"),
        (put("16", "start_points_pct", "cc3m_1500_mmcl", "acc"), "cc3m_1500_mmcl.acc is \"16\"; expected: a number from 0 to 100"),
        (put(float("nan"), "start_points_pct", "cc3m_1500_mmcl", "acc"), "acc is NaN; expected: a number"),
        (put(101, "start_points_pct", "cc3m_1500_mmcl", "acc"), "acc is 101; expected: a number from 0 to 100"),
        (put([1], "cleaning", "cc3m"), r"cleaning.cc3m is \[1\]; expected: an object"),
        (put([[1, 2], [3]], *ENTRY, "pareto_asr_acc_pct"), r"pareto_asr_acc_pct.1 is \[3\]; expected: \[ASR, accuracy\]"),
        (put({}, "cleaning", "cc3m", "clip"), "cleaning.cc3m has a key 'clip'; expected: mmcl, mmcl_ssl"),
        (put(True, "selected_checkpoint_epoch", "x"), "selected_checkpoint_epoch.x is true; expected: a number"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        load_published(written(tmp_path, change))


def test_a_file_that_is_not_there_or_not_json(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_published(replace(CC3M, file=str(tmp_path / "none.json")))
    (tmp_path / "cut.json").write_text(SHIPPED.read_text()[:100])
    with pytest.raises(InputError, match="is not JSON"):
        load_published(replace(CC3M, file=str(tmp_path / "cut.json")))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (Reference(start="cc4m"), "start is 'cc4m'.*Accepted: cc3m_1500, cc6m_3000"),
        (Reference(cleaning="cc3m"), "cleaning is 'cc3m'.*Accepted: cc3m/clean_100k"),
    ],
)
def test_an_unknown_name_is_said_when_the_sweep_is_planned(reference, said):
    with pytest.raises(InputError, match=said):
        make_plan(replace(SWEEP, reference=reference))


def test_a_series_must_be_varied():
    assert make_plan(replace(SWEEP, series="clean.lr")) and make_plan(replace(SWEEP, series="clean.method.inmodal_weight"))
    with pytest.raises(InputError, match="'clean.pairs', which the sweep does not vary; it varies pretrain.objective"):
        make_plan(replace(SWEEP, series="clean.pairs"))
    assert make_plan(replace(SWEEP, space={"poison.count": tune.grid_search([40, 80])}, series="poison.count"))
