"""The claims: shown only where their criterion is met, and the reason is said where it is not."""

import json
from dataclasses import replace

import pytest

from orchestrator.commands.cli import run
from orchestrator.experiment.spec import Sweep
from orchestrator.report.claims_table import by_claim, claims_text, write_claims
from orchestrator.report.page import html
from orchestrator.report.rendering import render
from orchestrator.results.claims import as_json, judged
from orchestrator.store import Store
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.stored import load_study
from sweeps._study_claims import CLAIMS
from tests.tiny_sweep import SWEEP
from tests.unit.fake_study import seeded_study

TEXTS = {claim.label: claim.text for claim in CLAIMS}
WIDE = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3)


def claims(studies):
    return judged(CLAIMS, studies)


def of(study, claim):
    return next(verdict for verdict in claims([study]) if verdict.claim == claim)


def test_cleaning_without_loss_is_shown_with_n_seeds_and_interval(tmp_path):
    verdict = of(seeded_study(tmp_path), "a")
    assert (verdict.verdict, verdict.seeds, verdict.images) == ("shown", 3, 1000)
    assert verdict.low < verdict.estimate < verdict.high and -1 < verdict.estimate < 0
    assert verdict.where == "MMCL, cleaned with 600 pairs"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda study: study.gates[study.pretrains[0].fingerprint].update(passed=False), "gate was not passed by 1 of 3 models"),
        (lambda study: study.gates.clear(), "gate was not passed by 3 of 3 models"),
        (lambda study: setattr(study.trials[0], "status", "running"), "1 trials have not finished"),
        (lambda study: setattr(study.trials[0], "status", "failed"), "1 of 12 trials failed"),
        (lambda study: setattr(study.trials[0], "status", "stopped"), "1 of 12 trials were stopped by the scheduler"),
        (lambda study: setattr(study, "missing", 4), "4 trials have not finished"),
    ],
)
def test_what_stands_against_a_claim_is_said(tmp_path, change, why):
    study = seeded_study(tmp_path)
    change(study)
    verdict = of(study, "a")
    assert verdict.verdict == "not shown" and why in verdict.reason


@pytest.mark.parametrize(
    ("error", "failure"), [("OSError: no space", "disk_full"), ("training diverged at step 1: loss is nan", "diverged")]
)
def test_a_fourth_seed_without_a_point_stands_against_every_claim(tmp_path, error, failure):
    study = seeded_study(tmp_path, seeds=4, lrs=WIDE, poisons=(0, 5))
    for trial in study.trials:
        if trial.overrides["clean.lr"] == WIDE[-1]:
            for line in trial.metrics:
                line["metrics"]["asr/top1"] = 99.0  # no grid ends where it is best
    assert [of(study, claim).verdict for claim in "acd"] == ["shown"] * 3
    for trial in study.trials:
        if trial.overrides["pretrain.seed"] == 3:
            trial.status, trial.error, trial.failure, trial.metrics = "failed", error, failure, []
    for claim in "abcd":
        verdict = of(study, claim)
        assert verdict.verdict == "not shown" and "o point was measured in 1 of 4 seeds" in verdict.reason
    assert of(study, "a").seeds == 3


def test_a_diverged_trial_counts_as_tried_and_is_said_half_a_grid_of_them_does_not(tmp_path):
    study = seeded_study(tmp_path, lrs=WIDE, methods=("CleanCLIP",))
    mine = [t for t in study.trials if t.pretrain == study.pretrains[0].fingerprint]
    for trial in mine[:2]:
        trial.status, trial.error, trial.failure = "failed", "loss is nan", "diverged"
    verdict = of(study, "a")
    assert verdict.verdict == "shown" and verdict.reason.endswith("; 2 of 18 trials diverged and count as tried.")
    mine[2].status, mine[2].error = "failed", "FloatingPointError: diverged, not finite"
    assert "1 of 18 trials failed" in of(study, "a").reason, "words decide nothing"
    mine[2].failure = "diverged"
    assert of(study, "a").verdict == "not shown" and "half of the trials or more diverged in 1 of 3" in of(study, "a").reason.lower()


def test_an_end_of_the_grid_is_seen_whichever_sweep_is_named_first(tmp_path):
    """The second sweep holds the same trials and does not vary the rate."""
    one = seeded_study(tmp_path, lrs=WIDE[:4], strength=(1.0, 0.9))
    other = replace(one, trials=[replace(t, overrides={k: v for k, v in t.overrides.items() if k != "clean.lr"}) for t in one.trials])
    found = [next(v for v in claims(order) if v.claim == "b") for order in ([one, other], [other, one])]
    assert "end of its grid" in found[0].reason + found[0].seen and found[0].verdict == found[1].verdict == "not shown"
    assert found[0].reason == found[1].reason


