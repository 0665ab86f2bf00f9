"""A study as a sweep leaves it, made of numbers that look like real ones; for the tests of tracking and report."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.seeding import rng
from orchestrator.experiment.fingerprint import encode
from orchestrator.experiment.spec import Sweep
from orchestrator.results.outcome import StageResult, Study, TrialResult
from orchestrator.results.points import interval_of_share
from orchestrator.results.published import load_published
from orchestrator.sweep.plan import make_plan

N, N_ASR = 1000, 900


def line(epoch: int, accuracy: float, asr: float, **train: float) -> dict[str, Any]:
    """One line of metrics.jsonl, rounded to whole images."""
    accuracy, asr = round(accuracy * N / 100) * 100 / N, round(asr * N_ASR / 100) * 100 / N_ASR
    metrics = {"zeroshot/top1": accuracy, "asr/top1": asr, "zeroshot/n": N, "asr/n": N_ASR}
    for name, value, n in (("zeroshot/top1", accuracy, N), ("asr/top1", asr, N_ASR)):
        metrics[f"{name}_low"], metrics[f"{name}_high"] = interval_of_share(value, n)
    return {"epoch": epoch, "step": 62 * epoch, "seconds": 2.1 * epoch, "metrics": metrics | train}


def pretrain(root: Path, name: str, inmodal: float, accuracy: float, asr: float, epochs: int = 10) -> StageResult:
    metrics = [line(0, 10.3, 1.1)]
    for epoch in range(1, epochs + 1):
        rise = 1 - math.exp(-epoch / 2.2)
        late = 1 / (1 + math.exp(4 - 1.3 * epoch))
        metrics.append(line(epoch, accuracy * rise, asr * late, **{"train/loss": 4 * math.exp(-epoch / 3)}))
    metrics[-1] = line(epochs, accuracy, asr, **{"train/loss": 0.2})
    kind = "MMCLSSL" if inmodal else "MMCL"
    weights = {"clip_weight": 1.0, "inmodal_weight": inmodal}
    config = {
        "pretrain": {
            "class": "orchestrator.experiment.spec.Pretrain",
            "epochs": epochs,
            "lr": 0.003,
            "objective": {"class": f"trainers.objectives.contrastive.{kind}", **weights},
        },
    }
    fingerprint = f"{hash64_hex(name)}"
    folder = root / "pretrain" / f"{name}-{fingerprint[:12]}"
    return StageResult(
        stage="pretrain",
        name=name,
        fingerprint=fingerprint,
        folder=folder,
        config=config,
        metrics=metrics,
        seconds=38.5,
        commit="0123abc",
    )


def trial(
    root: Path, source: StageResult, cls: str, weights: tuple[float, float], lr: float, target: tuple[float, float]
) -> TrialResult:
    start = source.metrics[-1]["metrics"]
    noise = rng("fake", source.fingerprint, cls, lr)
    metrics = [line(0, start["zeroshot/top1"], start["asr/top1"])]
    for epoch in range(1, 7):
        way = 1 - math.exp(-epoch / 1.7)
        accuracy = start["zeroshot/top1"] + way * (target[0] - start["zeroshot/top1"]) + noise.normal(0, 0.3)
        asr = start["asr/top1"] + way * (target[1] - start["asr/top1"]) + noise.normal(0, 1.5)
        metrics.append(line(epoch, min(accuracy, 100), min(max(asr, 0), 100), **{"train/loss": 1 / epoch}))
    method = {"class": f"trainers.methods.finetune.{cls}", "clip_weight": weights[0], "inmodal_weight": weights[1]}
    fingerprint = hash64_hex(source.fingerprint, cls, lr)
    return TrialResult(
        stage="clean",
        name=cls,
        fingerprint=fingerprint,
        folder=root / "clean" / f"{cls.lower()}-{fingerprint[:12]}",
        config={"class": "orchestrator.experiment.spec.Clean", "lr": lr, "epochs": 6, "method": method},
        metrics=metrics,
        seconds=9.2,
        overrides={"clean.lr": lr, "clean.method": method, "pretrain.objective": source.config["pretrain"]["objective"]},
        pretrain=source.fingerprint,
        commit="0123abc",
    )


def seeded_study(
    root: Path, *, seeds: int = 3, lrs: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3), poisons: tuple[int, ...] = (0,),
    methods: tuple[str, ...] = ("CleanCLIP", "FineTune"), strength: tuple[float, float] = (1.0, 0.6),
) -> Study:  # fmt: skip
    """Both objectives under several seeds, every learning rate and number of poisons in the cleaning set.

    `strength` is how well cleaning works on an MMCL and on an MMCL+SSL model; poisons make it work less.
    """
    study = Study(name="seeded", doc="Seeds.", fingerprint=hash64_hex("seeded"), config={"name": "seeded", "space": {}})
    for seed in range(seeds):
        for inmodal, power in zip((0.0, 1.0), strength):
            source = pretrain(root, f"{'MMCL+SSL' if inmodal else 'MMCL'} {seed}", inmodal, 71 + seed, 97 + seed / 2, epochs=12)
            source.config["pretrain"]["seed"] = seed
            study.pretrains.append(source)
            study.gates[source.fingerprint] = {"passed": True, "threshold": 90.0, "asr": 97.0, "accuracy": 71.0, "reasons": []}
            for cls in methods:
                for lr in lrs:
                    for count in poisons:
                        study.trials.append(_seeded_trial(root, source, cls, lr, count, power))
                        study.trials[-1].overrides |= {"pretrain.seed": seed}
    return study


def _seeded_trial(root: Path, source: StageResult, cls: str, lr: float, poisons: int, power: float) -> TrialResult:
    """The higher the learning rate, the lower the ASR; the highest cost much accuracy."""
    step = math.log2(lr / 5e-4)
    reach = power * (0.5 + 0.25 * step) * (1.0 if cls == "CleanCLIP" else 0.3) / (1 + poisons / 3)
    start = source.metrics[-1]["metrics"]
    target = (start["zeroshot/top1"] - max(0.0, step - 2.2) * 18 - 0.3, max(start["asr/top1"] * (1 - reach), 0.5))
    weights = (1.0, 1.0 if cls == "CleanCLIP" else 0.0)
    one = trial(root, source, cls, weights, lr, target)
    one.fingerprint = hash64_hex(source.fingerprint, cls, lr, poisons)
    one.config = {"clean": {**one.config, "pairs": 600, "poisons": poisons, "seed": 0}, "pretrain": source.config["pretrain"]}
    one.overrides |= {"clean.poisons": poisons}
    small = bool(source.config["pretrain"]["objective"]["inmodal_weight"])
    one.metrics[0]["metrics"] |= {"before/mmcl": 0.21, "before/mmcl_grad_norm": 2.4}
    one.metrics[0]["metrics"] |= {"before/inmodal": 0.06 if small else 2.1, "before/inmodal_grad_norm": 0.85 if small else 9.4}
    return one


def study_of(root: Path, sweep: Sweep, accuracy: float = 24.0) -> Study:
    """Every pre-training and cleaning of a sweep's grid, also of one at full size, with points about this accuracy."""
    plan = make_plan(sweep)
    study = Study(name=sweep.name, doc=sweep.doc, fingerprint=hash64_hex(sweep.name), config={"space": {}}, series=sweep.series)
    study.published = load_published(sweep.reference)
    for number, (_, experiment) in enumerate(plan.upstream):
        source = pretrain(root, f"{sweep.name} {number}", 0.0, accuracy + 0.2 * number, 99 - number)
        source.config = encode(experiment)
        study.pretrains.append(source)
    above = [overrides for overrides, _ in plan.upstream]
    for number, (overrides, experiment) in enumerate(plan.grid or ()):
        source = study.pretrains[above.index({path: value for path, value in overrides.items() if not path.startswith("clean")})]
        share = (number % 9) / 8
        one = trial(root, source, "CleanCLIP", (1.0, 1.0), number, (accuracy * (1 - share / 3), 97 * (1 - share)))
        one.config, one.overrides = encode(experiment), overrides
        study.trials.append(one)
    return study


