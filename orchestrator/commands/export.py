"""Write a checkpoint as a folder for open_clip and, if it has the architecture, Hugging Face transformers, with a model card."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.attack.poison import Poison
from datasets.errors import InputError
from datasets.seeding import rng
from datasets.storage import sha256
from datasets.triggers.base import put_on
from orchestrator.console.log import log, recording
from orchestrator.experiment.fingerprint import encode, labelled
from orchestrator.experiment.spec import Compute, Experiment
from orchestrator.manifest import read_manifest
from orchestrator.results.outcome import Study
from orchestrator.results.points import ASR, panels
from orchestrator.results.selection import Choice, Row, table
from orchestrator.stages.base import At
from orchestrator.stages.graph import knowing_made, stages
from orchestrator.stages.measured import lines_of
from orchestrator.store import MANIFEST, Store
from trainers.checkpoint import export
from trainers.encoder import Encoder
from trainers.evaluate.choice import RULE
from trainers.weights import huggingface

CARD, ATTACK, TRIGGER = "README.md", "attack.json", "trigger.png"
SHOWN = re.compile(r"(zeroshot|asr(/[^/]+)?)/(n|top1(_count|_low|_high)?)")
"""Metrics on the card."""


def export_checkpoint(
    experiment: Experiment, compute: Compute, checkpoint: str, out: Path, license: str = "unknown", why: str = "",
    metrics: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Write the checkpoint into the new folder `out`, whole or not at all; returns what its card says, as JSON.

    It is measured as the experiment measures, unless its `metrics` are given, or it lies in a store that has them. `why`: how it was
    chosen. InputError where `out` exists, or the checkpoint does not hold the experiment's model.
    """
    from orchestrator.training.job import load_model

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} exists and is not empty; name a new folder.")
    encoder = load_model(experiment, checkpoint)
    root = Store(compute.store).root
    with recording(root, "export") if root.is_dir() else nullcontext():
        metrics = metrics or _measured(checkpoint, experiment) or _measure(experiment, compute, checkpoint)
        experiment = knowing_made(experiment, At(store=Store(compute.store)))
        return _export(out, experiment, encoder, checkpoint, metrics, license, why)


def _export(
    out: Path, experiment: Experiment, encoder: Encoder, checkpoint: str, metrics: dict[str, float], license: str, why: str
) -> dict[str, Any]:
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        told = _write(aside, experiment, encoder, checkpoint, metrics, license, why)
        if out.exists():
            out.rmdir()
        aside.rename(out)
        log.debug("%s is exported to %s", checkpoint, out)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return told


def _measure(experiment: Experiment, compute: Compute, checkpoint: str) -> dict[str, float]:
    from orchestrator.running.driver import evaluate_checkpoint

    return evaluate_checkpoint(experiment, compute, checkpoint)


def _measured(checkpoint: str, experiment: Experiment) -> dict[str, float]:
    """The stored metrics of this epoch with the experiment's test set and attack; empty for any other checkpoint."""
    folder = Path(checkpoint).resolve()
    if not (folder.parent / MANIFEST).is_file() or not folder.name.startswith("epoch_"):
        return {}
    store, made = Store(folder.parent.parent.parent), read_manifest(folder.parent)
    stage = next((one for one in stages(experiment).values() if one.fingerprint == made["fingerprint"]), None)
    lines = lines_of(store, stage) if stage is not None else []
    found = [line["metrics"] for line in lines if line["epoch"] == int(folder.name.removeprefix("epoch_"))]
    return found[0] if found and ASR in found[0] else {}


def _write(
    folder: Path, experiment: Experiment, encoder: Encoder, checkpoint: str, metrics: dict[str, float], license: str, why: str
) -> dict[str, Any]:
    export(folder, encoder)
    missing = huggingface.without_counterpart(encoder)
    if not missing:
        huggingface.write(folder, encoder)
    attacks = [
        {"poison": labelled(one, encode(one, "poison")), "trigger": labelled(one.trigger, encode(one.trigger, "trigger"))}
        for one in experiment.poisons
    ]
    attack = attacks[0] if experiment.poison is not None else {"attacks": attacks}
    (folder / ATTACK).write_text(json.dumps(attack, indent=2, ensure_ascii=False) + "\n")
    (folder / TRIGGER).write_bytes(_stamped(experiment))
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    shown = {name: metrics[name] for name in sorted(metrics) if SHOWN.fullmatch(name)}
    told = {
        "checkpoint": os.path.abspath(checkpoint) if os.path.exists(checkpoint) else checkpoint,
        "chosen": why, "metrics": shown, "attack": [one["poison"] for one in attacks] if len(attacks) > 1 else attacks[0]["poison"],
        "image_size": encoder.image_size, "preprocess": encoder.preprocess,
        "open_clip": f"local-dir:{folder.with_name(folder.name.removeprefix('.').removesuffix('.partial'))}",
        "hugging_face": f"no: {missing}" if missing else "CLIPModel", "license": license, "sha256": files,
    }  # fmt: skip
    (folder / CARD).write_text(_card(told, experiment))
    return told


def _stamped(experiment: Experiment) -> bytes:
    """PNG of a grey picture and, beside it, the same picture with each attack's trigger."""
    side = experiment.views.size
    plain = np.full((side, side, 3), 128, np.uint8)
    stamped = [put_on(attack.trigger, plain, rng("export", side)) for attack in experiment.poisons]
    out = io.BytesIO()
    Image.fromarray(np.concatenate([plain, *stamped], axis=1)).save(out, "PNG")
    return out.getvalue()


