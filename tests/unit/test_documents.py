"""The documents do not drift from the code: examples run; commands, flags, files, names, metrics and links exist."""

from __future__ import annotations

import importlib.util
import json
import math
import pkgutil
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from datasets.evaluation.evalset import EvalSet
from datasets.feed.loader import triggered
from datasets.seeding import rng
from datasets.triggers.base import Trigger
from datasets.triggers.patch import Patch
from orchestrator.commands.arguments import parser
from orchestrator.experiment.fingerprint import fingerprint
from orchestrator.experiment.override import override
from orchestrator.results.claims import judged
from orchestrator.results.selection import best_metrics
from orchestrator.stages.base import At, ensure
from orchestrator.stages.graph import stages
from orchestrator.store import Store
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.plan import make_plan
from tests.parity.toys import ToyFeed, ToySet, resnet
from tests.tiny_sweep import SWEEP as TINY
from tests.unit.datasets.evaluation.test_retrieval import SET, case
from tests.unit.fake_study import seeded_study
from tests.unit.trainers.detect import test_scores
from tests.unit.trainers.evaluate import (
    test_analysis,
    test_bdetclip,
    test_linear_probe,
    test_mmbd,
    test_other_trigger,
    test_text_triggers,
)  # fmt: skip
from trainers.batch import to_device
from trainers.detect.base import Score, smallest
from trainers.detect.cosine import CosineByModel
from trainers.detect.lid import LID
from trainers.detect.scoring import Scorer
from trainers.encoder import Encoder
from trainers.evaluate.analysis import QUESTIONS, Analysis
from trainers.evaluate.another_set import ZeroShotOn
from trainers.evaluate.base import Evaluator
from trainers.evaluate.decree import Decree, Inversion
from trainers.evaluate.detection import Detection, Scores
from trainers.evaluate.mmbd import MMBD
from trainers.evaluate.other_trigger import OtherTrigger
from trainers.evaluate.probe import probe
from trainers.evaluate.retrieval import Retrieval
from trainers.evaluate.targeted import TargetedSuccess
from trainers.evaluate.text_triggers import DualKeyCells, TextTrigger
from trainers.evaluate.zeroshot import Aim, ZeroShotASR
from trainers.methods.base import Method, Phase, Run
from trainers.methods.roclip import RoCLIP
from trainers.methods.safeclip import SafeCLIP
from trainers.methods.ubt import UBT
from trainers.model import TinyCLIP
from trainers.objectives.adversarial import Adversarial
from trainers.objectives.apart import Apart
from trainers.objectives.base import Objective
from trainers.objectives.clustering import Clustering
from trainers.objectives.contrastive import MMCLSSL, Contrastive
from trainers.objectives.fare import NearOriginal
from trainers.objectives.lipschitz import Smooth
from trainers.objectives.roclip import Pooled
from trainers.objectives.safeclip import CrossView, Unimodal
from trainers.objectives.siglip import SigLIP
from trainers.objectives.tecoa import AgainstClasses
from trainers.objectives.trades import Trades
from trainers.objectives.triggered import Triggered
from trainers.objectives.unlearn import Unlearn
from trainers.schedule import Training

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n# (\S+)\n(.*?)```", EXTENDING, re.S)
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *PAGES, *sorted((ROOT / "docs" / "audit").glob("*.md"))]
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
NUMBER = {
    "<k>": r"\d+", "<x>": r"\d+", "<limit>": r"\d+", "<attack>": r"[\w.+-]+", "<trigger>": r"[\w.+-]+", "<set>": r"[\w.+-]+",
    "<name>": r"\w+", "<score>": r"\w+",
}  # fmt: skip
"""What a variable part of a metric's name stands for."""


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModuleType]:
    """The Python blocks of docs/extending.md as modules, by the folder that their first line names."""
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
    trigger = examples["datasets/triggers"].Bands(period=4)
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


def test_the_claim(examples: dict[str, ModuleType], tmp_path: Path) -> None:
    study = seeded_study(tmp_path)
    (shown,), (strict,) = (judged([examples["sweeps"].Halves(limit=limit)], [study]) for limit in (99.0, 0.1))
    assert (shown.verdict, shown.claim, strict.verdict) == ("shown", "Halves", "not shown")


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