def test_what_one_seed_alone_varied_makes_no_ends_in_the_others(tmp_path):
    study = seeded_study(tmp_path, lrs=WIDE, strength=(1.0, 0.9))
    before = of(study, "b")
    for trial in study.trials:
        trial.overrides["clean.weight_decay"] = 0.1
    for trial in [t for t in study.trials if t.overrides["pretrain.seed"] == 0]:
        heavy = replace(trial, fingerprint=trial.fingerprint[::-1], overrides={**trial.overrides, "clean.weight_decay": 0.5})
        heavy.metrics = [{**line, "metrics": {**line["metrics"], "asr/top1": 60.0}} for line in trial.metrics]
        study.trials.append(heavy)
    assert "weight_decay = 0.1, the only one" not in of(study, "b").reason and before.seeds == of(study, "b").seeds == 3


def test_seeds_of_the_cleaning_alone_are_not_seeds_of_the_attack(tmp_path):
    study = seeded_study(tmp_path, seeds=1)
    once = list(study.trials)
    for seed in (1, 2):
        study.trials += [
            replace(t, fingerprint=f"{seed}{t.fingerprint[1:]}", overrides={**t.overrides, "clean.seed": seed}) for t in once
        ]
    for trial in once:
        trial.overrides["clean.seed"] = 0
    for claim in "abc":
        assert "he 3 seeds are of 1 pre-training: of the cleaning" in of(study, claim).reason, claim


def test_seeds_of_the_evaluation_alone_are_not_seeds_of_the_attack(tmp_path):
    study = seeded_study(tmp_path)
    for stage in study.pretrains:
        stage.config["evaluate"] = {"seed": stage.config["pretrain"].pop("seed")}
    for trial in study.trials:
        trial.overrides["evaluate.seed"] = trial.overrides.pop("pretrain.seed")
    for claim in "abc":
        assert "he 3 seeds are of 1 pre-training" in of(study, claim).reason, claim


def test_two_seeds_or_a_loss_show_nothing(tmp_path):
    assert "Fewer than 3 seeds" in of(seeded_study(tmp_path, seeds=2), "a").reason
    worse = seeded_study(tmp_path, strength=(0.9, 0.6))  # ASR ≤ 5 % only where accuracy suffers
    verdict = of(worse, "a")
    assert verdict.verdict == "not shown" and "more than 1 point lost in 3 of 3 seeds" in verdict.reason.lower()
    assert "end of a grid (lr = 0.004" in verdict.seen


def test_a_grid_that_stops_early_does_not_show_that_mmcl_ssl_resists(tmp_path):
    short, wide = (seeded_study(tmp_path, lrs=lrs, strength=(1.0, 0.9)) for lrs in (WIDE[:4], WIDE))
    verdict = of(short, "b")
    assert verdict.verdict == "not shown" and verdict.estimate > 10
    assert verdict.reason == "Chosen at the end of its grid on MMCL+SSL (lr = 0.004, the largest tried (0.0005 … 0.004))."
    verdict = of(wide, "b")
    assert (verdict.verdict, verdict.seeds) == ("shown", 3) and verdict.low > 0
    assert verdict.where == "MMCL against MMCL+SSL, cleaned with 600 pairs"


def test_a_wider_grid_of_another_sweep_hides_no_end(tmp_path):
    short, wide = (seeded_study(tmp_path, lrs=lrs, strength=(1.0, 0.9)) for lrs in (WIDE[:4], WIDE))
    for trial in wide.trials:  # it decays weights more, and cleans worse
        trial.fingerprint = trial.fingerprint[::-1]
        trial.overrides["clean.weight_decay"] = 0.5
        for line in trial.metrics[1:]:
            line["metrics"]["asr/top1"] = 60.0
    verdict = next(v for v in claims([short, wide]) if v.claim == "b")
    assert verdict.verdict == "not shown" and "MMCL+SSL (lr = 0.004, the largest tried (0.0005 … 0.004)" in verdict.reason


def test_no_difference_is_not_shown_and_the_same_setting_is_told(tmp_path):
    verdict = of(seeded_study(tmp_path, lrs=WIDE, strength=(1.0, 1.0)), "b")
    assert verdict.verdict == "not shown" and "interval of the difference does not lie above 0" in verdict.reason
    told = of(seeded_study(tmp_path), "b")
    assert "No model with ASR ≤ 5 % on MMCL+SSL in 3 of 3 seeds" in told.reason and told.estimate is None
    assert "ASR after the same cleaning, MMCL+SSL model minus MMCL model: lr 0.0005: +1" in told.seen
    assert "higher in 3 of 3 seeds" in told.seen and "seed 0" not in told.seen


