"""The blocks of docs/notebook.md, run as they stand over the tiny sweep."""

import re
import shutil
from pathlib import Path

import pytest

from tests.experiments import ROOT, TINY


def test_every_block_runs(tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(tiny_store, tmp_path / "store")
    text = (ROOT / "docs" / "notebook.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    program = "\n".join(blocks).replace("sweeps.quickstart", TINY).replace("store/demo", str(tmp_path / "store"))
    names: dict = {}
    exec(compile(program, "docs/notebook.md", "exec"), names)
    said = capsys.readouterr().out
    assert len(blocks) == 5 and r"\begin{tabular}" in said and "('CleanCLIP', 'finished')" in said
    assert len(names["frame"]) == 3 + 4 * 4 and set(names["results"]["method"]) == {"MMCL fine-tuning", "CleanCLIP"}
    chosen = names["choose"](names["frame"], "blind")
    assert all((tmp_path / "store" / checkpoint).is_dir() for checkpoint in chosen["checkpoint"])
