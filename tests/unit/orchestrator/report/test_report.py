"""The report: says what the numbers say, needs no network, escapes what it is given, and is the same twice."""

import csv
import io
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from orchestrator.report.drawing import look
from orchestrator.report.figures import figures
from orchestrator.report.page import html, write_report
from orchestrator.report.scatter import best_three, scatter
from orchestrator.report.shown import also_measured
from orchestrator.report.tables import headline, points_csv, summary_text
from orchestrator.results.cautions import cautions
from orchestrator.results.names import method_of
from orchestrator.results.outcome import Study
from orchestrator.results.points import cleaned_points, panels
from sweeps._study_claims import CLAIMS
from tests.unit.fake_study import fake_study


class Page(HTMLParser):
    """Every address a page refers to, its tags and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Study, Path]:
    root = tmp_path_factory.mktemp("report")
    study = fake_study(root / "store")
    return study, write_report(study, root / "out")


def test_the_page_stands_alone_and_its_files_are_complete(written):
    study, page = written
    assert page.name == "report.html"
    names = {path.name for path in page.parent.iterdir()}
    stems = ("accuracy_vs_asr", "pretrain_curves", "clean_curves", "best_three_1", "best_three_2")
    assert names == {"report.html", "points.csv", "pareto.csv", *(f"{s}.{e}" for s in stems for e in ("png", "pdf"))}
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.addresses and all(re.match("data:image/png;base64,|#[a-z]", address) for address in parsed.addresses)
    assert not {"script", "link", "iframe", "b&gt;"} & set(parsed.tags)
    assert not re.search(r"url\((?!#)|@import", page.read_text()), "what is referred to lies in the page"


def test_words_from_outside_are_escaped(written):
    study, _ = written
    evil = '<script>alert("x")</script>'
    study = replace(study)
    study.name = study.doc = evil
    study.samples = [{**study.samples[0], "key": f'"{evil}', "caption_before": evil, "caption_after": evil}]
    study.poison = {"target": evil, "drops": {evil: 1}, "visibility": {evil: 3.0}}
    study.config = {evil: evil}
    study.gates = {study.pretrains[0].fingerprint: {"passed": False, "reasons": [evil]}}
    text = html(study)
    assert "<script" not in text and text.count("&lt;script&gt;") >= 7
    assert "script" not in Page(text).tags


def test_the_headline_says_the_numbers_and_no_more(written):
    study, _ = written
    first, second = headline(study)
    assert first.startswith("MMCL pre-training: accuracy 99.2 %, ASR 98.8 % before cleaning; the most accurate cleaned")
    assert re.search(r"ASR ≤ 5 % \(CleanCLIP\) keeps 9\d\.\d % accuracy at \d\.\d % ASR, \d\.\d points lost\.$", first)
    nothing = Study(name="s", doc="", fingerprint="f", config={}, pretrains=study.pretrains, gates=study.gates)
    assert headline(nothing)[0].endswith("no cleaning was measured.")
    bad = {study.pretrains[0].fingerprint: {"passed": False}}
    failed = replace(study, gates=bad)
    assert headline(failed)[0].endswith("the attack did not take, so cleaning shows nothing here.")
    alone = replace(failed, trials=[], config={"base": {"clean": None}})
    assert headline(alone)[0].endswith(" epochs; the attack did not take.")
    said = [caution.text for caution in cautions(alone) if caution.gate]
    assert "did not take, or the pre-training is a defence that kept it out." in said[0]


def test_what_methods_and_evaluators_say_beside_is_a_table_of_the_newest_values(written):
    study, _ = written
    assert also_measured(study) is None and "What else was measured" not in html(study)
    first, second = study.pretrains
    lines = [line | {"metrics": line["metrics"] | {"safeclip/rho": 0.1 * line["epoch"]}} for line in first.metrics]
    end = lines[-1]["metrics"] | {"decree/mask": 0.25, "decree/mask_low": 0.1, "pairs/clean_cosine": 0.5}
    lines[-1] = lines[-1] | {"metrics": end}
    told = replace(study, pretrains=[replace(first, metrics=lines), second])
    assert also_measured(told) == (("metric", "MMCL", "MMCL+SSL"), [("safeclip/rho", "1.00", "–"), ("decree/mask", "0.250", "–")])
    assert html(told).count("2 metrics of the pre-trained models") == 1


def test_a_failed_gate_is_loud_and_comes_before_the_figures(written):
    study, _ = written
    gate = {"passed": False, "threshold": 90.0, "asr": 12.3, "accuracy": 99.0, "reasons": ["ASR is too low."]}
    text = html(replace(study, gates={study.pretrains[0].fingerprint: gate}))
    assert text.index("the attack did not take.") < text.index("ASR is too low.") < min(text.index("<svg"), text.index("<img"))
    assert 'class="gate failed"' in text


def test_the_scatter_comes_first(written):
    study, page = written
    for text in (page.read_text(encoding="utf-8"), html(replace(study, claims=CLAIMS))):
        body = text.split("</style>")[1].replace("&nbsp;", " ")
        assert re.findall(r"<h2>(.*?)</h2>", body)[:2] == ["Accuracy against attack success", "What one would keep"]
        first = body.index("<svg")
        assert re.match(r'<svg [^>]*aria-label="Accuracy against ASR: MMCL"', body[first:])
        assert first < body.index("<img") and first < body.index("<table")
        said = f'<details class="warn"><summary>Before believing it: {len(cautions(study))} cautions</summary>'
        assert body.index("What one would keep") < body.index(said) < body.index("<h2>", body.index("What one would keep"))
        told = unescape(body[body.index(said) : body.index("</details>")])
        assert all(caution.told() in told for caution in cautions(study))
    assert body.index(said) < body.index("The claims of the study") < body.index("The best three")


def test_a_mark_of_the_scatter_says_what_it_is(written):
    study, page = written
    first, second = re.findall(r"<svg .*?</svg>", page.read_text(encoding="utf-8").replace("&nbsp;", " "))
    told = re.findall(r'<g style="[^"]*" class="says">(.*?)</g>', first)
    said = re.findall(r"<use [^>]*><title>(.*?)</title></use>", "".join(told))
    points = [p for trial in study.trials if panels(study)[0].holds(trial) for p in cleaned_points(trial)]
    assert len(said) == len(points) + 1 and said[-1] == "before cleaning, epoch 10, accuracy 99.2 %, ASR 98.8 %"
    assert said[0].startswith("CleanCLIP: lr 0.0003, epoch 1, accuracy 9") and re.search(r"ASR \d+\.\d %$", said[0])
    ids = [set(re.findall(r'id="(.*?)"', text)) for text in (first, second)]
    used = [set(re.findall(r'(?:href="|url\()#(.*?)[")]', text)) for text in (first, second)]
    assert ids == used and not ids[0] & ids[1], "each figure refers to itself alone"


def test_words_that_a_mark_says_are_escaped(tmp_path):
    study, evil = fake_study(tmp_path), '<script>alert("x")</script>'
    study.trials[1].overrides["clean.choice"] = evil
    for trial in study.trials[4:7]:
        trial.config["method"] = {"class": "lab.Own", "label": f"{evil} & --> \x07"}
    text = html(study)
    scatters = [part.split("</svg>")[0] for part in text.split("<svg")[1:]]
    assert "<script" not in text and "choice &lt;script&gt;" in scatters[0] and "<title>&lt;script&gt;alert" in scatters[1]
    assert "script" not in Page(text).tags


def test_warnings_drops_visibility_and_captions_are_on_the_page(written):
    words = " ".join(Page(written[1].read_text(encoding="utf-8")).words)
    for said in (
        "wider grid may change it",
        "No model reached ASR",
        "FloatingPointError: step 131",
        "picture does not decode",
        "71.4",
        "a photo of a banana.",
        "Fewer than three seeds",
        "oracle",
        "blind",
        written[0].fingerprint,
    ):
        assert said in words, said


def test_points_csv_holds_every_epoch_with_intervals_and_dotted_columns(written):
    study, page = written
    rows = list(csv.DictReader(io.StringIO((page.parent / "points.csv").read_text())))
    stages = [*study.pretrains, *study.trials]
    assert len(rows) == sum(len(stage.metrics) for stage in stages)
    for row in rows:
        assert float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"])
        assert float(row["asr_low"]) <= float(row["asr"]) <= float(row["asr_high"])
        assert (row["n"], row["asr_n"], row["study"]) == ("1000", "900", "quickstart")
    trial = [row for row in rows if row["fingerprint"] == study.trials[1].fingerprint]
    assert [int(row["epoch"]) for row in trial] == list(range(7))
    assert {row["clean.lr"] for row in trial} == {"0.001"} and {row["method"] for row in trial} == {"CleanCLIP"}
    assert {row["clean.method.inmodal_weight"] for row in trial} == {"1"}
    assert {row["objective"] for row in trial} == {"MMCL"} and trial[2]["seconds"] == "4.2"


def test_the_same_study_gives_the_same_bytes(written, tmp_path):
    study, page = written
    again = write_report(study, tmp_path / "again")
    for path in page.parent.iterdir():
        assert path.read_bytes() == (again.parent / path.name).read_bytes(), path.name


def test_figures_show_every_point_and_keep_them_inside(written):
    study, page = written
    figure = scatter(study)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["pre-trained with MMCL", "pre-trained with MMCL+SSL"]
    for axes, panel in zip(figure.axes, panels(study)):
        dots = [xy for line in axes.lines if line.get_linestyle() == "None" for xy in zip(*line.get_data())]
        trials = [trial for trial in study.trials if panel.holds(trial)]
        assert len(dots) == sum(len(trial.metrics) - 1 for trial in trials if trial.status != "failed") + 1  # and the star
        (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
        assert all(x0 <= x <= x1 and y0 <= y <= y1 for x, y in dots) and y1 - y0 >= 10
    markers = {marker for _, marker in look(study).values()}
    assert len(markers) == len(look(study)) == 2
    assert Image.open(page.parent / "accuracy_vs_asr.png").size[0] > 1000


def test_the_text_for_a_terminal_fits_100_columns(written):
    study, page = written
    text = summary_text(study, page.parent, "cleansweep ui --store x")
    assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith(("report:", "MLflow:")))
    assert str(page.parent) in text and "MLflow: cleansweep ui --store x" in text
    assert "9 cleanings (7 finished, 1 stopped, 1 failed)" in text and "before cleaning" in text


@pytest.mark.parametrize("kept", ["nothing", "pretrains", "no metrics"])
def test_a_study_that_has_only_begun_still_gives_a_page(kept, tmp_path):
    study = fake_study(tmp_path)
    if kept == "nothing":
        study = Study(name="new", doc="", fingerprint="f" * 64, config={})
    elif kept == "pretrains":
        study.trials = []
    else:
        for stage in [*study.pretrains, *study.trials]:
            stage.metrics, stage.status = [], "running"
    text = write_report(study, tmp_path / "out").read_text()
    assert text.startswith("<!doctype html>") and summary_text(study)
    assert points_csv(study).startswith("study,stage,name,fingerprint,")


def test_broken_numbers_do_not_break_the_page(tmp_path):
    study = fake_study(tmp_path)
    study.trials[0].metrics[3]["metrics"]["asr/top1"] = math.inf
    study.gates[study.pretrains[0].fingerprint] |= {"asr": math.nan, "threshold": None}
    study.poison = {"drops": {}, "visibility": {"a": math.nan, "b": None, "c": {"d": 3}}, "counts": [1, 2]}
    assert "the attack took. ASR –" in html(study)


def test_figures_of_many_pretrainings_with_long_names_are_laid_out(tmp_path):
    study = fake_study(tmp_path)  # pytest makes an error of matplotlib's warning that it could not lay a figure out
    words = "a trigger that is told in very many words indeed and goes on"
    several = [
        replace(stage, fingerprint=f"{number}{stage.fingerprint[1:]}", config=stage.config | {"poison": {"target": f"{words} {number}"}})
        for number in range(5) for stage in study.pretrains
    ]  # fmt: skip
    trials = [replace(trial, pretrain=several[0].fingerprint, name=words) for trial in study.trials]
    many = replace(study, pretrains=several, trials=trials)
    for name, draw in figures(many).items():
        figure = draw()
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        panels_in = [axes.get_window_extent(renderer) for axes in figure.axes if axes.get_visible()]
        for shown in figure.legends:
            box = shown.get_window_extent(renderer)
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1, f"{name}: the legend is cut"
            assert not any(box.overlaps(panel) for panel in panels_in), f"{name}: the legend lies on a panel"


def test_the_best_trials_wear_their_methods_colours_and_are_counted(tmp_path):
    study = fake_study(tmp_path)
    styles = look(study)
    worn = {(line.get_markerfacecolor(), line.get_marker()) for line in best_three(study, panels(study)[0]).axes[0].lines[:2:2]}
    assert worn == {styles["CleanCLIP"]}
    alone = replace(study, trials=[trial for trial in study.trials if method_of(trial) == "CleanCLIP"])
    assert set(look(alone).values()) == {styles["CleanCLIP"]}, "as in every other study"
    assert "The best three" in html(study)
    fewer = html(replace(study, trials=study.trials[:2]))
    assert "The two trials" in fewer and "The best three" not in fewer and "The three trials" not in fewer


def test_trainings_without_the_poison_are_told_with_what_they_reached(tmp_path):
    study = fake_study(tmp_path)
    prior = replace(study.pretrains[0], name="MMCL unpoisoned", fingerprint="e" * 64, role="prior", seconds=7384.0)
    page = html(replace(study, priors=[prior]))
    assert "<td>prior: MMCL unpoisoned</td>" in page and "98.8&nbsp;% (floor)" in page
    assert "training without the poison</dt><dd>2 h 03 min" in page and "without the poison" not in html(study)
