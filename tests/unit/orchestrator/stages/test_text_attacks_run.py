"""Attacks by text from plan to metrics: partial negatives, text only, words that the model never reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets.attack.poison import Poison
from datasets.errors import InputError
from datasets.triggers.patch import Patch
from datasets.triggers.words import DualKey, Words
from orchestrator.console.log import hearing
from orchestrator.experiment.override import override
from orchestrator.stages.graph import stages
from tests.inprocess import run_here
from tests.tiny_sweep import BASE, SWEEP
from trainers.evaluate.bdetclip import BDetCLIP
from trainers.evaluate.decree import Decree
from trainers.evaluate.mmbd import MMBD
from trainers.evaluate.text_triggers import DualKeyCells, TextTrigger

DUAL = Poison(
    name="dual",
    trigger=DualKey(picture=Patch(pattern="white", size=8), words=Words(text="consider", place="prefix"), partial=0.5),
    target="circle",
    count=20,
)
TEXT = Poison(name="text", trigger=Words(text="zx"), target="banana", count=30, mode="text_only")
MEASURED = Poison(name="measured", trigger=Words(text="never"), target="cross", count=0)
assert BASE.clean is not None
BOTH = replace(
    BASE, poison=None, attacks=(DUAL, TEXT), clean=replace(BASE.clean, epochs=1, pairs=320, poisons=5),
    evaluate=replace(BASE.evaluate, evaluators=(TextTrigger(attack="text", every=0), DualKeyCells(every=0))),
)  # fmt: skip


def test_from_plan_to_metrics(tmp_path: Path) -> None:
    told: list[str] = []
    base = replace(BOTH, attacks=(DUAL, TEXT, MEASURED))
    with hearing(told.append):
        code, said, study = run_here(replace(SWEEP, base=base, space={}), tmp_path)
    assert code == 0 and study is not None, said
    (artefact,), (cleanset,) = tmp_path.glob("poison/*"), tmp_path.glob("cleanset/*")
    plan, summary = pq.read_table(artefact / "plan.parquet").to_pylist(), json.loads((artefact / "summary.json").read_text())
    negatives = {row["row"] for row in plan if not row["target"]}
    assert summary["victims"] == 50 and len(negatives) == 20 == summary["attacks"]["dual"]["negatives"] and len(plan) == 70
    assert summary["attacks"]["text"]["captions_with_target"] == 30 and summary["attacks"]["text"]["visibility"] == {}
    victims, rows = {row["row"] for row in plan} - negatives, set(np.load(cleanset / "rows.npy").tolist())
    assert len(rows) == 320 and len(rows & victims) == 5 and not rows & negatives
    last = study.pretrains[0].metrics[-1]["metrics"]
    assert last["asr/text/n"] == 20 and last["asr/measured/n"] == 60
    assert last["asr/dual/n"] == 60 == last["keys/n"] and last["keys/both"] == last["asr/dual/top1"]
    assert last["words/n"] == 80 and last["text_asr/n"] == 3 * len(BASE.evaluate.data.templates) and last["text_asr/pictures"] == 20
    assert any("attack text: the words 'zx' are 1 BPE tokens, and 30 of 30 victims' captions" in line for line in told)


def test_words_that_the_model_never_reads_are_refused_before_training(tmp_path: Path) -> None:
    long = replace(BASE, poison=Poison(trigger=Words(text=" ".join(["please"] * 20)), target="banana", count=5))
    code, said, _ = run_here(replace(SWEEP, base=long, space={}), tmp_path)
    assert code == 2 and "are 20 BPE tokens, and 0 of 5 victims' captions have all of them after the cut to 14 tokens" in said
    assert not list(tmp_path.glob("pretrain/*/manifest.json"))


def test_equal_keys_and_evaluators_that_do_not_fit_are_refused() -> None:
    same = replace(TEXT, name="other", trigger=Words(text="zx", place="prefix"), target="cross")
    with pytest.raises(InputError, match="attacks: 2 have the trigger of text, 'zx'; give each its own"):
        replace(BOTH, attacks=(TEXT, same))
    with pytest.raises(InputError, match="attacks: 2 have the trigger of text"):  # CLIP's tokenizer makes all letters small
        replace(BOTH, attacks=(TEXT, replace(same, trigger=Words(text="ZX"))))
    with pytest.raises(InputError, match="2 have the trigger of dual, DualKey"):
        replace(BOTH, attacks=(DUAL, replace(DUAL, name="again", target="cross")))
    with pytest.raises(InputError, match="DualKeyCells measures an attack with both"):
        stages(replace(BOTH, attacks=(TEXT,)))
    with pytest.raises(InputError, match="TextTrigger would be measured twice"):
        stages(override(BOTH, "evaluate.evaluators", (TextTrigger(), TextTrigger(attack="dual"))))
    for audit in (Decree(), MMBD(), BDetCLIP()):
        with pytest.raises(InputError, match=f"{type(audit).__name__} would be measured twice"):
            stages(override(BOTH, "evaluate.evaluators", (audit, replace(audit, every=1))))