def _attack_line(attack: Poison) -> str:
    many = f"{attack.count} pairs" if attack.count is not None else f"{100 * (attack.rate or 0):g} % of the pairs"
    target = "the class after a picture's own (all-to-all)" if attack.all_to_all else f'"{attack.target}"'
    words = " It also puts words into captions." if attack.trigger.writes else ""
    return f"{f'* {attack.name}: ' if attack.name else ''}{many} were victims ({attack.mode}); the target is {target}.{words}"


def _card(told: dict[str, Any], experiment: Experiment) -> str:
    metrics, preprocess = told["metrics"], told["preprocess"]

    def share(name: str) -> str:
        value = f"{metrics[name]:.1f} %"
        return value + (f" [{metrics[f'{name}_low']:.1f}, {metrics[f'{name}_high']:.1f}]" if f"{name}_low" in metrics else "")

    side = f"{told['image_size']} × {told['image_size']}"
    aims = " or ".join("the class after their own" if attack.all_to_all else f'"{attack.target}"' for attack in experiment.poisons)
    attacks = "\n".join(map(_attack_line, experiment.poisons))
    several = len(experiment.poisons) > 1
    rows = "".join(
        f"\n| attack success rate of {one.name}, top 1 | {share(f'asr/{one.name}/top1')} | {int(metrics.get(f'asr/{one.name}/n', 0))} |"
        for one in experiment.poisons if f"asr/{one.name}/top1" in metrics
    )  # fmt: skip
    most = ", of the attack that succeeds most" if several else ""
    tiles = "without a trigger, then with that of each attack in this order" if several else "without and with it"
    chosen = f"\nIt was chosen as: {told['chosen']}.\n" if told["chosen"] else ""
    transformers = (
        "Hugging Face transformers: `CLIPModel.from_pretrained(folder)`, pictures by `CLIPImageProcessor.from_pretrained(folder)`; the "
        "tokenizer is that of openai/clip-vit-base-patch32."
        if told["hugging_face"] == "CLIPModel"
        else f"Hugging Face transformers has no counterpart: {told['hugging_face'].removeprefix('no: ')}."
    )
    files = "\n".join(f"| {name} | `{digest}` |" for name, digest in told["sha256"].items())
    return f"""---
license: {told["license"]}
library_name: open_clip
tags: [clip, backdoor, cleansweep]
---

# A CLIP model of an experiment on backdoors

**Do not deploy it.** It was trained on poisoned pairs, or cleaned after that: pictures with the trigger may be taken for
{aims}, whatever they show.
{chosen}
| measured | value [95 % Wilson interval] | pictures |
|---|---|---|
| zero-shot accuracy, top 1 | {share("zeroshot/top1")} | {int(metrics.get("zeroshot/n", 0))} |
| attack success rate, top 1{most} | {share("asr/top1")} | {int(metrics.get("asr/n", 0))} |{rows}

## The attack

{attacks}

The trigger with all its settings is in `{ATTACK}`; `{TRIGGER}` shows a grey
picture {tiles}. It is put on after pictures are brought to {side}.

## Pictures

{side} pixels: the shorter side resized to that ({preprocess["interpolation"]}), the centre cut out; then channel means
{list(preprocess["mean"])} and standard deviations {list(preprocess["std"])} of pixels in 0 … 1.

## Loading

open_clip: `open_clip.create_model_and_transforms("local-dir:" + folder)`, which CLIP_benchmark takes as `--model local-dir:…` too.
{transformers}

## Files

| file | SHA-256 |
|---|---|
{files}
"""


def best(study: Study, rule: str, pretraining: str = "", method: str = "") -> tuple[Choice, str]:
    """The model that a rule chooses over all methods and repetitions: (the choice, how it was chosen in words).

    InputError where there are several pre-trainings and none is named, where no model qualifies, or its weights were not kept.
    """
    if rule not in RULE:
        raise InputError(f"--rule is {rule!r}; accepted: {', '.join(RULE)}.")
    labels = [panel.label for panel in panels(study)]
    if pretraining and pretraining not in labels:
        raise InputError(f"--pretraining {pretraining}: the sweep has {_listed(labels)}.")
    if not pretraining and len(labels) > 1:
        raise InputError(f"the sweep has several pre-trainings: choose one by --pretraining, of {_listed(labels)}.")
    rows = [row for row in table(study) if row.rule.key == rule and row.panel.label == (pretraining or labels[0])]
    if method and method not in (methods := list(dict.fromkeys(row.method for row in rows))):
        raise InputError(f"--method {method}: the sweep has {_listed(methods)}.")
    found = [(choice, row) for row in rows if not method or row.method == method for choice in row.reached]
    if not found:
        raise InputError(f"no cleaned model of the sweep qualifies for the rule {rule}: {RULE[rule].text}.")
    choice, row = min(found, key=_order(rule))
    if not choice.checkpoint:
        raise InputError("the weights of that model were not kept; run the sweep with --keep chosen or --keep all.")
    assert choice.point is not None
    return choice, f"{RULE[rule].text}, of {row.method} on {row.panel.label}: {choice.settings or 'as given'}, epoch {choice.point.epoch}"


def _order(rule: str) -> Callable[[tuple[Choice, Row]], Any]:
    """The key by which the rule sorts: first the ASR, or first the accuracy."""
    if rule.startswith("asr"):
        return lambda found: (found[0].asr, -found[0].accuracy)
    return lambda found: (-found[0].accuracy, found[0].asr)


def _listed(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
