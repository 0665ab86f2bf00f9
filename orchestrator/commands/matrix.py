"""Filling a matrix, and rendering a folder of result files."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from datasets.storage import write_whole


def fill(options: argparse.Namespace, compute_of: Callable[[argparse.Namespace, Any], Any]) -> int:
    """`cleansweep matrix`: the exit code is 0 where every cell whose attack took is filled."""
    from orchestrator.report.leaderboard import as_text
    from orchestrator.running.matrix import CELLS, folder_of, plan_text, run_matrix
    from orchestrator.sweep.matrix import load_matrix

    matrix = load_matrix(options.sweep, options.overrides, options.miniature, options.seeds)
    if options.gate:
        matrix = replace(matrix, gate=replace(matrix.gate, action=options.gate))
    compute = compute_of(options, matrix)
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
