"""`cleansweep audit`: from stored models to the page, with audits of the test's own and Ray taken out."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
from ray import tune

from datasets.errors import InputError
from orchestrator.commands import cli
from orchestrator.commands.audit import given_models, radii_of
from orchestrator.results.audits import read_audit
from orchestrator.running.audits import estimate
from orchestrator.stages.audited import audited
from orchestrator.stages.base import At, ensure
from orchestrator.stages.graph import trained_by
from orchestrator.store import Store
from orchestrator.sweep.plan import make_plan
from tests.inprocess import run_here, without_ray
from tests.tiny_sweep import SWEEP
from trainers.audit.attacks.fgsm import FGSM
from trainers.audit.attacks.fmn import FMN
from trainers.audit.attacks.ifgsm import IFGSM
from trainers.audit.attacks.pgd import PGD
from trainers.audit.attacks.square import Square
from trainers.audit.base import Audit, Findings, Subject
from trainers.audit.black_box import QueryCurve, Substitute
from trainers.audit.robustness import Robustness
from trainers.audit.tables import COLUMNS

SMALL = replace(SWEEP, space={}, base=replace(SWEEP.base, pretrain=replace(SWEEP.base.pretrain, epochs=1)))


@dataclass(frozen=True, kw_only=True)
class Brightness(Audit):
    """An audit that a user wrote: how bright the pictures are, and how bright the trigger makes them."""

    group = "of their own"
    wanted: float = 0.0

    def check(self, subject_classes: int, triggered: bool) -> None:
        if not triggered:
            raise InputError("Brightness needs a trigger on pictures.")

    def run(self, subject: Subject) -> Findings:
        if self.wanted > 1:
            raise InputError("Brightness.wanted is above 1; accepted: 0 to 1.")
        bright_N = subject.pictures.image_NHWC.mean((1, 2, 3)) / 255
        triggered = subject.pictures.triggered_NHWC
        assert triggered is not None
        failures = ("too dark.",) if bright_N.mean() < self.wanted else ()
        return Findings(
            {"bright/mean": float(bright_N.mean()), "bright/mean_low": 0.0, "bright/mean_high": 1.0, "bright/none": float("nan")},
            {"key": list(subject.pictures.keys), "bright": bright_N.tolist()},
            {"as they are": subject.pictures.image_NHWC[:3], "with the trigger": triggered[:3]},
            failures, notes=("<b>of brightness</b>",),
        )  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("audit") / "store"
    code, said, _ = run_here(SMALL, place)
    assert code == 0, said
    return place


@contextmanager
def named(*audits: Audit) -> Iterator[None]:
    """Within, the command knows these audits alone."""
    with small(), patch("orchestrator.commands.audit.named_audits", lambda names, asked: list(audits)):
        yield


@contextmanager
def small() -> Iterator[None]:
    """Within, the command audits the small sweep, whatever it is called."""
    with without_ray(), patch("orchestrator.sweep.loading.load_sweep", lambda *_: SMALL), patch(
        "orchestrator.commands.audit.loaded", lambda _: None
    ):
        yield


def run(store: Path, out: Path, *words: str) -> int:
    return cli.run(["audit", "small", "--store", str(store), "--out", str(out), "--n", "10", *words])


def test_one_audit_is_a_stage_like_any_other(store: Path):
    model = trained_by(make_plan(SMALL).upstream[0][1])
    at = At(store=Store(store))
    stage = audited(model, 1, Brightness(), 10)
    found = ensure(stage, at)
    assert sorted(found.manifest["files"]) == ["findings.json", "gallery.npz", "rows.parquet"]
    rows = pq.read_table(found.folder / "rows.parquet")
    assert len(rows) == 10 and rows["key"].to_pylist() == sorted(rows["key"].to_pylist())
    told = json.loads((found.folder / "findings.json").read_text())
    assert told["metrics"]["bright/none"] is None and 0 < told["metrics"]["bright/mean"] < 1
    with patch("orchestrator.stages.base.seal", side_effect=AssertionError("made again")):
        ensure(audited(model, 1, Brightness(), 10), at)
    others = [audited(model, 0, Brightness(), 10), audited(model, 1, Brightness(wanted=0.5), 10), audited(model, 1, Brightness(), 11)]
    assert len({one.fingerprint for one in [stage, *others]}) == 4
    fewer = pq.read_table(ensure(audited(model, 1, Brightness(), 4), at).folder / "rows.parquet")
    assert set(fewer["key"].to_pylist()) <= set(rows["key"].to_pylist()), "fewer pictures are some of the same"


@dataclass(frozen=True, kw_only=True)
class Unsorted(Audit):
    """Metrics in no order of the alphabet, and rows in which some columns of an attack have no value."""

    group = "of their own"
    shift: float = 0.0

    def run(self, subject: Subject) -> Findings:
        keys = list(subject.pictures.keys)
        none: dict[str, list[None]] = {name: [None] * len(keys) for name in ("defence", "eps", "y", "other")}
        return Findings({"own/z": 1.0, "own/b": 2.0 + self.shift, "own/k": 3.0}, {"key": keys, **none})


def test_metrics_keep_the_audits_order_and_columns_without_values_their_type(store: Path):
    model = trained_by(make_plan(SMALL).upstream[0][1])
    found = ensure(audited(model, 1, Unsorted(), 5), At(store=Store(store)))
    assert list(json.loads((found.folder / "findings.json").read_text())["metrics"]) == ["own/z", "own/b", "own/k"]
    assert list(read_audit("m", Unsorted(), found).metrics) == ["own/z", "own/b", "own/k"]
    types = {field.name: str(field.type) for field in pq.read_schema(found.folder / "rows.parquet")}
    assert types == {"key": "string", "defence": "string", "eps": "double", "y": "int64", "other": "null"}


def test_what_an_attack_left_right_is_read_back(store: Path):
    model, at = trained_by(make_plan(SMALL).upstream[0][1]), At(store=Store(store))
    eps, n = 8 / 255, 8
    for audit in (
        Robustness(attack=FGSM(eps=eps)), Robustness(attack=FMN(norm="linf", steps=5), radii=(eps / 2, eps)),
        QueryCurve(attack=Square(eps=eps, queries=20)), Substitute(eps=eps, rounds=1, epochs=1),
    ):  # fmt: skip
        found = ensure(audited(model, 1, audit, n), at)
        result, rows = read_audit("m", audit, found), pq.read_table(found.folder / "rows.parquet").to_pylist()
        assert rows and set(rows[0]) == set(COLUMNS)
        assert result.attacked == sum(row["clean_prediction"] == row["y"] for row in rows)
        for size, right in result.right.items():
            fooled = [row["prediction"] != row["y"] and row["linf"] <= size + 1e-6 for row in rows]
            assert right == {row["key"]: row["clean_prediction"] == row["y"] and not one for row, one in zip(rows, fooled)}
        assert len(result.right) == (2 if audit.label == "FMN" else 1)
        asked = [row["queries"] for row in rows if row["success"]] if isinstance(audit, QueryCurve) else []
        assert sorted(result.asked) == sorted(asked)


def test_audits_with_one_label_are_told_apart_everywhere_and_equal_ones_made_once(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    logged: list[str] = []
    settings: dict[str, set[str]] = {}

    class Tracker:
        def audited(self, study: str, stage: str, title: str, setting: str, values: dict[str, float], epoch: int) -> None:
            logged.extend(f"{stage} audit/{title}/{name}" for name in values)
            settings.setdefault(setting, set()).add(title)

    two = [Robustness(attack=IFGSM(eps=4 / 255, steps=steps)) for steps in (1, 2)]
    with named(*two, two[0], Unsorted(), Unsorted(shift=1.0)), patch("orchestrator.commands.audit.make_tracker", lambda *_: Tracker()):
        run(store, tmp_path, "--rule", "blind")
        said = capsys.readouterr()
        run(store, tmp_path, "--rule", "blind", "--dry")
    assert "8 audits: " in said.err and "IFGSM (steps=1), ε = 4/255 of mmcl" in said.err
    assert capsys.readouterr().out.count("IFGSM (steps=1), ε = 4/255: ") == 2, "one for each model"
    lines = list(csv.DictReader((tmp_path / "audit.csv").open()))
    places = [(line["model"], line["audit"], line["eps"], line["metric"]) for line in lines]
    assert len(set(places)) == len(places) and {place[1] for place in places} == {
        "IFGSM (steps=1)", "IFGSM (steps=2)", "Unsorted (shift=0.0)", "Unsorted (shift=1.0)",
    }  # fmt: skip
    assert len(settings) == 4 and all(len(titles) == 1 for titles in settings.values()), "one for each audit, whatever the model"
    assert len(set(logged)) == len(logged) and any("audit/IFGSM (steps=2), ε = 4/255/robust/accuracy" in name for name in logged)
    page = (tmp_path / "index.html").read_text()
    assert "IFGSM (steps=1)" in page and "Unsorted (shift=1.0)" in page


def test_before_and_after_on_one_page(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with named(Brightness()):
        assert run(store, tmp_path, "--rule", "blind") == 0
        assert f"audit: {tmp_path}/index.html" in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text()
    assert "before: MMCL" in page and "after: CleanCLIP" in page and page.count("<img") == 2
    assert "<b>of brightness</b>" not in page and "&lt;b&gt;of brightness" in page, "escaped"
    lines = list(csv.DictReader((tmp_path / "audit.csv").open()))
    assert len({line["model"] for line in lines}) == 2 and len(pq.read_table(lines[0]["rows"])) == 10


def test_a_check_that_fails_is_told_and_the_exit_code_is_1(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with named(Brightness(wanted=1.0)):
        assert run(store, tmp_path, "--rule", "blind") == 1
    assert "Not to be believed" in (tmp_path / "index.html").read_text() and "too dark." in capsys.readouterr().err


def test_an_audit_that_fails_stops_no_other(store: Path, tmp_path: Path):
    with named(Brightness(wanted=2.0), Brightness()):
        assert run(store, tmp_path, "--rule", "blind") == 1
    page = (tmp_path / "index.html").read_text()
    assert "Brightness.wanted is above 1" in page and "<td>mean</td>" in page


def test_dry_says_what_would_be_made_and_makes_nothing(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with named(Brightness(wanted=0.25)):
        assert run(store, tmp_path / "none", "--dry", "--all") == 0
    said = capsys.readouterr()
    assert said.out.count("to make  Brightness: ") == 2 and "2 to make" in said.err and not (tmp_path / "none").exists()


def test_a_checkpoint_of_any_cleaning_of_the_sweep_is_the_sweeps_own(store: Path):
    base = SMALL.base
    assert base.clean is not None
    varied = replace(SMALL, space={"clean.lr": tune.grid_search([base.clean.lr / 2, base.clean.lr])})
    cleaned = next((store / "clean").glob("*/epoch_0001"))
    (model,) = given_models(make_plan(varied), [str(cleaned)], Store(store))
    assert model.model.fingerprint == json.loads((cleaned.parent / "manifest.json").read_text())["fingerprint"]
    assert model.epoch == 1 and model.name.startswith("CleanCLIP, lr ")


def test_the_time_is_estimated_by_audits_of_the_same_name(store: Path):
    model = trained_by(make_plan(SMALL).upstream[0][1])
    at = At(store=Store(store))
    ensure(audited(model, 1, Robustness(attack=FGSM()), 3), at)
    other = audited(model, 1, Robustness(attack=PGD()), 3)
    assert estimate([("m", other)], at) == "1 audits: 0 stored, 1 to make (1 of kinds that were never timed here)."
    assert "about" in estimate([("m", audited(model, 1, Robustness(attack=FGSM()), 4))], at)


def test_a_checkpoint_by_its_path(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (checkpoint,) = (store / "pretrain").glob("*/epoch_0001")
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(next(checkpoint.glob("*.safetensors")).read_bytes())
    before = sorted(store.glob("*/*"))
    with named(Brightness()):
        assert run(store, tmp_path / "none", "--checkpoint", str(elsewhere), "--dry") == 0
    assert "to make  Brightness: " in capsys.readouterr().out
    assert sorted(path for path in store.glob("*/*") if path.parts[-2] != "logs") == [p for p in before if p.parts[-2] != "logs"]
    with named(Brightness()):
        assert run(store, tmp_path / "own", "--checkpoint", str(checkpoint)) == 0
        assert run(store, tmp_path / "theirs", "--checkpoint", str(elsewhere)) == 0
    own, theirs = (list(csv.DictReader((tmp_path / name / "audit.csv").open())) for name in ("own", "theirs"))
    assert [line["value"] for line in own] == [line["value"] for line in theirs] and theirs[0]["model"] == str(elsewhere)
    assert own[0]["model"].endswith("epoch 1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--n", "0"], "--n is 0"),
        (["--eps", "4"], "--eps 4"),
        (["--eps", "1/0"], "--eps 1/0"),
        (["--eps=-1/255"], "--eps -1/255"),
        (["--rule", "best"], "--rule is 'best'"),
        (["--only", "pdg"], "Did you mean 'pgd'?"),
        (["--checkpoint", "/nowhere/at/all"], "--checkpoint /nowhere/at/all does not exist; accepted: an epoch folder"),
        (["--checkpoint", "nonsense"], "--checkpoint nonsense does not exist; accepted: an epoch folder"),
    ],
)
def test_mistakes_are_one_sentence(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str):
    with small():
        assert run(store, tmp_path / "none", *words) == 2
    text = capsys.readouterr().err
    assert said in text and "Traceback" not in text and not (tmp_path / "none").exists()


def test_a_checkpoint_in_place_of_the_sweep_is_told(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (folder,) = (store / "pretrain").glob("*/epoch_0001")
    for place in (folder, next(folder.glob("*.safetensors"))):
        assert cli.run(["audit", str(place), "--store", str(store), "--out", str(tmp_path / "none")]) == 2
        said = capsys.readouterr().err
        assert f"{place} is a checkpoint, which does not tell its sweep: name the sweep, and beside it --checkpoint {place}," in said


def test_a_sweep_that_was_not_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with named(Brightness()):
        assert run(tmp_path / "empty", tmp_path / "none") == 2
    assert "holds nothing of the sweep tiny yet: run it first" in capsys.readouterr().err


def test_radii():
    assert radii_of("4/255, 1/255,0.5") == (1 / 255, 4 / 255, 0.5)


def test_what_a_killed_audit_left_is_made_again(store: Path):
    model, at = trained_by(make_plan(SMALL).upstream[0][1]), At(store=Store(store))
    stage = audited(model, 1, Brightness(), 9)
    whole = ensure(stage, at)
    before = {name: (whole.folder / name).read_bytes() for name in whole.manifest["files"]}
    work = Store(store).work(stage.kind, stage.fingerprint)
    whole.folder.rename(work)
    (work / "manifest.json").unlink()
    (work / "rows.parquet").write_bytes(b"half")
    (work / ".rows.parquet").write_bytes(b"half")
    again = ensure(stage, at)
    assert {name: (again.folder / name).read_bytes() for name in again.manifest["files"]} == before


SWEEP_FILE = """
from tests.unit.orchestrator.commands.test_audit import SMALL as SWEEP, Brightness
AUDITS = {audits}
"""


def test_a_sweeps_file_may_have_audits_of_its_own(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "mine.py"
    words = ["audit", str(file), "--store", str(store), "--n", "5", "--rule", "blind", "--out", str(tmp_path / "page")]
    with without_ray():
        file.write_text(SWEEP_FILE.format(audits="(Brightness(wanted=0.01),)"))
        assert cli.run([*words, "--only", "own"]) == 0
        assert "<td>mean</td>" in (tmp_path / "page" / "index.html").read_text()
        assert cli.run([*words, "--only", "attributes", "--dry"]) == 0, "the sweep's test pictures are of the procedural world"
        assert "to make  AttributePairs: " in capsys.readouterr().out
        assert cli.run([*words, "--only", "datasets", "--dry"]) == 2
        assert "it has one alone" in capsys.readouterr().err
        for audits, said in (("()", "has no AUDITS"), ("(3,)", "AUDITS holds 3"), ("7", "AUDITS holds 7")):
            file.write_text(SWEEP_FILE.format(audits=audits))
            assert cli.run([*words, "--only", "own"]) == 2
            assert said in capsys.readouterr().err
