"""The page of an audit: names, numbers as people read them, the order of metrics, curves over queries."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path

import pytest

from orchestrator.report.audit import UNKNOWN, metric_table, robust_table, short, write_audit
from orchestrator.report.audit_curves import query_curves, query_steps
from orchestrator.results.audits import AuditResult, named
from trainers.audit.attacks.fmn import FMN
from trainers.audit.attacks.nes import NES
from trainers.audit.attacks.pgd import PGD
from trainers.audit.attacks.square import Square
from trainers.audit.black_box import QueryCurve
from trainers.audit.defences.ttc import TTC
from trainers.audit.meanings import Meaning
from trainers.audit.robustness import Robustness
from trainers.audit.shares import share
from trainers.audit.trigger_filter import TriggerFilter
from trainers.evaluate.zeroshot import wilson


def robust(audit: Robustness, right: int) -> AuditResult:
    metrics = share("robust/clean", 9, 10) | share("robust/accuracy", right, 10) | share("robust/noise", 8, 10)
    return AuditResult("m", audit, metrics)


def test_attacks_with_one_label_have_a_row_each_on_the_page_and_in_the_csv(tmp_path: Path):
    results = named([robust(Robustness(attack=PGD(steps=steps)), right) for steps, right in ((1, 7), (40, 2))])
    _, rows = robust_table(results, ["m"])
    assert [row[0] for row in rows] == ["not attacked", "PGD (steps=1)", "PGD (steps=40)"]
    assert [row[2][:4] for row in rows] == ["90.0", "70.0", "20.0"]
    write_audit([AuditResult("m", one.audit, one.metrics, folder=tmp_path, name=one.name) for one in results], tmp_path / "out", "t", [])
    lines = list(csv.DictReader((tmp_path / "out" / "audit.csv").open()))
    assert {line["audit"]: line["value"] for line in lines if line["metric"] == "robust/accuracy"} == {
        "PGD (steps=1)": "70.0", "PGD (steps=40)": "20.0",
    }  # fmt: skip
    assert "PGD (steps=40)" in (tmp_path / "out" / "index.html").read_text()


def test_defences_with_one_label_have_a_row_each_without_an_attack_too():
    results = named([robust(Robustness(attack=PGD(), defence=TTC(tau=tau)), 5) for tau in (0.1, 0.2)])
    assert [row[0] for row in robust_table(results, ["m"])[1]] == [
        "not attacked, TTC (tau=0.1)", "not attacked, TTC (tau=0.2)", "PGD on TTC, oblivious (tau=0.1)", "PGD on TTC, oblivious (tau=0.2)",
    ]  # fmt: skip


def test_noise_stands_beside_a_minimal_attack_at_each_radius_where_it_was_tried():
    metrics = share("robust/clean", 9, 10) | share("robust/at_0.11", 4, 10) | share("robust/at_0.22", 2, 10)
    metrics |= share("robust/noise_at_0.11", 8, 10)
    rows = robust_table([AuditResult("m", Robustness(attack=FMN(), radii=(0.11, 0.22)), metrics)], ["m"])[1]
    assert [row[1] for row in rows] == ["", "0.11", "0.22"] and rows[1][2].endswith("noise 80.0") and rows[2][2].endswith("noise –")


def test_intervals_end_in_numbers_that_people_write():
    low, high = wilson(0, 7)
    assert 0 < low < 1e-12, "rounding leaves this of 0"
    table = metric_table([AuditResult("m", QueryCurve(attack=NES()), {"a/x": 0.0, "a/x_low": low, "a/x_high": high})], ["m"])
    assert table[1] == [["x", "0\N{NO-BREAK SPACE}[0,\N{NO-BREAK SPACE}35.4]", "", ""]]
    assert [short(value) for value in (3e-9, -0.25, 12.345, 1234.5, 0.0)] == ["3e−09", "−0.25", "12.3", "1234", "0"]
    assert short(-1e-16, 0.0) == "0" and short(1e-9, 2e-9) == "1e-09".replace("-", "−"), "small beside a small one is no rounding"


def test_metrics_keep_their_order():
    rows = metric_table([AuditResult("m", QueryCurve(attack=NES()), {"a/z": 1.0, "a/b": 2.0, "a/k": 3.0})], ["m"])[1]
    assert [row[0] for row in rows] == ["z", "b", "k"]


def test_every_number_of_the_csv_is_explained_on_the_page(tmp_path: Path):
    """Robustness has numbers in audit.csv that its table does not show, a filter short names, and an audit of one's own its own rows."""

    @dataclass(frozen=True, kw_only=True)
    class Own(QueryCurve):
        meanings = {"own/<x>": Meaning("brightness of <x>", "%", "–", "mean of all pixels")}

    results = named([
        replace(robust(Robustness(attack=PGD()), 5), folder=tmp_path),
        AuditResult("m", TriggerFilter(defence=TTC()), share("filter/TTC/bare/ra", 3, 4) | {"filter/TTC/queries": 4.0}, folder=tmp_path),
        AuditResult("m", Own(attack=NES(seed=1)), {"own/a": 1.0, "own/b": 2.0, "unknown/c": 3.0}, folder=tmp_path),
    ])  # fmt: skip
    page = write_audit(results, tmp_path / "out", "t", []).read_text()
    shown = {row[0]: row[1:] for row in rows_under(page, "What the numbers are")}
    for line in csv.DictReader((tmp_path / "out" / "audit.csv").open()):
        name = re.sub("^own/.$", "own/<x>", re.sub("_(low|high)$", "", line["metric"].replace("/TTC/", "/<defence>/")))
        assert name in shown, name
    assert shown["filter/<defence>/bare/ra"][:3] == ["recovery accuracy without the filter", "%", "higher"]
    assert shown["filter/<defence>/bare/ra"][3].startswith("share of the triggered pictures") and shown["unknown/c"][3] == UNKNOWN
    assert ["recovery accuracy without the filter", "75.0\xa0[30.1,\xa095.4]", "%", "higher"] in rows_under(page, "Trigger filter TTC")
    assert [row[0] for row in rows_under(page, "Own")] == ["brightness of a", "brightness of b", "unknown/c"]


