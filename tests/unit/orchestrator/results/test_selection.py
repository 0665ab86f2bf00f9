"""What is chosen, by whom, at what cost, and what a reader is warned of."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.results.cautions import warnings
from orchestrator.results.names import method_of, objective_of, settings, short_paths
from orchestrator.results.outcome import Study, TrialResult
from orchestrator.results.points import cleaned_points, interval_of_share, mean_interval, panels, start_of
from orchestrator.results.selection import RULES, best_metrics, blind, lowest_asr, most_accurate, table
from tests.unit.fake_study import fake_study, hash64_hex, line, pretrain, trial


def study_of(*points: tuple[float, float], lr: float = 1e-3, root: Path = Path("x")) -> Study:
    """One pre-training at 80 / 99 and one trial whose epochs 1, 2, … have these accuracies and ASRs."""
    source = pretrain(root, "MMCL", 0.0, 80, 99)
    one = trial(root, source, "CleanCLIP", (1, 1), lr, (80, 99))
    one.metrics = [line(0, 80, 99)] + [line(i + 1, *point) for i, point in enumerate(points)]
    return Study(name="s", doc="", fingerprint="f", config={}, pretrains=[source], trials=[one])


def chosen(study: Study, key: str, method: str = "CleanCLIP"):
    (row,) = [row for row in table(study) if row.rule.key == key and row.method == method]
    return row


def test_each_rule_picks_its_point_and_counts_the_drop_from_the_uncleaned_model():
    study = study_of((79.5, 60), (78, 4), (76, 0), (79, 8), (79.8, 90))
    picks = {rule.key: chosen(study, rule.key).choices[0] for rule in RULES}
    assert [picks[rule.key].point.epoch for rule in RULES] == [2, 4, 4, 3, 5, 5]
    first = picks["acc_at_asr_le_5"]
    assert first.drop == pytest.approx(2) and first.drop_relative == pytest.approx(2.5)
    assert [rule.key for rule in RULES if not rule.oracle] == ["blind", "blind_last"]


def test_epoch_0_is_never_a_cleaned_model():
    study = study_of((70, 50))
    study.trials[0].metrics[0] = line(0, 80, 1)
    assert [p.epoch for p in cleaned_points(study.trials[0])] == [1]
    assert chosen(study, "acc_at_asr_le_5").choices[0].point is None


def test_limits_are_inclusive_and_ties_go_to_the_lower_asr_or_the_higher_accuracy():
    points = cleaned_points(study_of((75, 5.0), (75, 2), (75, 2), (79, 10)).trials[0])
    start = start_of(study_of(), study_of().pretrains[0].fingerprint)
    assert start and start.accuracy == 80
    assert most_accurate(points[0].asr)(points, start).epoch == 2
    assert most_accurate(5 - 1e-9 + 5.01)(points, start).epoch == 4
    assert lowest_asr(points, start).epoch == 4
    assert blind(points, start).epoch == 4
    assert most_accurate(1)(points, start) is None and blind([], start) is None


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=12))
def test_no_qualifying_point_is_better_than_the_chosen_one(pairs):
    study = study_of(*pairs)
    points = cleaned_points(study.trials[0])
    start = start_of(study, study.trials[0].pretrain)
    best = most_accurate(5)(points, start)
    fit = [p.accuracy for p in points if p.asr <= 5]
    assert (best.accuracy if best else None) == (max(fit) if fit else None)
    assert best_metrics(study.trials[0].metrics).get("best/acc_at_asr_le_5") == (max(fit) if fit else None)


def test_metrics_for_tracking_leave_out_what_nothing_reached():
    lines = study_of((79.5, 60), (78, 4)).trials[0].metrics
    best = best_metrics(lines)
    assert best == {
        "best/acc_at_asr_le_5": 78,
        "best/acc_at_asr_le_10": 78,
        "best/asr_at_1pt_loss": pytest.approx(60),
    }
    assert best_metrics(lines[:2], start_accuracy=90) == {}
    assert best_metrics([]) == {}


def test_values_that_are_not_numbers_are_no_points():
    study = study_of((79, 4), (78, 3))
    study.trials[0].metrics[1]["metrics"]["asr/top1"] = math.nan
    study.trials[0].metrics.append({"epoch": 3, "metrics": {"train/loss": 1.0}})
    assert [p.epoch for p in cleaned_points(study.trials[0])] == [2]


@pytest.mark.parametrize(("share", "n", "low", "high"), [(50, 10, 23.66, 76.34), (0, 900, 0, 0.425), (100, 20, 83.89, 100)])
def test_wilson_against_published_values(share, n, low, high):
    assert interval_of_share(share, n) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert all(math.isnan(bound) for bound in interval_of_share(share, 0))


def test_mean_and_student_interval():
    assert mean_interval([]) is None
    assert mean_interval([3.0])[0] == 3 and math.isnan(mean_interval([3.0])[1])
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2 and high - mean == pytest.approx(4.303 / math.sqrt(3), abs=1e-3) and low == pytest.approx(4 - high)
    assert mean_interval([0.0, 1.0] * 20)[2] - 0.5 == pytest.approx(2.0227 * 0.50637 / math.sqrt(40), abs=2e-3)


def seeded(seeds: int) -> Study:
    """The same pre-training and cleaning under several seeds."""
    study = Study(name="s", doc="", fingerprint="f", config={})
    for seed in range(seeds):
        source = pretrain(Path("x"), "MMCL", 0.0, 80 + seed, 99)
        source.fingerprint, source.config["pretrain"]["seed"] = hash64_hex("seed", seed), seed
        one = trial(Path("x"), source, "CleanCLIP", (1, 1), 1e-3, (79, 2))
        one.metrics = [line(1, 78 + seed, 3)]
        study.pretrains.append(source)
        study.trials.append(one)
    return study


def test_seeds_are_repetitions_with_a_mean_and_an_interval():
    study = seeded(3)
    (panel,) = panels(study)
    assert panel.label == "MMCL" and len(panel.pretrains) == 3
    row = chosen(study, "acc_at_asr_le_5")
    mean, low, high = row.over(lambda c: c.point.accuracy)
    assert (len(row.choices), mean) == (3, 79) and low < 78 < 80 < high
    assert row.over(lambda c: c.drop)[0] == pytest.approx(2)
    assert not any("seeds" in said for said in warnings(study))
    assert any("Fewer than three seeds" in said for said in warnings(seeded(2)))


def test_a_seed_in_the_cleaning_is_a_repetition_too_but_a_learning_rate_is_not():
    study = study_of((78, 3))
    for seed, lr in ((1, 1e-3), (2, 1e-3), (2, 2e-3)):
        other = trial(Path("x"), study.pretrains[0], "CleanCLIP", (1, 1), lr + seed, (79, 2))
        other.overrides |= {"clean.lr": lr, "clean.seed": seed}
        study.trials.append(other)
    assert len(chosen(study, "blind").choices) == 3


def test_pretrainings_with_one_objective_that_differ_otherwise_get_panels_of_their_own(tmp_path):
    study = fake_study(tmp_path)
    assert [panel.label for panel in panels(study)] == ["MMCL", "MMCL+SSL"]
    other = pretrain(tmp_path, "MMCL", 0.0, 99, 99, epochs=20)
    other.fingerprint = "c" * 64
    study.pretrains.append(other)
    labels = [panel.label for panel in panels(study)]
    assert labels == ["MMCL, epochs 10", "MMCL+SSL", "MMCL, epochs 20"]


def test_what_the_sweep_varied_before_cleaning_is_no_repetition():
    study = seeded(2)
    for stage in study.pretrains:
        stage.config["pretrain"]["seed"] = 0
    for count, stage in zip((400, 800), study.pretrains):
        stage.config["poison"] = {"count": count}
    assert [panel.label for panel in panels(study)] == ["MMCL, count 400", "MMCL, count 800"]


def grid(*values: float, best: float) -> Study:
    study = study_of((60, 50), lr=best)
    study.trials = []
    for lr in values:
        one = trial(Path("x"), study.pretrains[0], "CleanCLIP", (1, 1), lr, (0, 0))
        one.metrics = [line(1, 79 if lr == best else 70, 3)]
        study.trials.append(one)
    return study


@pytest.mark.parametrize(
    ("best", "end"), [(4e-3, "lr = 0.004, the largest tried"), (1e-3, "lr = 0.001, the smallest tried"), (2e-3, None)]
)
def test_a_best_point_at_the_end_of_its_grid_is_said(best, end):
    said = [text for text in warnings(grid(1e-3, 2e-3, 4e-3, best=best)) if "wider grid" in text]
    assert (len(said) == 1 and end in said[0]) if end else not said


def test_a_value_whose_trial_gave_no_point_was_not_tried():
    study = grid(1e-3, 2e-3, 4e-3, best=2e-3)
    study.trials[-1].metrics = []
    assert any("lr = 0.002, the largest tried (of two values)" in text for text in warnings(study))
    study.trials[0].metrics = []
    assert any("lr = 0.002, the only one that gave a point" in text for text in warnings(study))


def test_ends_are_sought_among_trials_alike_in_the_other_fields():
    study = grid(1e-3, 2e-3, 4e-3, best=4e-3)
    for decay, one in [(0.1, one) for one in study.trials] + [(0.5, one) for one in grid(4e-3, 8e-3, 16e-3, best=0).trials]:
        one.overrides |= {"clean.weight_decay": decay}
        one.pretrain = study.pretrains[0].fingerprint
        if decay == 0.5:
            one.fingerprint = one.fingerprint[::-1]
            study.trials.append(one)
    assert any("lr = 0.004, the largest tried (0.001 … 0.004)" in text for text in warnings(study))


@pytest.mark.parametrize(("path", "best", "said"), [
    ("clean.weight_decay", 100, "weight_decay = 100, the largest tried (1 … 100)"),
    ("clean.weight_decay", 1, "weight_decay = 1, the smallest tried (1 … 100)"),
    ("clean.weight_decay", 10, None),
    ("clean.pairs", 100, None),
    ("clean.poisons", 1, None),
])  # fmt: skip
def test_the_ends_of_a_series_are_sought_among_all_its_values_but_not_of_what_a_cleaning_is_given(path, best, said):
    study = grid(1e-3, 2e-3, 4e-3, best=2e-3)
    study.series, plain, study.trials = path, study.trials, []
    for value in (1, 10, 100):
        for one in plain:
            asr = 3 if value == best else 60
            made = replace(one, fingerprint=hash64_hex(one.fingerprint, value), overrides=one.overrides | {path: value})
            made.metrics = [line(1, one.metrics[0]["metrics"]["zeroshot/top1"], asr)]
            study.trials.append(made)
    found = [text for text in warnings(study) if "wider grid" in text]
    assert len({row.method for row in table(study)}) == 3, "a row for each value"
    assert (len(found) == 1 and said in found[0] and found[0].endswith("CleanCLIP on MMCL.")) if said else not found


def test_seeds_and_words_have_no_ends():
    study = grid(1e-3, best=1e-3)
    for number, one in enumerate([*study.trials, *grid(1e-3, best=1e-3).trials]):
        one.overrides |= {"clean.seed": number, "clean.choice": "ab"[number]}
    assert not any("wider grid" in text for text in warnings(study))


def test_failures_stops_gates_and_empty_sets_are_said(tmp_path):
    study = fake_study(tmp_path)
    said = "\n".join(warnings(study))
    assert "failed: FloatingPointError: step 131: train/mmcl is nan" in said and "traceback" not in said
    assert "stopped 1 of 9 trials early" in said
    assert "No model reached ASR ≤ 5 %: MMCL on MMCL; CleanCLIP on MMCL+SSL." in said
    study.gates[study.pretrains[0].fingerprint] |= {"passed": False, "reasons": ["ASR is 12.0 %."]}
    del study.gates[study.pretrains[1].fingerprint]
    said = warnings(study)
    assert said[0].startswith("MMCL (") and "the attack did not take" in said[0] and "ASR is 12.0 %" in said[0]
    assert said[1].startswith("MMCL+SSL (") and said[1].endswith("the attack gate was not evaluated.")
    study.trials[0].metrics[1]["metrics"]["zeroshot/n"] = 999
    assert any("not comparable" in text for text in warnings(study))


def test_an_empty_study_has_an_empty_table():
    empty = Study(name="s", doc="", fingerprint="f", config={})
    assert table(empty) == [] and warnings(empty) == [] and panels(empty) == []


CLEANCLIP, SHRINK = "trainers.methods.finetune.CleanCLIP", "trainers.methods.shrink_perturb.ShrinkPerturb"
CLUSTERING, PSEUDO = "trainers.methods.deep_clustering.DeepClustering", "trainers.methods.pseudo_labels.PseudoLabels"


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ({"class": CLEANCLIP, "clip_weight": 1.0, "inmodal_weight": 4.0}, "CleanCLIP"),
        ({"class": CLEANCLIP, "clip_weight": 1.0, "inmodal_weight": 0.0}, "MMCL"),
        ({"class": "trainers.methods.finetune.SSLFineTune", "clip_weight": 0.0, "inmodal_weight": 1.0}, "SSL"),
        ({"class": "trainers.methods.finetune.FineTune", "clip_weight": 1.0, "inmodal_weight": 1.0}, "MMCL+SSL"),
        ({"class": SHRINK, "then": {"class": CLEANCLIP, "clip_weight": 1, "inmodal_weight": 1}}, "shrink-perturb + CleanCLIP"),
        ({"class": CLUSTERING, "clip_weight": 1.0, "inmodal_weight": 1.0, "weight": 5.0}, "deep-clustering"),
        ({"class": CLUSTERING, "clip_weight": 0.0, "inmodal_weight": 1.0, "weight": 5.0}, "deep-clustering + SSL"),
        ({"class": SHRINK, "then": {"class": PSEUDO, "clip_weight": 0, "inmodal_weight": 0}},
         "shrink-perturb + pseudo-labels alone"),
        ({"class": "trainers.methods.finetune.MMCLFineTune", "clip_weight": 1.0, "inmodal_weight": 0.0}, "MMCL fine-tuning"),
        ({"class": "a.SomethingNew", "x": 1}, "SomethingNew"),
        ({"class": "a.Defence", "clip_weight": 1.0, "inmodal_weight": 0.0}, "Defence"),
        ({"class": "a.Defence", "label": "mine", "then": {"class": CLEANCLIP}}, "mine"),
        ({"class": "a.CleanCLIP", "clip_weight": 1.0, "inmodal_weight": 1.0}, "CleanCLIP (a.CleanCLIP)"),
    ],
)  # fmt: skip
def test_methods_without_a_written_label_are_called_by_their_class_and_what_it_does(method, name):
    one = TrialResult(stage="clean", name="n", fingerprint="f", folder=Path("x"), config={"clean": {"method": method}})
    assert method_of(one) == name


def test_settings_tell_trials_apart_with_short_names(tmp_path):
    study = fake_study(tmp_path)
    assert objective_of(study.pretrains[1]) == "MMCL+SSL"
    assert settings(study.trials[1], study.trials[:3]) == "lr 0.001"
    assert settings(study.trials[1], [study.trials[1]]) == "lr 0.001"
    assert short_paths(["clean.lr", "pretrain.lr", "clean.method.lambda"]) == {
        "clean.lr": "clean.lr",
        "pretrain.lr": "pretrain.lr",
        "clean.method.lambda": "lambda",
    }
