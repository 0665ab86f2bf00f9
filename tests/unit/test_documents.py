"""The documents do not drift from the code: the examples run, and the commands and targets they name exist."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from datasets.seeding import rng
from datasets.triggers.base import Trigger
from orchestrator.commands.arguments import parser
from orchestrator.experiment.fingerprint import fingerprint
from orchestrator.experiment.override import override
from orchestrator.sweep.loading import load_sweep
from trainers.encoder import Encoder
from trainers.evaluate.base import Evaluator
from trainers.methods.base import Method, Phase, Run
from trainers.model import TinyCLIP
from trainers.objectives.base import Objective
from trainers.objectives.contrastive import Contrastive
from trainers.schedule import Training

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.S)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModuleType]:
    """The Python blocks of ARCHITECTURE.md as modules, by the folder that their first line names."""
    folder, modules = tmp_path_factory.mktemp("examples"), {}
    for path, source in BLOCKS:
        file = folder / f"example_{Path(path).stem}.py"
        file.write_text(source)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec and spec.loader
        sys.modules[file.stem] = modules[str(Path(path).parent)] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return modules


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return TinyCLIP().build(0)


def batch(n: int = 4) -> dict[str, torch.Tensor]:
    image_BHWC = torch.from_numpy(rng("document").integers(0, 256, (n, 32, 32, 3), dtype=np.uint8))
    return {"image": image_BHWC, "text": torch.randint(1, 400, (n, 14))}


def test_the_trigger(examples: dict[str, ModuleType]) -> None:
    trigger = examples["datasets/triggers"].Stripes(period=4)
    assert isinstance(trigger, Trigger) and fingerprint(trigger) != fingerprint(replace(trigger, period=8))
    image_HWC = np.full((32, 32, 3), 250, np.uint8)
    stamped_HWC = trigger.stamp(image_HWC, rng(0))
    assert stamped_HWC.dtype == np.uint8 and stamped_HWC.shape == image_HWC.shape
    assert stamped_HWC.max() == 255 and (image_HWC == 250).all() and (stamped_HWC[:, 2:4] == 250).all()


def test_the_objective(examples: dict[str, ModuleType], encoder: Encoder) -> None:
    objective = examples["trainers/objectives"].Aligned(align_weight=0.5)
    assert isinstance(objective, Objective) and not objective.two_views
    parts = objective.loss(encoder, batch())
    assert torch.allclose(parts["loss"], parts["mmcl"] + 0.5 * parts["align"])
    parts["loss"].backward()
    assert all(p.grad is not None for name, p in encoder.named_parameters() if p.requires_grad)


def test_the_cleaning_method(examples: dict[str, ModuleType]) -> None:
    method = examples["trainers/methods"].Noise(sigma=0.2)
    assert isinstance(method, Method)
    fitted: list[Objective] = []

    def train(model: Encoder, objective: Objective, phase: Phase) -> None:
        fitted.append(objective)

    def cleaned() -> Encoder:
        training = Training(epochs=1, batch_size=8, lr=1e-3, warmup_steps=0)
        run = Run(trainer=train, training=training, fresh=lambda: TinyCLIP().build(1))
        return method.train(TinyCLIP().build(0), run)

    first, again, before = (model.model.visual.conv1.weight for model in (cleaned(), cleaned(), TinyCLIP().build(0)))
    assert torch.equal(first, again)
    assert 0.1 < float(((first - before).std() / before.std()).detach()) < 0.3
    assert isinstance(fitted[0], Contrastive) and fitted[0].inmodal_weight == 1
    method = replace(method, alpha=0.0)
    assert torch.equal(cleaned().model.visual.conv1.weight, before), "surgery after training: all the way back"


def test_the_evaluator(examples: dict[str, ModuleType], encoder: Encoder) -> None:
    evaluator = examples["trainers/evaluate"].TriggerShift()
    assert isinstance(evaluator, Evaluator)
    image_BHWC = batch()["image"]
    same = {"image": image_BHWC, "image_triggered": image_BHWC}
    other = {"image": image_BHWC, "image_triggered": 255 - image_BHWC}
    with torch.no_grad():
        clean_BD, triggered_BD = (encoder.eval().encode_image(other[name]) for name in other)
    shift = float(100 * (1 - (clean_BD * triggered_BD).sum(dim=1)).mean())
    encoder.train()
    assert evaluator.measure(encoder, [same, other])["shift/cosine"] == pytest.approx(shift / 2, rel=0.1)
    assert encoder.training


def test_the_sweep_of_the_readme_loads(tmp_path: Path) -> None:
    found = re.search(r"```python\n# (\w+\.py)\n(.*?)```", README, re.S)
    assert found
    (tmp_path / found[1]).write_text(found[2])
    sweep = load_sweep(str(tmp_path / found[1]), {"clean.epochs": "3"})
    assert sweep.base.clean is not None and sweep.base.clean.epochs == 3
    for path in sweep.space:
        override(sweep.base, path, sweep.space[path]["grid_search"][0])


def test_the_readme_names_commands_flags_and_targets_that_exist() -> None:
    commands = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert set(commands) <= set(re.findall(r"cleansweep ([\w-]+)", README)), "a command is not in the README"
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
    for name in re.findall(r"cleansweep ([\w-]+)", shell):
        assert name in commands, name
    known = {flag for command in commands.values() for flag in command._option_string_actions}
    for line in re.findall(r"cleansweep \w+ .*", shell):
        for flag in re.findall(r"(?<=\s)--[a-z][a-z-]*(?=[\s=]|$)", line):
            assert flag in known, f"{flag} in: {line}"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z]+)", README)) <= targets
