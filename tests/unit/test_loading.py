"""Sweep files that go wrong: one sentence that names file and line."""

from dataclasses import replace

import pytest

from datasets.errors import InputError
from orchestrator.loading import load_sweep
from orchestrator.spec import Sweep
from tests.tiny_sweep import SWEEP


@pytest.mark.parametrize(("text", "said"), [
    ("x = 1\nint('a')\n", "line 2 cannot be read as a sweep: ValueError"),
    ("{}['key']\n", "line 1 cannot be read as a sweep: KeyError: 'key'"),
    ("def f():\n    open('/no/such')\n\nf()\n", "line 4 .*FileNotFoundError"),
    ("import sys\nsys.exit(3)\n", "line 2 .*SystemExit"),
    ("x = = 1\n", "line 1 .*SyntaxError"),
    ("import no_such_module\n", "line 1: No module named"),
    ("from orchestrator.spec import Compute\nCompute(workers=0)\n", "line 2: workers is 0"),
])
def test_a_file_that_raises(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=f"mine.py, {said}"):
        load_sweep(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(("field", "value"), [
    ("space", None), ("space", {1: 2}), ("base", 3), ("name", ""), ("name", "a/b"), ("num_samples", "a"), ("gate", None), ("compute", 1),
])
def test_a_field_of_another_kind(field, value):
    with pytest.raises(InputError, match=rf"Sweep\.{field}\b"):
        replace(SWEEP, **{field: value})
    assert isinstance(SWEEP, Sweep)
