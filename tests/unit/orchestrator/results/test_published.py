"""Reference results: the facts that are shipped, and files of the same form that are wrong."""

import json
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from ray import tune

from datasets.errors import InputError
from orchestrator.experiment.spec import Reference
from orchestrator.report.curves import pretrain_curves
from orchestrator.report.drawing import hollow, look
from orchestrator.report.figures import Gallery
from orchestrator.report.rendering import render
from orchestrator.report.scatter import draw_published, published_handles
from orchestrator.report.series import series
from orchestrator.report.shown import scatters
from orchestrator.results.points import panels, published_cleanings, published_starts
from orchestrator.results.published import SHIPPED, Mark, load_published
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.plan import make_plan
from sweeps import cleaning_set_size, main_cc6m, poison_counts, poisoned_cleaning_set, target_classes, triggers
from sweeps.quickstart import SWEEP
from tests.unit.fake_study import study_of
from tests.unit.test_contracts import SHIPPED as SWEEPS

CC3M = Reference(start="cc3m_1500", cleaning="cc3m/clean_100k")


def written(tmp_path, change):
    facts = json.loads(SHIPPED.read_text())
    change(facts)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(facts))
    return replace(CC3M, file=str(path))


def test_the_shipped_facts_are_those_of_the_study():
    found = load_published(CC3M)
    marks = {start.objective: start.mark for start in found.starts}
    assert marks == {"MMCL": Mark(accuracy=16.0, asr=99.88), "MMCL+SSL": Mark(accuracy=17.04, asr=99.03)}
    cleaned = {(c.objective, c.method): c for c in found.cleanings}
    assert {method for _, method in cleaned} == {"MMCL", "SSL", "CleanCLIP"} and "attack-cleanclip" in found.source
    best = {key: c.best[5] and round(c.best[5].accuracy, 2) for key, c in cleaned.items()}
    assert best["MMCL", "CleanCLIP"] == 16.49 and best["MMCL+SSL", "CleanCLIP"] == 14.16 and best["MMCL+SSL", "SSL"] == 0.61
    assert round(cleaned["MMCL+SSL", "CleanCLIP"].lowest.asr, 2) == 42.41
    big = load_published(Reference(start="cc6m_3000", cleaning="cc6m/clean_100k"))
    assert {(c.objective, c.method): c for c in big.cleanings}["MMCL", "MMCL"].best == {5: None, 10: None}
    assert [start.kept for start in big.starts] == [21, 36]
    assert big.starts[0].first == Mark(accuracy=7.852, asr=93.56) and not found.starts[0].first


def test_no_reference_is_none_and_a_file_alone_is_a_mistake():
    assert load_published(Reference()) is None
    with pytest.raises(InputError, match="at least one of them"):
        load_published(Reference(file="x.json"))


def test_a_series_is_made_of_what_has_a_value_of_it():
    def along(sweep, objective):
        found = load_published(sweep.reference).along(sweep.series)
        return {value: entry for entry in found if entry.objective == objective for value in entry.values}

    poisons = along(poisoned_cleaning_set.SWEEP, "MMCL")
    assert list(poisons) == [0, 1, 2, 3, 4, 5, 10, 25] and poisons[3].best[5] is None and poisons[0].best[5]
    assert poisons[1].points == 160  # without the runs of 10 that the released series holds
    sizes = {objective: list(along(cleaning_set_size.SWEEP, objective)) for objective in ("MMCL", "MMCL+SSL")}
    assert sizes == {"MMCL": [100_000], "MMCL+SSL": [100_000, 200_000]}
    assert list(along(poison_counts.SWEEP, "MMCL")) == [400, 800, 3000]
    assert not load_published(CC3M).along("clean.lr")


@pytest.mark.parametrize("name", SWEEPS)
def test_no_sweep_refuses_to_clean_the_models_that_the_study_cleaned(name):
    sweep = load_sweep(name)
    published = load_published(sweep.reference)
    assert [s for s in (published.starts if published else ()) if s.mark.asr < sweep.gate.min_asr] == []


