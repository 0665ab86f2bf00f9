"""A matrix on a real Ray: its defence trains anew without the most suspect pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.experiment.matrix import Defence, Matrix
from orchestrator.experiment.spec import Gate, Keep
from tests.experiments import UPSTREAM, artefacts, furnish
from tests.tiny_sweep import BASE, SWEEP
from trainers.detect.lorex import LoREx

MATRIX = Matrix(
    name="tiny-on-ray",
    base=replace(BASE, clean=None),
    attacks={"patch": BASE.poison},
    defences={
        "LoREx, then anew": Defence(changes={"keep": Keep(score=LoREx(trusted=100, m=256), share=0.9)}),
    },
    gate=Gate(min_asr=0.0, action="warn"),
    compute=SWEEP.compute,
)


def test_it_is_filled_and_a_second_command_makes_nothing(here: Callable[..., tuple[int, str]], tiny_store: Path, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path))
    furnish(tmp_path, tiny_store, *UPSTREAM)
    [undefended] = artefacts(tmp_path, "pretrain")
    code, output = here("matrix", __file__, *store)
    assert code == 0, output
    made = {stage: set(artefacts(tmp_path, stage)) for stage in ("pretrain", "scores", "kept")}
    assert {stage: len(names) for stage, names in made.items()} == {"pretrain": 2, "scores": 1, "kept": 1}
    assert undefended in made["pretrain"], "the stored model is the undefended one"
    [kept] = artefacts(tmp_path, "kept").values()
    summary = json.loads((kept / "summary.json").read_text())
    assert (summary["pairs"], summary["kept"], summary["dropped"], summary["victims"]) == (400, 360, 40, 20)
    assert summary["victims_caught"] + summary["clean_pairs_lost"] == 40

    [page] = tmp_path.glob("matrices/*/index.html")
    cells = {cell["defence"]["name"]: cell for path in page.parent.glob("cells/*.json") if (cell := json.loads(path.read_text()))}
    assert set(cells) == {"none", "LoREx, then anew"}
    anew = cells["LoREx, then anew"]["measured"]["oracle"]
    assert anew["start_asr"] == cells["none"]["measured"]["oracle"]["asr"] and anew["asr"]["values"]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")}
    code, output = here("matrix", __file__, *store)
    assert code == 0 and times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")}, output
