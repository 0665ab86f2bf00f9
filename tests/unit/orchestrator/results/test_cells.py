"""Result files: made of a study's points, checked against the schema that ships, refused by file and field."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest

from datasets.errors import InputError
from orchestrator.results.cells import Found, Repetition, cell_of, check_cell, read_cell, read_cells, schema, write_cell
from orchestrator.results.outcome import Study
from orchestrator.results.points import cleaned_points, mean_interval, start_of
from tests.unit.fake_cells import cell, many, reported
from tests.unit.fake_study import seeded_study
from trainers.evaluate.choice import RULE

FACTS = {key: cell("patch", "CleanCLIP")[key] for key in ("matrix", "attack", "defence", "model", "data")}


def runs_of(study: Study) -> list[Repetition]:
    """CleanCLIP on each of the study's MMCL models."""
    found = []
    for source in study.pretrains[::2]:
        trials = [one for one in study.trials if one.pretrain == source.fingerprint and one.name == "CleanCLIP"]
        told = [f"lr {trial.overrides['clean.lr']}" for trial in trials]
        found.append(Repetition(start=start_of(study, source.fingerprint), trials=trials, told=told))
    return found


def test_a_cell_holds_what_the_rules_choose_in_each_seed(tmp_path: Path):
    study = seeded_study(tmp_path)
    runs = runs_of(study)
    gates = [study.gates[run.start.stage.fingerprint] for run in runs if run.start]
    made = cell_of(Found(facts=FACTS, seeds=(0, 1, 2), runs=runs, gates=gates, clean=runs, rules=("asr_at_10pct_loss", "blind")))
    check_cell(made, "made")
    jsonschema.validate(json.loads(json.dumps(made)), schema())
    for kind, rule in (("oracle", "asr_at_10pct_loss"), ("blind", "blind")):
        best = [RULE[rule].choose([p for t in run.trials for p in cleaned_points(t)], run.start) for run in runs]
        told = made["measured"][kind]
        assert told["asr"]["values"] == [point.asr for point in best]
        mean, low, high = mean_interval([point.accuracy for point in best]) or (0, 0, 0)
        assert told["accuracy"]["mean"] == mean and told["accuracy"]["low"] == max(low, 0) and told["accuracy"]["high"] == min(high, 100)
        assert told["settings"][0].startswith("lr ") and f"epoch {best[0].epoch}" in told["settings"][0]
        assert told["clean_asr"] == told["asr"]
    assert made["gate"]["took"] == [True] * 3 and made["pictures"] == {"accuracy": 1000, "asr": 900}
    assert made["measured"]["oracle"]["asr"]["mean"] < made["measured"]["blind"]["asr"]["mean"]


def test_a_rule_without_a_model_and_a_seed_without_one_are_told(tmp_path: Path):
    runs = runs_of(seeded_study(tmp_path))
    empty = Repetition(start=runs[1].start)
    made = cell_of(Found(facts=FACTS, seeds=(0, 1), runs=[runs[0], empty], rules=("acc_at_asr_le_5", "blind")))
    assert made["measured"]["blind"]["accuracy"]["values"][1] is None and made["measured"]["blind"]["settings"][1] is None
    assert made["measured"]["blind"]["start_accuracy"]["values"][1] is not None
    assert made["measured"]["blind"]["accuracy"]["low"] is not None, "one seed: the interval over its pictures"
    assert cell_of(Found(facts=FACTS, seeds=(1,), runs=[empty], rules=("acc_at_asr_le_5", "blind")))["measured"] is None
    undefended = Repetition(start=runs[0].start, undefended=True)
    alone = cell_of(Found(facts=FACTS, seeds=(0,), runs=[undefended], rules=("acc_at_asr_le_5", "blind")))["measured"]
    assert alone["oracle"]["asr"] == alone["blind"]["asr"] == alone["blind"]["start_asr"]


def test_files_come_back_in_the_matrix_order(tmp_path: Path):
    for place, name in enumerate(("b", "a")):
        write_cell(cell("x / y", name), tmp_path, (0, place))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00-x-y--00-b.json", "00-x-y--01-a.json"]
    assert read_cells(tmp_path) == [cell("x / y", "b"), cell("x / y", "a")]
    for one in many(["a", "b", "c", "d"], ["p", "q", "r", "s"]):
        jsonschema.validate(one, schema())
        check_cell(one, "fake")


BROKEN = [
    (lambda c: c.update(version=2), "version"),
    (lambda c: c.update(schema="other"), "cleansweep-cell"),
    (lambda c: c.update(extra=1), "extra is no key"),
    (lambda c: c.pop("seeds"), "seeds is missing"),
    (lambda c: c["attack"].pop("target"), "attack.target is missing"),
    (lambda c: c["attack"].update(count=True), "attack.count is true"),
    (lambda c: c["attack"].update(name=""), "attack.name has 0 characters"),
    (lambda c: c["measured"]["oracle"]["asr"].update(mean="9"), "measured.oracle.asr.mean is \"9\"; accepted: a number"),
    (lambda c: c["measured"]["blind"]["accuracy"].update(mean=101), "measured.blind.accuracy.mean is 101; accepted: a number from 0"),
    (lambda c: c["measured"]["oracle"]["asr"].update(values=[1.0]), "measured.oracle.asr.values has 1 values"),
    (lambda c: c["measured"].pop("blind"), "measured.blind is missing"),
    (lambda c: c["gate"].update(took=[True]), "gate.took has 1 values"),
    (lambda c: c.update(reported=[{"accuracy": 1.0}]), r"reported\[0\].asr is missing"),
    (lambda c: c.update(measured=None, gate=None), "measured is null and reported is empty"),
    (lambda c: c["cost"].update(seconds=-1), "cost.seconds is -1"),
    (lambda c: c["cost"].update(seconds=10**400), "cost.seconds is 1000"),
    (lambda c: c["attack"].update(name="half \ud800"), "is no JSON: .*surrogates not allowed"),
]


@pytest.mark.parametrize(("change", "said"), BROKEN)
def test_what_does_not_fit_is_refused_with_file_and_field(change, said: str, tmp_path: Path):
    broken = copy.deepcopy(cell("patch", "CleanCLIP"))
    change(broken)
    (tmp_path / "theirs.json").write_text(json.dumps(broken))
    with pytest.raises(InputError, match=f"theirs.json.*{said}"):
        read_cells(tmp_path)


@pytest.mark.parametrize("text", ["", "[", "[]", "3", "null", '{"schema": NaN}', "[" * 100_000, "\ud800x".encode("utf-8", "surrogatepass")])
def test_what_is_no_cell_at_all_is_refused(text: str | bytes, tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match="x.json"):
        read_cell(path)


def test_a_folder_without_files_is_refused(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "no"):
        with pytest.raises(InputError, match=str(folder)):
            read_cells(folder)


def test_a_paper_s_figures_are_a_cell_without_a_measurement():
    check_cell(reported("patch", "ABD", None, 8.7, "A Paper"), "theirs")
