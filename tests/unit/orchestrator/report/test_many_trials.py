"""A report of many trials: no row and no mark is lost, and nothing is worked out again for each trial."""

import csv
import io
import re
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.report import drawing
from orchestrator.report.drawing import LARGE, lighter
from orchestrator.report.page import html
from orchestrator.report.tables import points_csv, trials_table
from orchestrator.results import points
from orchestrator.results.names import settings, settings_among
from orchestrator.results.once import once, unchanging
from orchestrator.results.outcome import StageResult, Study, TrialResult
from orchestrator.results.points import panels

TRIALS, EPOCHS = 60, 3


def lines(number: int, epochs: int) -> list[dict]:
    """Lines of metrics, no two of which lie at one place."""
    return [
        {"epoch": e, "seconds": 1.0, "metrics": {"zeroshot/top1": 60.0 - 0.01 * number - e, "asr/top1": 90.0 / (1 + e + 0.1 * number)}}
        for e in range(epochs + 1)
    ]


@pytest.fixture
def study() -> Study:
    """60 cleanings of one pre-trained model: five learning rates × twelve seeds."""
    objective = {"class": "trainers.objectives.contrastive.MMCL", "label": "MMCL"}
    method = {"class": "trainers.methods.finetune.CleanCLIP", "label": "CleanCLIP"}
    config = {"pretrain": {"objective": objective}, "clean": {"method": method}}
    model = StageResult(stage="pretrain", name="mmcl", fingerprint="a" * 64, folder=Path("x"), config=config, metrics=lines(-5, 2))
    trials = [
        TrialResult(
            stage="clean", name="cleanclip", fingerprint=f"{number:064x}", folder=Path("x"), config=config, metrics=lines(number, EPOCHS),
            pretrain=model.fingerprint, overrides={"clean.lr": 10.0 ** -(number % 5), "clean.seed": number // 5},
        )
        for number in range(TRIALS)
    ]  # fmt: skip
    return Study(name="many", doc="", fingerprint="f" * 64, config={}, pretrains=[model], trials=trials)


def test_every_trial_and_epoch_is_on_the_page_and_in_the_table(study: Study):
    [page] = re.findall(r"<svg [^>]*aria-label=\"Accuracy against ASR.*?</svg>", html(study).replace("&nbsp;", " "))
    said = re.findall(r"<title>(CleanCLIP: lr \S+, seed \d+), epoch (\d)", page)
    assert len(said) == len(set(said)) == TRIALS * EPOCHS
    assert Counter(name for name, _ in said) == {f"CleanCLIP: {settings(trial, study.trials)}": EPOCHS for trial in study.trials}
    assert len(list(csv.DictReader(io.StringIO(points_csv(study))))) == TRIALS * (EPOCHS + 1) + 3
    assert [row[2] for row in trials_table(study)[1]] == [settings(trial, study.trials) for trial in study.trials]


def test_while_nothing_changes_the_page_is_the_same_and_points_are_found_once_a_stage(study: Study, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    whole = points.measured

    def counted(given: list[dict]) -> list:
        asked.append(id(given))
        return whole(given)

    monkeypatch.setattr(points, "measured", counted)
    plain = html(study)
    assert len(asked) > 5 * TRIALS
    asked.clear()
    with unchanging():
        assert html(study) == plain
        assert len(asked) == len(set(asked)) == TRIALS + 1
    study.trials[0].metrics[-1]["metrics"]["asr/top1"] = 1.25
    assert html(study) != plain, "outside nothing is kept"


def test_settings_among_many_are_those_of_each(study: Study):
    among = study.trials[:7]
    assert [settings_among(among)(trial) for trial in among] == [settings(trial, among) for trial in among]
    assert settings(study.trials[3], [study.trials[3]]) == "lr 0.001, seed 0", "alone: all its numbers"
    assert settings(study.trials[0], study.trials[::5]) == "seed 0" and settings(study.trials[1], study.trials[:5]) == "lr 0.1"
    assert panels(study)[0].label == "MMCL"


def test_what_is_kept_belongs_to_the_same_objects_in_the_same_block():
    calls: list[object] = []

    @once
    def seen(value: list[int], more: str = "") -> int:
        calls.append((tuple(value), more))
        return len(calls)

    one, other = [1], [1]
    assert [seen(one), seen(one)] == [1, 2]
    with unchanging():
        assert [seen(one), seen(one), seen(other), seen(one, "x"), seen(one, more="x"), seen(one, "x")] == [3, 3, 4, 5, 6, 5]
        with unchanging():
            assert seen(one) == 3
        assert seen(one) == 3
    assert seen(one) == 7


def test_a_large_picture_keeps_its_look_with_fewer_colours(monkeypatch: pytest.MonkeyPatch):
    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 255, 200 * 200 * 3).reshape(200, 200, 3).astype(np.uint8)
    ramp[50:60] = (208, 0, 0)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG", compress_level=0)
    content = buffer.getvalue()
    assert len(content) < LARGE and lighter(content) is content
    monkeypatch.setattr(drawing, "LARGE", 1000)
    small = lighter(content)
    after = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"))
    assert len(small) < len(content) / 2 and np.abs(after.astype(int) - ramp).mean() < 3
