"""Commands that cannot do what they were asked: one sentence, exit code 2, nothing written; and output that nobody reads."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from datasets.errors import InputError
from orchestrator.commands import cli
from orchestrator.commands.arguments import COMPUTE, parser
from orchestrator.commands.cli import _complain
from orchestrator.experiment.spec import Compute
from orchestrator.stages.base import At
from orchestrator.stages.graph import make_data
from orchestrator.store import Store
from orchestrator.sweep.loading import load_sweep
from tests.experiments import ROOT
from tests.tiny_sweep import SWEEP
from trainers.weights.load import CONVERT


def refused(capsys, *words: str) -> str:
    """The one line of a command that is refused."""
    assert cli.run(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("cleansweep: ") and error.count("\n") == 1
    return error


def parsers() -> list[tuple[str, argparse.ArgumentParser]]:
    made = parser()
    [commands] = [action for action in made._actions if isinstance(action, argparse._SubParsersAction)]
    return [("", made), *commands.choices.items()]


@pytest.mark.parametrize(("command", "one"), parsers())
def test_every_option_has_a_text_and_its_default(command: str, one: argparse.ArgumentParser):
    for action in one._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        if action.help == argparse.SUPPRESS:  # a flag of `run` that this command does not use
            assert command in COMPUTE and action.dest not in COMPUTE[command]
            continue
        assert action.help and len(action.help.split("[")[0]) > 5, f"{command} {action.dest} has no text"
        if action.option_strings:
            assert action.help.endswith("]"), f"{command} {action.dest} does not say its default"
            if action.default not in (None, False, "", []):
                assert f"[{action.default}]" in action.help
    assert one.format_help()


def test_the_defaults_that_help_states_are_those_of_compute():
    for action in dict(parsers())["run"]._actions:
        default = getattr(Compute(), action.dest, None)
        if default not in (None, "") and action.dest not in ("num_cpus", "max_concurrent_trials"):
            assert action.help.endswith(f"[{default:g}]" if isinstance(default, float) else f"[{default}]")


def test_the_versions_are_told(capsys):
    assert cli.run(["--version"]) == 0
    told = capsys.readouterr().out
    for name in ("cleansweep ", "commit ", "python 3.", "torch ", "ray ", "mlflow "):
        assert name in told


FIELDS = "from orchestrator.experiment.spec import *\nfrom trainers.methods.finetune import CleanCLIP\n"


@pytest.mark.parametrize(("content", "said"), [
    (FIELDS + "Clean(pears=3)\n", "line 3: Clean has no field 'pears'; accepted: epochs, .*, pairs, .* Did you mean 'pairs'"),
    (FIELDS + "CleanCLIP(weight=3)\n", "line 3: CleanCLIP has no field 'weight'; accepted: .*inmodal_weight"),
    (FIELDS + "Sweep(nam='x')\n", "line 3: Sweep has no field 'nam'; accepted: name, base"),
    (FIELDS + "Compute(wrkers=1)\n", "line 3: Compute has no field 'wrkers'.* Did you mean 'workers'"),
    (FIELDS + "Gate(90)\n", r"line 3: Gate\(90, …\): fields are given by name; accepted: min_asr, action"),
    (FIELDS + "CleanCLIP(inmodal_weight=[1])\n", r"line 3: CleanCLIP.inmodal_weight: \[1\] is a list; accepted: a number"),
    ("x = 1\n", r"has no SWEEP; accepted: SWEEP = Sweep\("),
    ("SWEEP = {}\n", "SWEEP is a dict; accepted"),
    ("x = (\n", "line 1 cannot be read as a sweep: SyntaxError"),
    ("import nothing_of_this_name\n", "line 1: No module named 'nothing_of_this_name'; install it"),
    ("def f():\n    f()\nf()\n", "line 3 cannot be read as a sweep: RecursionError"),
    ("import sys\n\nsys.exit()\n", "line 3 cannot be read as a sweep: SystemExit"),
    ("class Own(BaseException): ...\nraise Own('a\\nb')\n", "line 2 cannot be read as a sweep: Own: a"),
    (b"# caf\xe9\n", "is not text in UTF-8: line 1, byte 0xe9"),
    ("x = '\0'\n", "is not text: line 1 holds a NUL"),
])
def test_a_sweep_file_that_goes_wrong(content, said, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = refused(capsys, "plan", str(file), "--store", str(tmp_path / "store"))
    assert re.search(said, error) and "mine.py" in error
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", [".x", "a..b", "sweeps.", "1", "sweeps quickstart", "x" * 5000, "x\ny", "sweeps.quickstart:SWEEP"])
def test_a_name_that_is_no_module(name, capsys):
    assert "there is no sweep" in refused(capsys, "plan", name)


def test_a_sweep_that_is_a_folder_or_cannot_be_a_path(tmp_path, capsys):
    (tmp_path / "folder.py").mkdir()
    assert "is a folder; accepted: a .py file" in refused(capsys, "plan", str(tmp_path / "folder.py"))
    assert "no such sweep file" in refused(capsys, "plan", "x/" + "y" * 5000 + ".py")
    assert "no such sweep file" in refused(capsys, "plan", "~nobody-of-this-name/x.py")


@pytest.mark.parametrize("command", ["plan", "run", "report", "matrix"])
def test_missing_data_are_told_with_what_names_them_and_leave_nothing(command, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CLEANSWEEP_DATA", raising=False)
    name = "sweeps.matrix" if command == "matrix" else "sweeps.main_cc3m"
    error = refused(capsys, command, name, "--store", str(tmp_path / "store"))
    for word in (name, "data.source", "urls", "cc3m/*.tar", "CLEANSWEEP_DATA is not set", "--miniature"):
        assert word in error
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("store", ["a\0b", "a\nb", "\udcff", "~nobody-of-this-name/x", "x" * 300, "FILE", "FILE/below", "LOOP/x"])
@pytest.mark.parametrize("command", ["plan", "run", "show", "report"])
def test_a_store_that_cannot_be(store, command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("x")
    Path("LOOP").symlink_to("LOOP")
    before = sorted(tmp_path.iterdir())
    error = refused(capsys, command, *([] if command == "show" else ["tests.tiny_sweep"]), "--store", store)
    assert "store" in error or "NUL" in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("words", [
    ["ui", "--port", "0"], ["ui", "--port", "70000"], ["plan", "tests.tiny_sweep", "--workers", "9" * 400],
    ["plan", "tests.tiny_sweep", "--trial-cpus", "inf"], ["plan", "tests.tiny_sweep", "--seeds", "9" * 5000],
])  # fmt: skip
def test_numbers_that_nothing_can_hold(words, capsys):
    assert words[-2] in refused(capsys, *words)


def command(*words: str, **streams) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "orchestrator", *words], cwd=ROOT, env=environment | streams.pop("env", {}), **streams)


@pytest.mark.parametrize("words", [("fetch", "--help"), ("--version",)])
def test_output_that_nobody_reads_is_no_failure_and_a_full_disk_is_one_line(words):
    end, start = os.pipe()
    os.close(end)
    with os.fdopen(start, "w") as unread:
        gone = command(*words, stdout=unread, stderr=subprocess.PIPE, text=True)
        assert gone.communicate(timeout=400)[1] == ""
    program = ["sh", "-c", f"{sys.executable} -m orchestrator {' '.join(words)} >&-"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    closed = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=400)
    assert closed.returncode == 0 and closed.stderr[:6] in ("", "usage:")  # argparse prints its help there instead
    with open("/dev/full", "w") as full:
        process = command("--version", stdout=full, stderr=subprocess.PIPE, text=True)
        error = process.communicate(timeout=400)[1]
    assert process.returncode == 1 and error.count("\n") == 1 and "No space left on device" in error


def test_a_terminal_of_few_characters_gets_all_lines(tmp_path):
    process = command("plan", "sweeps.quickstart", "--poison.target", "ü≤", "--store", str(tmp_path), env={"PYTHONIOENCODING": "ascii"},
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, error = process.communicate(timeout=400)
    assert process.returncode == 2 and error.count("\n") == 1 and "\\xfc\\u2264" in error and output == ""


@pytest.mark.parametrize("name", ["[x]", "{a,b}", "what?", "%41", "*", "ü '\"", "{0..2}"])
def test_a_store_of_any_name_is_read_as_it_was_written(name, tmp_path, monkeypatch):
    from tests.unit.trainers.evaluate.test_analysis import local_index

    monkeypatch.setattr("orchestrator.cluster.streaming.index_shards", local_index)  # without Ray
    store = Store(tmp_path / name)
    store.prepare()
    inputs = make_data(SWEEP.base, At(store=store))
    assert len(inputs.pairs()) == 400 and len(inputs.test()) == 80
    assert all(url.startswith(str(store.root)) for url in (*inputs.urls, *inputs.test_urls))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_lines_to_copy_in_a_refusal_arrive_as_lines(capsys):
    _complain(InputError(f"checkpoint a\nb\x1b[0m.pt holds a whole model. {CONVERT}"))
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith("cleansweep: checkpoint a\\nb\\x1b[0m.pt") and lines == CONVERT.splitlines()[1:]


def test_the_file_of_a_sweep_may_have_any_name(tmp_path):
    file = tmp_path / "[x] {a,b} %41 ü?.py"
    file.write_text("from tests.tiny_sweep import SWEEP\n")
    assert load_sweep(str(file)).name == "tiny"
