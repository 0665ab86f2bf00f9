"""What a rule of the report picks has a checkpoint, by construction."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.report.rendering import render
from orchestrator.report.tables import points_csv, summary, summary_text
from orchestrator.results.outcome import StageResult, Study, TrialResult
from orchestrator.results.points import points_of
from orchestrator.results.selection import table
from tests.unit.fake_study import fake_study, hash64_hex
from trainers.evaluate.choice import RULES, chosen_epochs, measured

PERCENT = st.integers(0, 60).map(lambda n: n / 3) | st.floats(0, 100) | st.sampled_from([4.999, 5.0, 10.0, 54.0, 59.0, 60.0])
MASK = st.floats(0, 1) | st.sampled_from([0.1, 0.2, float("nan")])
LINE = st.fixed_dictionaries({"zeroshot/top1": PERCENT | st.just(float("nan")), "asr/top1": PERCENT}, optional={"decree/mask": MASK})


def lines(metrics):
    return [{"epoch": epoch, "step": epoch, "seconds": 0.0, "metrics": found} for epoch, found in enumerate(metrics)]


@settings(max_examples=100, deadline=None)
@given(start=PERCENT, trials=st.lists(st.lists(LINE, min_size=1, max_size=8), min_size=1, max_size=4))
def test_whatever_a_rule_picks_over_trials_and_epochs_was_kept_in_its_trial(start, trials):
    """The checkpoints are dropped as a training goes on: what a later epoch supersedes may never be wanted again."""
    before = lines([{"zeroshot/top1": start, "asr/top1": 99.0}])
    uncleaned = measured(before)[-1]
    source = StageResult(stage="pretrain", name="p", fingerprint="p", folder=Path(), config={}, metrics=before)
    study = Study(name="s", doc="", fingerprint="s", config={}, pretrains=[source])
    kept: dict[str, set[int]] = {}
    for number, metrics in enumerate(trials):
        fingerprint, stays = hash64_hex(number), set()
        for epoch in range(1, len(metrics)):
            stays = (stays & chosen_epochs(lines(metrics[: epoch + 1]), uncleaned)) | {epoch}
            assert len(stays) <= len(RULES)
        kept[fingerprint] = stays
        study.trials.append(
            TrialResult(stage="clean", name="c", fingerprint=fingerprint, folder=Path(), config={}, metrics=lines(metrics), pretrain="p")
        )
    for row in table(study):
        for choice in row.reached:
            assert choice.point.epoch in kept[choice.point.trial], row.rule.key


def test_without_a_measured_pretraining_the_loss_counts_from_epoch_0():
    metrics = [{"zeroshot/top1": a, "asr/top1": b} for a, b in ((60, 99), (59.5, 20), (50, 1), (40, 0))]
    assert chosen_epochs(lines(metrics)) == {1, 2, 3}
    assert chosen_epochs([]) == set()


@pytest.mark.parametrize("kept", [True, False])
def test_tables_say_where_a_chosen_model_lies_or_how_to_get_it(tmp_path, kept):
    study = fake_study(tmp_path / "store")
    for stage in study.trials if kept else ():
        for point in points_of(stage):
            folder = stage.folder / f"epoch_{point.epoch:04d}"
            folder.mkdir(parents=True)
            (folder / "open_clip_model.safetensors").touch()
    paths = [choice.checkpoint for row in table(study) for choice in row.reached]
    assert len(paths) > 10 and all((tmp_path / "store" / path).is_dir() and path.startswith("clean/") for path in paths if kept)
    shown = [render("summary", summary=summary(study)), summary_text(study)]
    if kept:
        assert all(paths) and all(paths[0] in text and "--keep" not in text for text in shown)
        assert paths[0] in points_csv(study)
    else:
        assert not any(paths) and all("not kept" in text and "--keep all" in text.replace("\n  ", " ") for text in shown)
        assert all(line.endswith((",", "checkpoint")) for line in points_csv(study).splitlines())
