"""A matrix compiles to one sweep a defence over shared pre-trainings; what does not fit is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datasets.errors import InputError
from orchestrator.experiment.check import check_methods
from orchestrator.experiment.matrix import NONE, Core, Defence, Matrix, metric_name
from orchestrator.stages.graph import stages
from orchestrator.sweep.matrix import load_matrix, plans
from orchestrator.sweep.plan import make_plan
from sweeps.matrix import MINIATURE
from sweeps.slides import SWEEP as SLIDES
from tests.tiny_matrix import MATRIX
from tests.tiny_sweep import BASE
from trainers.methods.finetune import CleanCLIP


def trained(defence: str, matrix: Matrix = MATRIX) -> list[str]:
    return [stages(experiment)["pretrain"].fingerprint for _, experiment in make_plan(matrix.sweep(defence)).upstream]


def test_it_is_one_sweep_a_defence_on_the_same_models():
    made = plans(MATRIX)
    assert list(made) == [NONE, "MMCL+SSL", "CleanCLIP"]
    assert made[NONE].sweep.base.clean is None and made["MMCL+SSL"].sweep.base.clean is None
    assert trained("CleanCLIP") == trained(NONE) and not set(trained("MMCL+SSL")) & set(trained(NONE))
    assert len(made["CleanCLIP"].grid or ()) == 2 * len(trained(NONE))
    assert made["MMCL+SSL"].sweep.gate.min_asr == 0, "where such a defence works, the attack does not take"


def test_the_core_has_more_seeds_and_so_has_the_clean_model_there():
    assert MATRIX.models("CleanCLIP") == [("patch", 0), ("patch", 1), ("blended", 0), ("clean model", 0), ("clean model", 1)]
    assert MATRIX.models("MMCL+SSL") == [("patch", 0), ("blended", 0), ("clean model", 0)]
    assert set(MATRIX.models("CleanCLIP")) <= set(MATRIX.models(NONE))


def test_a_poisoned_model_is_that_of_an_ordinary_sweep_and_the_clean_one_knows_no_attack():
    alone = replace(MATRIX.base, clean=None)
    assert stages(alone)["pretrain"].fingerprint == trained(NONE)[0]
    fewer = replace(MATRIX, attacks={row: attack for row, attack in MATRIX.attacks.items() if row != "blended"})
    assert trained(NONE, fewer)[-1] == trained(NONE)[-1], "another attack trains no clean model anew"
    (clean,) = {experiment.poisons for _, experiment in make_plan(MATRIX.sweep(NONE)).upstream if not experiment.poison}
    assert [(one.name, one.count) for one in clean] == [("patch", 0), ("blended", 0)]


def test_a_model_whose_attack_did_not_take_is_defended_only_where_the_gate_warns():
    taken = [("patch", 1)]
    stopping = replace(MATRIX, gate=replace(MATRIX.gate, action="stop"))
    assert stopping.narrowed("CleanCLIP", taken) == [("patch", 1), ("clean model", 0), ("clean model", 1)]
    assert MATRIX.narrowed("CleanCLIP", taken) == MATRIX.models("CleanCLIP")


def test_overrides_reach_the_base_and_what_defences_put_there():
    matrix = load_matrix("tests/tiny_matrix.py", {"pretrain.epochs": "3", "clean.epochs": "2", "clean.method.inmodal_weight": "4"})
    sweep = matrix.sweep("CleanCLIP")
    assert (sweep.base.training.epochs, sweep.base.clean.epochs, sweep.base.clean.method.inmodal_weight) == (3, 2, 4.0)  # type: ignore[union-attr]
    assert load_matrix("tests/tiny_matrix.py", seeds=[4, 5]).models(NONE)[:2] == [("patch", 4), ("patch", 5)]


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [("poison.count", "3", "rows of its own"), ("pretrain.seed", "3", "--seeds"), ("clean.lr", "1", "the defence CleanCLIP sets it"),
     ("pretrain.objective", "x", "the defence MMCL\\+SSL sets it"), ("clean.lrr", "1", "Did you mean")],
)  # fmt: skip
def test_an_override_that_does_not_fit_is_told(path: str, text: str, said: str):
    with pytest.raises(InputError, match=said):
        load_matrix("tests/tiny_matrix.py", {path: text})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attacks": {"clean": None}}, "no attack"),
        ({"attacks": {"a": BASE.poison, "b": None, "c": None}}, "one clean model"),
        ({"attacks": {"a b": BASE.poison, "a-b": BASE.poison}}, "two rows are called 'a-b'"),
        ({"attacks": {"a": CleanCLIP()}}, "accepted: a Poison"),
        ({"defences": {"none": Defence(changes={"clean.lr": 1.0})}}, "leave it out"),
        ({"defences": {"x": Defence()}}, "changes nothing"),
        ({"defences": {"x": Defence(changes={"evaluate": BASE.evaluate})}}, "the same for all defences"),
        *(({"defences": {"x": Defence(changes={path: 1})}}, f"changes {path}, which is the same for all")
          for path in ("poison.count", "data.subset", "evaluate.data", "evaluate.seed", "pretrain.seed")),
        ({"defences": {"x" * 81: Defence(changes={"clean.lr": 1.0})}}, "one line of up to 80 characters"),
        ({"defences": {"x": CleanCLIP()}}, "accepted: a Defence"),
        ({"core": Core(attacks=("patch",), defences=("x",), seeds=(1,))}, "Matrix.core.defences has 'x'"),
        ({"seeds": ()}, "Matrix.seeds"),
        ({"oracle": "blind"}, "Matrix.oracle is 'blind'"),
        ({"name": "a/b"}, "Matrix.name"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(fields, said: str):
    with pytest.raises(InputError, match=said):
        replace(MATRIX, **({"core": None} | fields))


def test_a_change_that_does_not_fit_names_the_defence():
    with pytest.raises(InputError, match=r"defences\['x'\].*Did you mean"):
        replace(MATRIX, core=None, defences={"x": Defence(changes={"clean.lrr": 1.0})}).sweep("x")
    with pytest.raises(InputError, match="base.clean is not set"):
        replace(MATRIX, core=None, base=replace(MATRIX.base, clean=None)).sweep("CleanCLIP")
    with pytest.raises(InputError, match="a list of values"):
        Defence(space={"clean.lr": 1.0})


def test_the_slides_methods_fit_their_numbers_of_pairs():
    for _, experiment in make_plan(SLIDES).upstream:
        check_methods(experiment, experiment.data.subset or 2_300_000)


def test_the_shipped_matrix_is_large_enough_and_tunes_all_defences_alike():
    assert len([attack for attack in MINIATURE.attacks.values() if attack]) >= 6 and len(MINIATURE.columns) >= 9
    assert {defence.trials for defence in MINIATURE.defences.values()} == {3}
    assert MINIATURE.clean_row and MINIATURE.core and len(MINIATURE.core.seeds) == 3
    for name in (NONE, *MINIATURE.defences):
        assert make_plan(MINIATURE.sweep(name)).upstream
    full = load_matrix("sweeps.matrix")
    for name in ("SafeCLIP", "RoCLIP"):
        for experiment in full.experiments(name, ("patch", 0)):
            check_methods(experiment, 2_300_000)  # CC3M as it can be downloaded today
    left_out = {"SafeCLIP", "RoCLIP", "SLOF, then anew"}  # the docstring says why
    assert list(full.attacks) == list(MINIATURE.attacks)
    assert [name for name in full.defences if name not in left_out] == list(MINIATURE.defences) and left_out < set(full.defences)
    assert {defence.trials for defence in full.defences.values()} == {3}
    assert metric_name("warped (WaNet), λ") == "warped-WaNet"