def test_published_marks_stand_beside_the_models_they_belong_to(tmp_path):
    def beside(sweep):
        study = study_of(tmp_path, sweep)
        found = {p.label: [e.name for e in [*published_starts(study, p), *published_cleanings(study, p)]] for p in panels(study)}
        return {label: list(dict.fromkeys(names)) for label, names in found.items() if not label.startswith("MMCL+SSL")}

    assert beside(triggers.SWEEP) == {
        "MMCL, patch": ["cc6m_3000", "cc6m/clean_100k"], "MMCL, warped": ["cc6m_warped_3000"],
        "MMCL, blended": [], "MMCL, patch, label-consistent": [],
    }  # fmt: skip
    assert beside(poison_counts.SWEEP) == {
        "MMCL, count 400": ["cc6m_400"], "MMCL, count 800": ["cc6m_800"], "MMCL, count 1500": [],
        "MMCL, count 3000": ["cc6m_3000", "cc6m/clean_100k"], "MMCL, count 5000": [],
    }  # fmt: skip
    assert beside(target_classes.SWEEP) == {"MMCL, cifar100": ["cc6m_beaver_cifar100"], "MMCL, caltech101": ["cc6m_beaver_caltech101"]}
    assert beside(cleaning_set_size.SWEEP) == {"MMCL": ["cc6m_3000", "cc6m/clean_100k"]}
    assert len(beside(poisoned_cleaning_set.SWEEP)["MMCL"]) == 1 + 8


def test_models_that_an_override_makes_others_than_the_published_have_no_marks(tmp_path):
    study = study_of(tmp_path, load_sweep("sweeps.triggers", {"poison.count": "1500"}))
    assert study.published and not any(published_starts(study, panel) + published_cleanings(study, panel) for panel in panels(study))


def test_a_panel_draws_its_own_published_start_and_one_without_any_draws_none(tmp_path):
    study = study_of(tmp_path, triggers.SWEEP)
    drawn = {}
    for panel in panels(study):
        axes = Figure().subplots()
        draw_published(axes, study, panel)
        drawn[panel.label] = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "*"]
    assert drawn["MMCL, patch"] == [(99.98, 23.76)] and drawn["MMCL+SSL, warped"] == [(84.47, 24.56)] and drawn["MMCL, blended"] == []
    labels = [handle.get_label() for handle in published_handles(study, panels(study))]
    assert "published: CleanCLIP (cc6m/clean_100k)" in labels and labels[-1] == "published: before cleaning (cc6m_3000, cc6m_warped_3000)"
    lines = {line.get_label() for line in pretrain_curves(study).legends[0].legend_handles}
    assert {text for text in lines if "published" in text} == {f"published: {o}, epoch 1 (cc6m_3000)" for o in ("MMCL", "MMCL+SSL")}
    text = render("scatters", scatters=scatters(study, Gallery(study), []))
    assert "(cc6m_3000 with MMCL: 21; cc6m_3000 with MMCL+SSL: 36; cc6m_warped_3000 with MMCL: 33; " in text
    assert "here a cleaning always starts from the last one" in text


def test_what_was_published_for_a_cleaning_set_has_the_colour_of_the_trials_with_it(tmp_path):
    study = study_of(tmp_path, cleaning_set_size.SWEEP)
    (_, ssl), colours = panels(study), {name: colour for name, (colour, _) in look(study).items()}
    assert {c.name: hollow(study, c)["markeredgecolor"] for c in published_cleanings(study, ssl)} == {
        "cc6m/clean_100k": colours["CleanCLIP, pairs 100000"], "cc6m/clean_200k": colours["CleanCLIP, pairs 200000"],
    }  # fmt: skip
    study.trials = [trial for trial in study.trials if trial.config["clean"]["pairs"] == 10_000]
    assert published_cleanings(study, ssl) == []


def test_a_published_series_lies_within_the_axis_that_it_shares(tmp_path):
    axes = series(study_of(tmp_path, cleaning_set_size.SWEEP)).axes[0]
    heights = [height for line in axes.lines if line.get_markerfacecolor() == "none" for height in line.get_ydata()]
    low, high = axes.get_ylim()
    assert heights == [24.042] and low < 24.042 < high