def test_the_score(examples: dict[str, ModuleType]) -> None:
    score = examples["trainers/detect"].FromTheCaptions(m=20)
    assert isinstance(score, Score) and score.name == "fromthecaptions_m20" and Detection(scores=(score,)).scores == (score,)
    pairs = test_scores.features(60)
    whole, parts = (test_scores.scored((score,), pairs, batch)[score] for batch in (60, 7))
    chosen = pairs.take(smallest(pairs.keys, 20, 0, "reference"))
    expected = 1 - pairs.image("unit").numpy() @ chosen.text("unit").numpy().mean(axis=0)
    assert np.allclose(whole, expected, rtol=0, atol=1e-12) and np.allclose(whole, parts, rtol=0, atol=1e-12)


def test_the_stage(examples: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = examples["orchestrator/stages"]
    method = module.Rescaled(count=module.CaptionCount(lower_case=False))
    sweep = replace(TINY, name="rescaled", space={"clean.method": {"grid_search": [method, module.Rescaled()]}})
    planned = {stages(experiment)["captions"] for _, experiment in make_plan(sweep).grid or ()}
    assert {stage.name for stage in planned} == {"as-written", "lower-case"}

    monkeypatch.setattr("orchestrator.cluster.streaming.index_shards", test_analysis.local_index)
    made = stages(override(sweep.base, "clean.method", method))
    assert list(made).index("cleanset") < list(made).index("captions") < list(made).index("clean")
    assert made["captions"] in made["clean"].needs
    folder = ensure(made["captions"], At(store=Store(tmp_path))).folder
    count = json.loads((folder / "count.json").read_text())
    assert count["captions"] == sweep.base.clean.pairs and 3 < count["different"] <= count["captions"]  # type: ignore[union-attr]

    method = replace(method, then=examples["trainers/methods"].Noise(sigma=0.0))
    run = Run(
        trainer=lambda model, objective, phase: None,
        training=Training(epochs=1, batch_size=8, lr=1e-3, warmup_steps=0),
        fresh=lambda: TinyCLIP().build(1),
        made={method.count: folder},
    )
    scale = float(method.train(TinyCLIP().build(0), run).model.logit_scale.detach().exp())
    assert scale == pytest.approx(math.log(count["different"]))


def test_the_sweep_of_the_readme_loads(tmp_path: Path) -> None:
    found = re.search(r"```python\n# (\w+\.py)\n(.*?)```", README, re.S)
    assert found
    (tmp_path / found[1]).write_text(found[2])
    sweep = load_sweep(str(tmp_path / found[1]), {"clean.epochs": "3"})
    assert sweep.base.clean is not None and sweep.base.clean.epochs == 3
    for path in sweep.space:
        override(sweep.base, path, sweep.space[path]["grid_search"][0])


def test_every_command_is_in_the_readme_and_on_its_page() -> None:
    commands = set(parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr, arg-type]
    for text in (README, (ROOT / "docs" / "commands.md").read_text()):
        assert commands <= set(re.findall(r"cleansweep ([\w-]+)", text)), "a command is missing"


@each_document
def test_commands_flags_and_targets_that_are_named_exist(path: Path) -> None:
    text = path.read_text()
    commands = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)).replace("\\\n", " ")
    for name in re.findall(r"cleansweep ([\w-]+)", shell):
        assert name in commands, name
    known = {flag for command in commands.values() for flag in command._option_string_actions}
    for line in re.findall(r"cleansweep [\w-]+ .*", shell):
        for flag in re.findall(r"(?<=\s)--[a-z][a-z-]*(?=[\s=]|$)", line):
            assert flag in known, f"{flag} in: {line}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^make ([a-z-]+)", shell, re.M)) <= targets


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    for place, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#?)([^)]*)\)", text):
        target = (path.parent / place).resolve() if place else path
        assert target.exists() and target.is_relative_to(ROOT), f"{path.name}: {place} is not there"
        assert not anchor or anchor in anchors(target.read_text()), f"{path.name}: {target.name} has no heading #{anchor}"


