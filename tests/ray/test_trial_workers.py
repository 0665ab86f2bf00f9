"""A cleaning on several workers is the cleaning that one process makes, to rounding."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.experiments import TINY, UPSTREAM, artefacts, furnish


def test_a_trial_of_two_workers(here: Callable[..., tuple[int, str]], tiny_store: Path, tmp_path: Path) -> None:
    furnish(tmp_path, tiny_store, *UPSTREAM, "cleanset", "clean")
    name, folder = sorted(artefacts(tmp_path, "clean").items())[0]
    one = artefacts(tiny_store, "clean")[name]
    shutil.rmtree(folder)
    code, output = here("run", TINY, "--store", str(tmp_path), "--trial-workers", "3")
    assert code == 2 and "clean.batch_size 32 must be a multiple of 3 workers" in output, output
    code, output = here("run", TINY, "--store", str(tmp_path), "--trial-workers", "2")
    assert code == 0, output
    two = artefacts(tmp_path, "clean")[name]
    alone, together = ([json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()] for made in (one, two))
    assert [line["epoch"] for line in together] == [0, 1, 2, 3]
    for a, b in zip(alone, together):
        losses = [metric for metric in a["metrics"] if metric.startswith(("train/", "before/")) and "second" not in metric]
        assert losses and all(b["metrics"][metric] == pytest.approx(a["metrics"][metric], rel=2e-3) for metric in losses)
        assert all(abs(a["metrics"][metric] - b["metrics"][metric]) <= 5 for metric in ("zeroshot/top1", "asr/top1")), "4 of 80 pictures"
    first, second = (load_file(sorted(made.glob("epoch_*"))[-1] / "open_clip_model.safetensors") for made in (one, two))
    off = sum(((first[key] - second[key]) ** 2).sum() for key in first) / sum((first[key] ** 2).sum() for key in first)
    assert off**0.5 < 5e-3
    [points] = tmp_path.glob("reports/*/points.csv")
    rows = [row for row in csv.DictReader(points.open()) if row["stage"] == "clean"]
    assert len(rows) == 16 and {row["status"] for row in rows} == {"finished"}