def test_never_wants_a_grid_that_does_not_end_where_the_asr_is_lowest(tmp_path):
    study = seeded_study(tmp_path)
    verdict = of(study, "c")
    assert verdict.verdict == "not shown" and "lowest ASR lies at the end of its grid (lr = 0.004" in verdict.reason
    for trial in study.trials:
        if trial.overrides["clean.lr"] == 4e-3:
            for line in trial.metrics:
                line["metrics"]["asr/top1"] = 99.0
    assert [v.verdict for v in claims([study]) if v.claim == "c"] == ["shown", "shown"]
    study.trials[-1].metrics[3]["metrics"]["asr/top1"] = 8.0
    again = [v for v in claims([study]) if v.claim == "c"]
    assert again[0].verdict == "shown" and "reached in 1 of 3 seeds" in again[1].reason and "% of the accuracy was kept" in again[1].seen


def test_five_poisons_need_a_control_which_may_come_from_another_sweep(tmp_path):
    whole = seeded_study(tmp_path, lrs=WIDE, poisons=(0, 5), methods=("CleanCLIP",))
    parts = [replace(whole, trials=[t for t in whole.trials if t.overrides["clean.poisons"] == count]) for count in (0, 5)]
    assert [of(part, "d").verdict for part in parts] == ["not tried", "not tried"]
    verdict = next(v for v in claims(parts) if v.claim == "d")
    assert (verdict.verdict, verdict.seeds) == ("shown", 3) and verdict.low > 5
    assert verdict.where == "MMCL, cleaned with 600 pairs of which 5 are poisons"
    assert "With no poison" in verdict.seen and "0.83 % of the cleaning set; the study's five were 0.005 %" in verdict.seen
    short = seeded_study(tmp_path, poisons=(0, 5), methods=("CleanCLIP",))
    assert "lowest ASR lies at the end of its grid" in of(short, "d").reason
    weak = seeded_study(tmp_path, lrs=WIDE, poisons=(0, 5), methods=("CleanCLIP",), strength=(0.3, 0.3))
    assert "even with no poison nothing is cleaned in 3 of 3 seeds" in of(weak, "d").reason.lower()


def test_a_model_that_two_sweeps_cleaned_is_one_seed(tmp_path):
    one = seeded_study(tmp_path)
    other = replace(one, trials=[replace(t, fingerprint=t.fingerprint[::-1], overrides={**t.overrides}) for t in one.trials])
    for trial in other.trials:
        del trial.overrides["pretrain.seed"]  # a sweep that does not vary the seed
    assert [v.seeds for v in claims([one, other])] == [v.seeds for v in claims([one])] == [3, 3, 3, 3, 0]


def test_the_table_is_on_a_page_that_asks_for_it_and_can_judge_and_others_read_not_tried(tmp_path):
    study = replace(seeded_study(tmp_path, seeds=1, lrs=(1e-3,), methods=("CleanCLIP",)), claims=CLAIMS)
    text = html(study)
    assert "The claims of the study" in text and text.count("not tried</b>") == 2 and text.count("not shown</b>") == 2
    assert "It needs fine-tuning with MMCL alone." in text
    unasked = html(replace(study, claims=()))
    assert "not shown" not in unasked and "claims" not in unasked.split("</style>")[1]
    other = replace(study, trials=[t for t in study.trials if t.config["clean"].update(method={"class": "a.Other"}) is None])
    assert {v.verdict for v in claims([other])} == {"not tried"} and "The claims of the study" not in html(other)


def test_a_sweep_asks_for_its_claims_and_is_still_the_same_sweep(tmp_path):
    asked, plain = (make_plan(replace(SWEEP, claims=wanted)) for wanted in (CLAIMS, ()))
    assert asked.fingerprint == plain.fingerprint
    assert [load_study(plan, Store(tmp_path)).claims for plan in (asked, plain)] == [CLAIMS, ()]
    assert not make_plan(Sweep(name="x", base=SWEEP.base)).sweep.claims


def test_claims_can_be_judged_by_sweeps_that_do_not_ask_for_them(tmp_path):
    study = seeded_study(tmp_path / "x")
    assert not study.claims
    found, page = write_claims(CLAIMS, [study], tmp_path / "reports")
    assert len(found) == 5 and "The claims of the study" in page.read_text()


def test_words_are_escaped_numbers_are_json_and_lines_fit(tmp_path):
    study = seeded_study(tmp_path / "x", seeds=1)
    study.name = "<script>"
    for trial in study.trials:
        trial.config["clean"]["pairs"] = "<u>"
    found, page = write_claims(CLAIMS, [study], tmp_path / "reports")
    assert "&lt;u&gt;" in render("claims_table", claims=by_claim(found))
    assert "<script" not in page.read_text() and "<u>" not in page.read_text()
    facts = json.loads((tmp_path / "reports" / "claims.json").read_text())
    assert {entry["claim"] for entry in facts["claims"]} == set(TEXTS) and all(entry["low"] is None for entry in as_json(found))
    assert all(len(line) <= 100 for line in claims_text(found).splitlines())


def test_an_empty_store_is_said(tmp_path, capsys):
    assert run(["claims", "sweeps.quickstart", "--store", str(tmp_path)]) == 2
    assert "holds nothing of quickstart yet: run a sweep first" in capsys.readouterr().err
