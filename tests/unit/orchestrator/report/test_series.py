"""The figure over one hyper-parameter, and what the page and the scatter draw beside the study's own points."""

import csv
import io
import math
from dataclasses import replace

import pytest

from orchestrator.experiment.spec import Reference
from orchestrator.report.drawing import look, same_scale
from orchestrator.report.figures import figures
from orchestrator.report.page import html
from orchestrator.report.rendering import render
from orchestrator.report.scatter import best_three, corner, published, scatter, zoom
from orchestrator.report.series import _Axis, series, series_csv, steps
from orchestrator.report.shown import before_first_step
from orchestrator.report.tables import pareto_csv
from orchestrator.results.cautions import beside, cautions
from orchestrator.results.points import arms, cleaned_points, front, panels
from orchestrator.results.published import load_published
from orchestrator.results.selection import table
from tests.unit.fake_study import fake_study, hash64_hex, seeded_study

CC3M = Reference(start="cc3m_1500", cleaning="cc3m/clean_100k")


@pytest.fixture
def poisoned(tmp_path):
    study = seeded_study(tmp_path, poisons=(0, 1, 5), methods=("CleanCLIP",))
    study.series = "clean.poisons"
    return study


def test_a_series_has_a_mean_over_seeds_at_each_value_and_a_gap_where_nothing_qualifies(poisoned):
    found = {(s.panel.label, s.value, s.rule): s for s in steps(poisoned)}
    none, some = found["MMCL", 5, "acc_at_asr_le_5"], found["MMCL", 0, "acc_at_asr_le_5"]
    assert none.over("accuracy") is None and len(none.choices) == 3
    mean, low, high = some.over("accuracy")
    assert low < mean < high and mean == pytest.approx(sum(c.accuracy for c in some.choices) / 3)
    axes = series(poisoned).axes[0]
    worn = look(poisoned, "clean.poisons")["CleanCLIP"]  # as in every study
    (line,) = [line for line in axes.lines if (line.get_color(), line.get_marker()) == worn]
    assert worn[1] == "^"
    assert list(line.get_xdata()) == [0, 1, 5] and [math.isnan(y) for y in line.get_ydata()] == [False, True, True]
    assert [text.get_text() for text in axes.texts] == ["none", "none"]


def test_its_table_counts_the_repetitions_that_reached_it(poisoned):
    lost = [t for t in poisoned.trials if t.overrides["clean.poisons"] == 0][:4]  # all rates of one seed on MMCL
    for trial in lost:
        for line in trial.metrics:
            line["metrics"]["asr/top1"] = 90.0
    rows = list(csv.DictReader(io.StringIO(series_csv(poisoned))))
    row = next(r for r in rows if (r["pretraining"], r["clean.poisons"], r["rule"]) == ("MMCL", "0", "acc_at_asr_le_5"))
    assert (row["seeds"], row["reached"]) == ("3", "2") and float(row["low"]) < float(row["mean"])
    assert "2/3" in {text.get_text() for text in series(poisoned).axes[0].texts}


def test_poisons_and_pairs_are_never_chosen_between(poisoned):
    assert set(arms(poisoned).values()) == {"CleanCLIP, poisons 0", "CleanCLIP, poisons 1", "CleanCLIP, poisons 5"}
    rows = {(row.panel.label, row.method): row for row in table(poisoned) if row.rule.key == "acc_at_asr_le_5"}
    assert rows["MMCL", "CleanCLIP, poisons 0"].reached and not rows["MMCL", "CleanCLIP, poisons 5"].reached
    assert len({colour for colour, _ in look(poisoned).values()}) == 3
    assert not any("poisons = " in caution.text for caution in cautions(poisoned))