def rows_under(page: str, title: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    rest = re.split(rf"<h[23]>[^<]*{title}", page, maxsplit=1)[1]
    body = rest.partition("<tbody>")[2].partition("</tbody>")[0]
    return [[unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in body.split("</tr>") if "<td>" in row]


def test_the_curve_over_queries_counts_what_was_turned_by_then():
    asking = [
        AuditResult("m", Robustness(attack=Square(queries=100)), asked=(5, 20, 20), attacked=4),
        AuditResult("m", QueryCurve(attack=NES(queries=60)), asked=(), attacked=4),
    ]
    steps = query_steps(asking[0])
    assert [step[:2] for step in steps] == [(1, 0.0), (5, 25.0), (20, 75.0), (100, 75.0)]
    assert steps[2][2:] == pytest.approx(wilson(3, 4))
    figure = query_curves([*asking, robust(Robustness(attack=PGD()), 5)])
    assert figure is not None
    lines = figure.axes[0].get_lines()
    assert [str(line.get_label()).split(",")[0] for line in lines] == ["Square", "NES by queries"]
    assert list(lines[0].get_ydata()) == [0, 25, 75, 75] and lines[0].get_drawstyle() == "steps-post"  # type: ignore[arg-type]
    assert list(lines[1].get_xdata()) == [1, 60] and list(lines[1].get_ydata()) == [0, 0], "it turned none"  # type: ignore[arg-type]
    assert query_curves(asking[1:]) is None
    assert query_curves([robust(Robustness(attack=PGD()), 5)]) is None


def test_the_page_draws_the_curve_over_queries(tmp_path: Path):
    one = AuditResult("m", QueryCurve(attack=NES()), {"a/n": 4.0}, folder=tmp_path, asked=(100,), attacked=4)
    page = write_audit([one], tmp_path / "out", "t", []).read_text()
    assert 'aria-label="Attacks that only ask: turned pictures over queries"' in page
    assert (tmp_path / "out" / "black-box-queries.png").exists()