def test_the_poisoned_cleaning_sets_are_of_main_cc6ms_models():
    assert poisoned_cleaning_set.SWEEP.base == main_cc6m.SWEEP.base
    assert poisoned_cleaning_set.SWEEP.space["pretrain"] == main_cc6m.SWEEP.space["pretrain"]


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
        (put(float("inf"), *ENTRY, "n_points"), "n_points is Infinity; expected: a number of at least 0"),
        (put(10**400, *ENTRY, "n_points"), "n_points is 10+…; expected: a number of at least 0"),
        (put(1.5, *ENTRY, "n_points"), "n_points is 1.5; expected: a whole number"),
        (put(0.5, "selected_checkpoint_epoch", "x"), "selected_checkpoint_epoch.x is 0.5; expected: a whole number"),
        (put([1], "source"), r"source is \[1\]; expected: text"),
        (put(True, "selected_checkpoint_epoch", "x"), "selected_checkpoint_epoch.x is true; expected: a number"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        load_published(written(tmp_path, change))


def test_a_file_that_is_not_there_or_not_json(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_published(replace(CC3M, file=str(tmp_path / "none.json")))
    for text in (SHIPPED.read_text()[:100], "", "[" * 100_000, '{"start_points_pct": ' * 900):
        (tmp_path / "cut.json").write_text(text)
        with pytest.raises(InputError, match="reference file .*cut.json is (not JSON|JSON that is nested too deep)"):
            load_published(replace(CC3M, file=str(tmp_path / "cut.json")))
    for depth in (100, 900):
        (tmp_path / "deep.json").write_text('{"start_points_pct": ' + "[" * depth + "]" * depth + "}")
        with pytest.raises(InputError, match="deep.json"):
            load_published(replace(CC3M, file=str(tmp_path / "deep.json")))
    with pytest.raises(InputError, match="Reference.file.*NUL"):
        replace(CC3M, file="a\0b")
    for path in ("~nobody-of-this-name/x.json", str(tmp_path)):
        with pytest.raises(InputError, match="cannot be read"):
            load_published(replace(CC3M, file=path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path, encoding):
    (tmp_path / "mine.json").write_bytes(SHIPPED.read_text("utf-8").encode(encoding))
    assert load_published(replace(CC3M, file=str(tmp_path / "mine.json"))) == load_published(CC3M)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (Reference(start="cc4m"), "start is 'cc4m'.*Accepted: cc3m_1500, cc6m_3000"),
        (Reference(cleaning="cc3m"), "cleaning is 'cc3m'.*Accepted: cc3m/clean_100k"),
        (Reference(by="clean.lr", cleaning={1e-3: "cc3m/clean_1k"}), "cleaning is 'cc3m/clean_1k'.*Accepted: cc3m/clean_100k"),
        (Reference(by="poison.cuont", start={40: "cc6m_400"}), "by is 'poison.cuont', a field that no .* varies pretrain.objective, clean"),
    ],
)
def test_an_unknown_name_is_said_when_the_sweep_is_planned(reference, said):
    with pytest.raises(InputError, match=said):
        make_plan(replace(SWEEP, reference=reference))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"start": {400: "cc6m_400"}}, "start has names by value, but `by` is empty"),
        ({"start": "cc6m_400", "by": "poison.count"}, "`by` is given, but no names by value; accepted: one name for all"),
        ({"start": {1: "cc6m_400"}, "by": "clean.poisons"}, "Reference.by is 'clean.poisons', but a start is not cleaned yet"),
        ({"start": 400}, "Reference.start: 400 is an int; accepted: text or a dictionary"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(fields, said):
    with pytest.raises(InputError, match=said):
        Reference(**fields)


def test_a_series_must_be_varied():
    assert make_plan(replace(SWEEP, series="clean.lr")) and make_plan(replace(SWEEP, series="pretrain.objective.inmodal_weight"))
    with pytest.raises(InputError, match="'clean.pairs', which the sweep does not vary; it varies pretrain.objective"):
        make_plan(replace(SWEEP, series="clean.pairs"))
    assert make_plan(replace(SWEEP, space={"poison.count": tune.grid_search([40, 80])}, series="poison.count"))