def test_a_series_before_cleaning_shows_the_uncleaned_models(tmp_path):
    study = seeded_study(tmp_path, methods=("CleanCLIP",))
    for number, stage in enumerate(study.pretrains):
        count = (40, 4000)[number // 2 % 2]
        stage.config["poison"] = {"count": count}
        for trial in study.trials:
            if trial.pretrain == stage.fingerprint:
                trial.config["poison"] = {"count": count}
    counts = Reference(by="poison.count", start={400: "cc6m_400", 3000: "cc6m_3000"})
    study.series, study.published = "poison.count", load_published(counts)
    assert [panel.label for panel in panels(study)] == ["MMCL, count 40", "MMCL+SSL, count 40", "MMCL, count 4000", "MMCL+SSL, count 4000"]
    assert [panel.label for panel in panels(study, ignoring=study.series)] == ["MMCL", "MMCL+SSL"]
    figure = series(study)
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert [list(line.get_xdata()) for line in stars] == [[math.log10(40), math.log10(4000)]]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["CleanCLIP", "before cleaning", "published: before cleaning (cc6m_400, cc6m_3000)"]


def test_a_wide_axis_counts_in_decades_with_zero_apart_and_words_stand_side_by_side():
    axis = _Axis([100, 0, 1])
    assert axis.log and axis.at(0) < axis.at(1) == 0 < axis.at(100) == 2
    assert not _Axis([0, 1, 5]).log and not _Axis([1, 2]).log
    words = _Axis(["patch", "warped"])
    assert [words.at("patch"), words.at("warped")] == [0, 1] and not words.reaches(3)
    assert axis.reaches(50) and not axis.reaches(150)


def test_published_points_are_hollow_underneath_and_named_apart(tmp_path):
    study = seeded_study(tmp_path, seeds=1)
    study.published = load_published(CC3M)
    assert not same_scale(study)
    own = {id(line) for axes in scatter(study).axes for line in axes.lines}
    assert own and "published" in figures(study)
    for line in (line for axes in published(study).axes for line in axes.lines):
        assert line.get_markerfacecolor() == "none"
    start = study.published.starts[0]
    study.published = replace(study.published, cleanings=(), starts=(replace(start, mark=replace(start.mark, accuracy=70.0)),))
    figure = scatter(study)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["CleanCLIP", "MMCL", "before cleaning", "published: before cleaning (cc3m_1500)"]
    assert "published" not in figures(study)
    (mark,) = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert list(mark.get_ydata()) == [70.0] and mark.get_zorder() < 2


def test_the_crowded_corner_is_enlarged_where_there_is_one(tmp_path):
    study = seeded_study(tmp_path)
    (first, second) = panels(study)
    assert corner(study, second) is None
    for trial in study.trials:
        for line in trial.metrics[1:] if first.holds(trial) else ():
            line["metrics"]["asr/top1"] /= 12
    (x0, x1), (y0, y1) = corner(study, first)
    assert "enlarged_1" in figures(study) and "enlarged_2" not in figures(study)
    axes = zoom(study, first).axes[0]
    assert axes.get_xlim() == (x0, x1) and x1 < 15 and "enlarged" in axes.get_title(loc="left")


def test_a_front_holds_what_nothing_beats_and_its_table_names_the_trial(tmp_path):
    study = seeded_study(tmp_path)
    points = [p for trial in study.trials for p in cleaned_points(trial)]
    best = front(points)
    for p in points:
        beaten = any(q.asr <= p.asr and q.accuracy >= p.accuracy and (q.asr, q.accuracy) != (p.asr, p.accuracy) for q in points)
        assert beaten != any((q.asr, q.accuracy) == (p.asr, p.accuracy) for q in best)
    rows = list(csv.DictReader(io.StringIO(pareto_csv(study))))
    assert {row["fingerprint"] for row in rows} <= {trial.fingerprint for trial in study.trials}
    groups = {(row["pretrain"], row["method"]) for row in rows}
    assert len(groups) == 12 and {row["clean.lr"] for row in rows} <= {"0.0005", "0.001", "0.002", "0.004"}


def test_the_best_three_are_those_of_the_rule_and_the_others_are_called_what_they_are(tmp_path):
    study = seeded_study(tmp_path)
    first, second = (best_three(study, panel) for panel in panels(study))
    labels = [text.get_text() for text in first.legends[0].get_texts()]
    assert labels == [f"{rank}. CleanCLIP: lr 0.002, seed {seed}" for rank, seed in enumerate((2, 1, 0), 1)] + ["before cleaning"]
    assert {"1", "6"} <= {text.get_text() for text in first.axes[0].texts}
    assert all("never at ASR ≤ 5 %" in text.get_text() for text in second.legends[0].get_texts()[:3])


def test_losses_before_the_first_step_are_a_table(tmp_path):
    text = render("before", before=before_first_step(seeded_study(tmp_path)))
    assert text.count("<tr>") == 7 and "0.85" in text and "9.4" in text
    assert before_first_step(fake_study(tmp_path)) is None


def test_a_study_of_pretraining_alone_has_no_empty_sections(tmp_path):
    study = replace(seeded_study(tmp_path), trials=[], config={"base": {"clean": None}})
    study.published = load_published(Reference(start="cc6m_3000"))
    text = html(study).replace("&nbsp;", " ")
    assert "MMCL pre-training: accuracy 72.0 %, ASR 97.5 % after 12 epochs (means of 3 seeds)." in text
    for gone in ("leaning", "none reached", "Best three", "What one would keep", "claims"):
        assert gone not in text.split("<h2>How it was run")[0].split("</style>")[1], gone
    assert set(figures(study)) == {"pretrain_curves"}


def test_what_concerns_a_figure_is_beside_it(tmp_path):
    study = fake_study(tmp_path)
    first, second = (beside(panel.label, cautions(study)) for panel in panels(study))
    assert "No model reached ASR ≤ 5 %: MMCL." in first and "No model reached ASR ≤ 5 %: CleanCLIP." in second
    assert not any("FloatingPointError" in text for text in first) and any("FloatingPointError" in text for text in second)
    assert any("end of its grid: lr = 0.003, the largest tried" in text for text in first)
    page = html(study)
    assert page.count('<figcaption class="beside">') >= 4 and page.index("FloatingPointError") < page.index("<img")


def test_a_drawn_value_near_a_bound_lies_at_the_end_of_its_range(tmp_path):
    study = seeded_study(tmp_path, seeds=1, methods=("CleanCLIP",), strength=(1.0, 0.9))
    study.config["space"] = {"clean.lr": {"kind": "Float", "lower": 1e-4, "upper": 4.2e-3}}
    (text,) = {caution.told("MMCL+SSL") for caution in cautions(study) if "end of its" in caution.text}
    assert "Chosen at the end of its range: lr = 0.004, drawn from 0.0001 … 0.0042; a wider range may change it" in text
    study.config["space"]["clean.lr"]["upper"] = 0.1
    assert not any("end of its" in caution.text for caution in cautions(study))


def test_pretrainings_are_told_apart_by_words(tmp_path):
    study = seeded_study(tmp_path, seeds=1)
    source, made = study.pretrains[0], []
    for cls, mode in (("patch.Patch", "dirty_label"), ("warped.Warped", "dirty_label"), ("patch.Patch", "label_consistent")):
        poison = {"class": "datasets.attack.poison.Poison", "trigger": {"class": f"datasets.triggers.{cls}", "size": 6}, "mode": mode}
        made.append(replace(source, fingerprint=hash64_hex(cls, mode), config={**source.config, "poison": poison}))
    study.pretrains = made
    assert [panel.label for panel in panels(study)] == ["MMCL, patch", "MMCL, warped", "MMCL, patch, label-consistent"]
