"""The table for papers: its numbers are the report's, its text is valid Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
import re

import pytest

from datasets.errors import InputError
from orchestrator.commands.arguments import parser
from orchestrator.report.paper import USUAL, as_text, lines
from orchestrator.results.points import panels
from orchestrator.results.selection import table
from tests.unit.fake_study import fake_study
from trainers.evaluate.choice import RULE


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return fake_study(tmp_path_factory.mktemp("store"))


def test_every_panel_method_and_rule_has_a_line_with_the_reports_numbers(study):
    found = {(line.pretraining, line.cleaning, line.rule): line for line in lines(study)}
    assert len(found) == len(lines(study))
    for row in table(study):
        if row.rule.key not in USUAL:
            continue
        line = found.pop((row.panel.label, row.method, row.rule.key))
        expected = row.over(lambda c: c.accuracy)
        assert line.reached == len(row.reached)
        assert line.accuracy[0] == expected[0] if expected else math.isnan(line.accuracy[0])
    assert {key[1:] for key in found} == {("before cleaning", "")} and len(found) == len(panels(study))


def test_the_best_is_the_highest_accuracy_or_the_lowest_asr_and_of_ties_all(study):
    for panel in panels(study):
        for rule in USUAL:
            mine = [line for line in lines(study) if (line.pretraining, line.rule) == (panel.label, rule)]
            full = [line for line in mine if line.reached == line.repetitions > 0]
            score = [-line.asr[0] if rule.startswith("asr") else line.accuracy[0] for line in full]
            assert [line.best for line in full] == [value == max(score) for value in score]
            assert not any(line.best for line in mine if line not in full)


def test_csv_holds_the_numbers_in_full(study):
    rows = list(csv.DictReader(io.StringIO(as_text(study, "csv"))))
    for row, line in zip(rows, lines(study), strict=True):
        assert (row["pretraining"], row["cleaning"], row["rule"]) == (line.pretraining, line.cleaning, line.rule)
        assert row["accuracy"] == ("" if math.isnan(line.accuracy[0]) else repr(line.accuracy[0]))
        assert int(row["best"]) == line.best


def test_markdown_has_as_many_cells_in_each_line(study):
    text = as_text(study, "md", ["acc_at_asr_le_5"])
    table_lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in table_lines} == {8}
    assert len(table_lines) == 2 + len(lines(study, ["acc_at_asr_le_5"])) and "**" in text and "↑" in text


def test_latex_is_ascii_and_closes_what_it_opens(study):
    text = as_text(study, "latex")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.isascii() and body.count("{") == body.count("}") and body.count(r"\begin") == body.count(r"\end") == 1
    assert re.search(r"(?<!\\)[%_#]", body) is None and r"\textbf{" in body
    assert all(line.count("&") == 5 for line in body.splitlines() if line.endswith(r"\\"))


def test_a_rule_that_is_none_is_told(study):
    with pytest.raises(InputError, match="--rule best: accepted: acc_at_asr_le_5, "):
        as_text(study, "md", ["best"])


@pytest.mark.parametrize("command", ["table", "export-best"])
def test_the_help_of_rule_lists_all_rules(command, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert " | ".join(RULE) in told
