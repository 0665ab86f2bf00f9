"""The page, Markdown and LaTeX of a folder of result files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator.commands import cli
from orchestrator.report.leaderboard import as_text, write_board
from orchestrator.results.cells import Cell, write_cell
from tests.unit.fake_cells import cell, many, reported

NASTY = "<b>x</b> & $y_1$ | 50%"


def folder_of(cells: list[Cell], root: Path) -> Path:
    for number, one in enumerate(cells):
        write_cell(one, root, (number, 0))
    return root


def test_the_page_shows_every_state_and_needs_no_network(tmp_path: Path):
    page = write_board(folder_of(many(["a", "b", "c", "d"], ["p", "q", "r", "s"]), tmp_path / "cells"), tmp_path / "out")
    text = page.read_text()
    assert text.count("<svg") == 5 and "http://www.w3.org" in text and not re.search(r'(src|href)="https?:', text)
    for said in ("b: the attack did not take", "r against d", "A Paper (2025), table 3", "8.7", "2 of 3", "8 × 1 GPU", "clean model"):
        assert said in text.replace("&nbsp;", " "), said
    assert len(list((tmp_path / "out").glob("*.pdf"))) == 5 == len(list((tmp_path / "out").glob("*.png")))


def test_names_are_escaped_everywhere(tmp_path: Path):
    cells = [cell(NASTY, "none", trials=0), cell(NASTY, NASTY), reported(NASTY, "other", 1.0, 2.0, "<i>Paper</i>")]
    folder = folder_of(cells, tmp_path / "cells")
    page = write_board(folder, tmp_path / "out", title=NASTY, doc=NASTY).read_text()
    assert "<b>x</b>" not in page and "<i>Paper" not in page and "&lt;b&gt;x" in page
    markdown, latex = as_text(folder, "md"), as_text(folder, "latex")
    assert all(line.replace("\\|", "").count("|") in (0, 4, 5, 6, 7) for line in markdown.splitlines() if line.startswith("|"))
    assert "<b>" not in markdown and r"\$y\_1\$" in latex and r"50\%" in latex


def test_tables_hold_the_numbers_and_what_is_none(tmp_path: Path):
    folder = folder_of(many(["a", "b", "c", "d"], ["p", "q", "r", "s"]), tmp_path)
    text = as_text(folder, "md")
    assert "8.7 (reported)" in text and "did not take" in text and "no model" in text and "97.0 [95.0, 99.0]" in text
    assert "(oracle)" in text and "(blind)" in text and "(blind)" not in as_text(folder, "md", ["oracle"])
    latex = as_text(folder, "latex")
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == text.count("**") / 2


def test_the_command_writes_a_page_a_file_or_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = folder_of([cell("a", "none", trials=0), cell("a", "x")], tmp_path / "cells")
    assert cli.run(["leaderboard", str(folder), "--rule", "blind"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == tmp_path / "cells-leaderboard" / "index.html" and "(oracle)" not in page.read_text()
    assert cli.run(["leaderboard", str(folder), "--format", "latex", "--out", str(tmp_path / "table.tex")]) == 0
    assert r"\begin{tabular}" in (tmp_path / "table.tex").read_text()
    capsys.readouterr()
    assert cli.run(["leaderboard", str(folder), "--format", "md"]) == 0
    assert "| x |" in capsys.readouterr().out.replace("  ", " ")


@pytest.mark.parametrize(("content", "said"), [(None, "holds no result file"), ("{}", "bad.json"), (json.dumps({"schema": "x"}), "schema")])
def test_a_bad_folder_is_one_sentence(content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
    assert cli.run(["leaderboard", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert cli.run(["leaderboard", str(tmp_path / "no")]) == 2
