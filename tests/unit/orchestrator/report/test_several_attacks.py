"""The report of a study with several attacks: each one's ASR beside the highest; and what lies in one place of the scatter."""

from __future__ import annotations

import csv
import io
import re

import pytest

from orchestrator.report.page import html
from orchestrator.report.paper import as_text
from orchestrator.report.scatter import HOVER_LINES, told_at
from orchestrator.report.tables import headline, summary
from orchestrator.results.points import asr_of, panels, starts_of
from orchestrator.results.selection import table
from tests.unit.fake_study import fake_study, seeded_study

ATTACKS = {"corner": "banana", "haze": "<all>-to-all"}


def with_attacks(study):
    """The highest ASR is of `corner` up to epoch 3, of `haze` from then on; the other's is half of it."""
    study.poison["found"] = {name: {"target": target} for name, target in ATTACKS.items()}
    for stage in [*study.pretrains, *study.trials]:
        for line in stage.metrics:
            metrics, last = line["metrics"], line["epoch"] > 3
            for name, share in (("corner", 0.5 if last else 1.0), ("haze", 1.0 if last else 0.5)):
                metrics |= {f"asr/{name}/top1": share * metrics["asr/top1"], f"asr/{name}/n": metrics["asr/n"]}
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return with_attacks(fake_study(tmp_path_factory.mktemp("store")))


def test_headline_says_each(study):
    first = headline(study)[0]
    assert "ASR 98.8 % (corner 49.4 %, haze 98.8 %) before cleaning" in first
    assert re.search(r"at ([\d.]+) % ASR \(corner [\d.]+ %, haze \1 %\)", first), first


def test_the_page_has_a_column_for_each_attack_of_what_one_would_keep(study):
    for panel, block in zip(panels(study), summary(study)["panels"], strict=True):
        heads, rows = block["attacks"]
        assert heads == ("cleaning", "chosen for", "ASR of corner → banana", "ASR of haze → <all>-to-all")
        kept = [row for row in table(study) if row.panel == panel and row.points]
        assert [line[:2] for line in rows] == [("before cleaning", ""), *((row.method, row.rule.text) for row in kept)]
        for line, points in zip(rows, [starts_of(study, panel), *(row.points for row in kept)], strict=True):
            for cell, name in zip(line[2:], ATTACKS, strict=True):
                assert cell.startswith(f"{points[0].metrics[f'asr/{name}/top1']:.1f} % [")
    page = html(study)
    assert "ASR of haze → &lt;all&gt;-to-all" in page and "<all>" not in page and "triggers and targets of this study" in page
    dots = re.findall(r"<title>([^<]*)</title></use>", page.replace("&nbsp;", " "))
    assert len(dots) > 40 and all(re.search(r"ASR [\d.]+ % \(corner [\d.]+ %, haze [\d.]+ %\)", dot) for dot in dots)


def test_the_table_for_a_paper_has_a_column_for_each(study):
    text = as_text(study, "md").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text if line.startswith("|")]
    assert {len(line) for line in cells} == {8} and cells[0][-1].strip() == "ASR of haze → <all>-to-all ↓ (%)"
    rows = list(csv.DictReader(io.StringIO(as_text(study, "csv"))))
    start = next(row for row in rows if row["cleaning"] == "before cleaning")
    assert float(start["asr/corner"]) == pytest.approx(float(start["asr"]) / 2) and start["asr/haze"] == start["asr"]
    assert all((row["asr/haze_low"] == "") == (row["asr"] == "") for row in rows)
    latex = as_text(study, "latex")
    assert r"\begin{tabular}{lllrrrrr}" in latex and r"corner $\rightarrow$ banana" in latex


def test_one_attack_has_none_of_it(tmp_path):
    study = fake_study(tmp_path)
    assert all(block["attacks"] is None for block in summary(study)["panels"])
    assert "corner" not in html(study) and "one trigger and the one target" in html(study)
    assert as_text(study, "csv").splitlines()[0].endswith("repetitions,best") and "asr/" not in as_text(study, "csv")


def test_a_number_that_some_repetition_lacks_is_left_out(tmp_path):
    study = with_attacks(seeded_study(tmp_path, seeds=2))
    [panel, _] = panels(study)
    starts = starts_of(study, panel)
    mean = sum(point.metrics["asr/haze/top1"] for point in starts) / 2
    assert asr_of(starts, "haze")[0] == pytest.approx(mean) and asr_of(starts, "other") is None
    del starts[1].metrics["asr/haze/top1"]
    assert asr_of(starts, "haze") is None
    block = next(block for block in summary(study)["panels"] if block["label"] == panel.label)
    assert block["attacks"][1][0][3] == "–"


def test_what_lies_in_one_place_is_all_said(tmp_path):
    study = fake_study(tmp_path)
    panel, first, second = panels(study)[0], study.trials[0], study.trials[1]
    line = next(line for line in first.metrics if line["epoch"] == 4)
    second.metrics[2]["metrics"] = line["metrics"]
    place = (line["metrics"]["asr/top1"], line["metrics"]["zeroshot/top1"])
    texts = told_at(study, panel)[place].split("\n")
    assert len(texts) == 2 and "epoch 4" in texts[0] and "epoch 2" in texts[1]
    page = html(study).replace("&nbsp;", " ")
    assert page.count("\n".join(texts)) >= 2, "on the mark on top, whichever that is"
    for one in study.trials:
        for number in range(1, len(one.metrics)):
            one.metrics[number]["metrics"] = line["metrics"]
    texts = told_at(study, panel)[place].split("\n")
    assert len(texts) == HOVER_LINES and texts[-1] == f"and {6 * 3 + 3 - HOVER_LINES + 1} more here"