def anchors(text: str) -> set[str]:
    """What a link may name after the #, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@each_document
def test_files_and_names_of_the_code_exist(path: Path) -> None:
    text = path.read_text()
    packages = "datasets|trainers|orchestrator|sweeps|tests|deploy|docs"
    examples = {place for place, _ in BLOCKS}
    for name in set(re.findall(rf"`((?:{packages})/[\w./-]*)`", text)) - examples:
        assert (ROOT / name).exists(), name
    for name in re.findall(rf"`((?:{packages})(?:\.\w+)+)`", text):
        pkgutil.resolve_name(name)


def test_documents_are_short_answer_a_question_and_are_found_from_the_readme() -> None:
    assert len(README.splitlines()) <= 150 and len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 300
    for page in PAGES:
        assert re.match(r"# .*\?\n", page.read_text()), f"{page.name}: its first line asks what it answers"
        assert f"](docs/{page.name})" in README, f"{page.name} is not linked from the README"
    for package in ("datasets", "trainers", "orchestrator"):
        for room in (path.parent for path in (ROOT / package).glob("*/__init__.py")):
            for text in (README, (ROOT / "ARCHITECTURE.md").read_text()):
                assert f"{room.name}/" in text, f"{room} is missing"


def test_every_metric_is_documented_and_every_documented_one_is_measured(examples: dict[str, ModuleType], tmp_path: Path) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    cells = " ".join(re.findall(r"^\| (`[^|]*) \|", text, re.M))
    documented = {name for name in re.findall(r"`([^`]+)`", cells + " `shift/cosine`") if "<part>" not in name}
    patterns = {name: re.compile(re.sub("<[a-z]+>", lambda found: NUMBER[found[0]], name)) for name in documented}
    found = set(measured(examples, tmp_path))
    assert not {name for name in found if not any(pattern.fullmatch(name) for pattern in patterns.values())}, "not documented"
    assert not {name for name, pattern in patterns.items() if not any(map(pattern.fullmatch, found))}, "not measured"


def metrics_of(found: Mapping[str, Any]) -> set[str]:
    """The names of what is no array."""
    return {name for name, value in found.items() if not isinstance(value, np.ndarray)}


def metrics_of_methods(folder: Path) -> set[str]:
    """Names of what methods say of an epoch as it begins."""
    names: set[str] = set()

    def train(model: Encoder, objective: Objective, phase: Phase) -> None:
        if phase.begin_epoch is not None:
            names.update(phase.begin_epoch(model, phase.first).metrics)

    toys = ToySet()
    training = Training(epochs=7, batch_size=8, lr=1e-3, warmup_steps=0)
    for method in (SafeCLIP(bank=8), RoCLIP(pool=8), UBT(share=0.1)):
        run = Run(trainer=train, training=training, fresh=resnet, keys=lambda: list(toys.samples["key"]), pairs=toys.pairs, folder=folder)
        method.train(resnet(), run)
    return names


def measured(examples: dict[str, ModuleType], folder: Path) -> set[str]:
    """Names of all metrics: those of a stored sweep, and of whatever measures or trains, on toys."""
    names: set[str] = set()
    lines = [json.loads(line) for file in ROOT.glob("tests/stores/first/store/*/*/metrics.jsonl") for line in file.open()]
    assert len(lines) > 10
    for line in lines:
        names |= set(line["metrics"])
    names |= set(best_metrics([{"epoch": 1, "metrics": {"zeroshot/top1": 90.0, "asr/top1": 1.0}}], 90.5))
    names |= {name for file in ROOT.glob("orchestrator/tracking/*.py") for name in re.findall(r'"(final/\w+)"', file.read_text())}

    model, feed = resnet(), ToyFeed(steps=5)
    names |= set(probe(model, feed, Training(epochs=1, batch_size=8, lr=1e-3, warmup_steps=0)))
    batch = to_device(feed.batch(0), model, True)
    model.draw_head(3, rng("head"))
    batch["target"] = torch.zeros(8, dtype=torch.long)
    batch |= {"matched": torch.ones(8), "filling": torch.ones(8), "suspect": torch.arange(8) % 2}
    for objective in (MMCLSSL(), SigLIP(), Clustering(), CrossView(), Unimodal(bank=9), Pooled(pool=9), Unlearn()):
        names |= {f"train/{part}" for part in objective.begin(model, rng("memory")).loss(model, batch)}
    names |= {f"train/{part}" for part in Triggered(stamp=lambda batch: batch).loss(model, batch)}
    names |= {f"train/{part}" for part in Apart().begin(model, rng("start")).loss(model, batch)}
    attacked = {**batch, "draw": torch.arange(8)}
    robust = (Adversarial(), Trades(), NearOriginal(), AgainstClasses(class_names=("a", "b"), template="{}"), Smooth(spectral_weight=1))
    names |= {f"train/{part}" for objective in robust for part in objective.begin(model, rng("start")).loss(model, attacked)}
    names |= metrics_of_methods(folder)

    pairs = test_scores.features(60)
    scorer = Scorer(scores := (LID(k=4, m=20), CosineByModel()), pairs, victim_N := np.arange(60) < 5)
    found = Scores(position_N=np.arange(60), victim_N=victim_N, suspicion=scorer.of(pairs), clamped=scorer.clamped, poisons=scorer.poisons)
    names |= {f"detect/{name}/{key}" for score in scores for name, told in found.merit(score, (5.0,), 0).items() for key in told}

    labels = np.arange(60) % 3
    names |= set(test_linear_probe.run(test_linear_probe.pictures(labels, 0), test_linear_probe.pictures(labels[:9], 1), target=2))
    encoder, batches, *_ = case()
    names |= set(Retrieval(data=SET).measure(encoder, batches(8)))
    unit = test_analysis.unit
    sides = test_analysis.features_of(np.linspace(-0.5, 0.5, 9), np.ones(4))
    views = ("other/image", "other/image_triggered", "other/image_twice", "other/image_crop", "other/image_triggered_crop")
    sides |= {view: unit(7, 5, seed=i) for i, view in enumerate(views)} | {"target/image": unit(4, 5, seed=9)}
    for question in QUESTIONS:
        names |= metrics_of(question(sides, Analysis()))
    several = ZeroShotASR(class_names=("a", "b"), templates=("{}",), aims=(Aim(name="corner", target=0), Aim(name="all", target=None)))
    pictures = {"image": torch.zeros(2, 32, 32, 3, dtype=torch.uint8), "image_triggered": torch.ones(2, 32, 32, 3, dtype=torch.uint8)}
    given = pictures | {triggered("all"): pictures["image"], "label": np.array([0, 1]), "key": np.array(["a", "b"])}
    names |= set(several.measure(resnet(), [given]))
    aims = (Aim(target=2, trigger=test_text_triggers.DUAL),)
    for evaluator in (TextTrigger(min_rank=True), DualKeyCells()):
        names |= set(evaluator.measure(test_text_triggers.encoder(), evaluator.open(test_text_triggers.material(*aims))))
    chosen = {"image": np.zeros((2, 32, 32, 3), np.uint8), "target": 0, "class_names": ("a", "b"), "templates": ("{}",)}
    names |= set(TargetedSuccess().measure(resnet(), [chosen]))
    names |= metrics_of(Decree(inversion=Inversion(epochs=1)).measure(resnet(), [given]))
    names |= metrics_of(test_mmbd.measured(MMBD(starts=4, steps=40, lr=0.05))) | set(test_bdetclip.measured())
    names |= set(test_other_trigger.found_by(OtherTrigger(trigger=Patch(size=8), name="weak"), resnet()))
    further = ZeroShotOn(data=EvalSet(path="anywhere", name="cifar10"))
    names |= set(further.measure(resnet(), [{"classes": (("a", "b"), ("{}",))}, given]))
    return names | set(examples["trainers/evaluate"].TriggerShift().measure(resnet(), [pictures]))