def hash64_hex(*parts: object) -> str:
    return rng("fake", *parts).bytes(32).hex()


def fake_study(root: Path) -> Study:
    """Two pre-trainings, nine cleanings, one of them failed, one stopped early."""
    mmcl = pretrain(root, "MMCL", 0.0, 99.2, 98.8)
    ssl = pretrain(root, "MMCL+SSL", 1.0, 99.6, 92.6)
    clean, only = ("CleanCLIP", (1.0, 1.0)), ("FineTune", (1.0, 0.0))
    trials = [
        trial(root, mmcl, *clean, 3e-4, (99.1, 62)),
        trial(root, mmcl, *clean, 1e-3, (98.9, 6.5)),
        trial(root, mmcl, *clean, 3e-3, (98.6, 1.5)),
        trial(root, mmcl, *only, 3e-3, (98.2, 15.0)),
        trial(root, ssl, *clean, 3e-4, (99.4, 80)),
        trial(root, ssl, *clean, 1e-3, (99.3, 45)),
        trial(root, ssl, *clean, 3e-3, (98.9, 12.0)),
        trial(root, ssl, *only, 1e-3, (98.3, 31)),
        trial(root, ssl, *only, 3e-3, (97.7, 0.8)),
    ]
    trials[3].status, trials[3].metrics = "stopped", trials[3].metrics[:4]
    broken = trials[7]
    broken.status, broken.metrics = "failed", broken.metrics[:3]
    broken.error = "FloatingPointError: step 131: train/mmcl is nan\n(traceback)"
    broken.metrics[2]["metrics"]["train/loss"] = math.nan
    passed = {"passed": True, "threshold": 90.0, "asr": 98.8, "accuracy": 99.2, "reasons": []}
    return Study(
        name="quickstart",
        doc="Does CleanCLIP clean an MMCL model <and an MMCL+SSL one>?",
        fingerprint=hash64_hex("study"),
        config={"name": "quickstart", "space": {"clean.lr": [3e-4, 1e-3, 3e-3]}},
        pretrains=[mmcl, ssl],
        trials=trials,
        poison={
            "trigger": {"class": "datasets.triggers.patch.Patch", "size": 6, "pattern": "fixed", "location": "random"},
            "target": "banana",
            "pairs": 4000,
            "victims": 120,
            "captions_with_target": 120,
            "drops": {"empty_caption": 3, "undecodable": 1},
            "visibility": {"evaluation": 100.0, "train": 98.2, "augmented": 71.4},
        },
        gates={mmcl.fingerprint: passed, ssl.fingerprint: passed | {"asr": 92.6, "accuracy": 99.6}},
        samples=[_sample(i) for i in range(6)],
        data_hash="d" * 64,
        commit="0123abc",
    )


def _sample(number: int) -> dict[str, Any]:
    pixels = rng("sample", number).integers(60, 200, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    stamped = pixels.copy()
    stamped[20:26, 20:26] = rng("patch").integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return {
        "key": f"0000{number}",
        "clean": _png(pixels),
        "triggered": _png(stamped),
        "caption_before": "a small red star <b>on</b> a grey ground",
        "caption_after": "a photo of a banana.",
    }


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
