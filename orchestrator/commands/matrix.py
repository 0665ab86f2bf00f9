"""Filling a matrix, and rendering a folder of result files."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.errors import InputError
from datasets.storage import write_whole

if TYPE_CHECKING:
    from orchestrator.experiment.matrix import Matrix
    from orchestrator.experiment.spec import Compute


def fill(options: argparse.Namespace, matrix: "Matrix", compute: "Compute") -> int:
    """`cleansweep matrix`: the exit code is 0 where every cell whose attack took is filled."""
    from orchestrator.report.leaderboard import as_text
    from orchestrator.running.matrix import CELLS, folder_of, plan_text, run_matrix

    if options.gate:
        matrix = replace(matrix, gate=replace(matrix.gate, action=options.gate))
    if options.dry:
        print(plan_text(matrix, compute))
        return 0
    out = options.out.absolute() if options.out else folder_of(matrix, compute)
    page, failures = run_matrix(matrix, compute, out)
    for failure in failures:
        print(f"cleansweep: {failure}", file=sys.stderr)
    print(f"{as_text(out / CELLS, 'md')}\nmatrix: {page}")
    return 1 if failures else 0


def leaderboard(folder: Path, form: str, rule: str | None, out: Path | None, title: str) -> int:
    """`cleansweep leaderboard`: writes the page, or prints or writes the tables."""
    from orchestrator.report.leaderboard import as_text, write_board
    from orchestrator.results.board import KINDS

    kinds = (rule,) if rule else KINDS
    try:
        if form == "html":
            folder = folder.absolute()
            print(write_board(folder, out or folder.with_name(f"{folder.name}-leaderboard"), title, kinds=kinds))
        elif out:
            print(write_whole(out.absolute(), as_text(folder, form, kinds).encode()))
        else:
            print(as_text(folder, form, kinds), end="")
    except OSError as error:
        raise InputError(f"--out {error.filename or out} cannot be written: {error.strerror}.") from error
    return 0
