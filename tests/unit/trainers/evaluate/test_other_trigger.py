"""ASR with another trigger than the attack's: its counts, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.component import needs_of
from datasets.errors import InputError
from datasets.feed.loader import Recipe
from datasets.images.view import Views
from datasets.seeding import rng
from datasets.triggers.blended import Blended
from datasets.triggers.optimised import FILE, Optimised, OptimisedPatch
from datasets.triggers.patch import Patch
from datasets.triggers.words import Words
from orchestrator.experiment.check import check
from tests.parity.toys import resnet
from tests.tiny_sweep import BASE
from trainers.evaluate.base import Material
from trainers.evaluate.other_trigger import OtherTrigger
from trainers.evaluate.zeroshot import Aim, ZeroShotASR
from trainers.model import TinyCLIP

CLASSES, PROMPTS = tuple(f"a {colour} thing" for colour in ("red", "green", "blue", "grey", "pink", "brown")), ("{}", "see {}")
ATTACK = Patch(size=6)
N = 40


def test_batches(size=7, trigger=ATTACK):
    pictures = rng("pictures").integers(0, 256, (N, 32, 32, 3)).astype(np.uint8)
    for start in range(0, N, size):
        rows = slice(start, start + size)
        view = pictures[rows]
        attacked = np.stack([trigger.stamp(one, rng(3, "eval-trigger", f"k{start + i}")) for i, one in enumerate(view)])
        yield {"image": view, "image_triggered": attacked, "label": np.arange(N)[rows] % len(CLASSES),
               "key": np.array([f"k{i}" for i in range(N)], object)[rows]}  # fmt: skip


test_batches.__test__ = False


def material(**fields):
    own = {"test": list, "test_with": lambda trigger: test_batches(trigger=trigger)}
    own |= {"target": 2, "class_names": CLASSES, "templates": PROMPTS, "pairs": None}
    return Material(**own | {"recipe": Recipe(views=Views(size=32), trigger=ATTACK, seed=3)} | fields)


def found_by(evaluator, encoder, **fields):
    return evaluator.measure(encoder, evaluator.open(material(**fields)))


def reference(encoder, trigger, target, prompts=PROMPTS, write=lambda text: text):
    """Counts in float64, picture by picture; `target`: a function of the label."""
    encoder = encoder.double().eval()
    with torch.no_grad():
        head = []
        for name in CLASSES:
            texts = [write(prompt.replace("{}", name)) for prompt in prompts]
            mean = encoder.encode_text(encoder.tokenize(texts)).numpy().mean(0)
            head.append(mean / np.sqrt((mean**2).sum()))
        counts = dict.fromkeys(("n", "top1_count", "top5_count", "top10_count", "floor_count", "ra_count"), 0)
        for batch in test_batches(1):
            [view], [label], [key] = batch["image"], batch["label"].tolist(), batch["key"]
            mark = trigger.stamp(view, rng(3, "eval-trigger", key))
            scores = [
                np.array(head) @ encoder.encode_image(torch.from_numpy(one[None].copy()))[0].numpy()
                for one in (view, mark)
            ]
            plain, marked = (list(np.argsort(-score, kind="stable")) for score in scores)
            if label != target(label):
                counts["n"] += 1
                for k in (1, 5, 10):
                    counts[f"top{k}_count"] += target(label) in marked[:k]
                counts["floor_count"] += plain[0] == target(label)
                counts["ra_count"] += marked[0] == label
    return {f"asr_{name}": int(value) for name, value in counts.items()}


def counts_of(found, name):
    return {key.removeprefix(f"other/{name}/"): value for key, value in found.items() if key.endswith(("_n", "_count"))}


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({}, lambda label: 2),
        ({"target": "a pink thing"}, lambda label: 4),
        ({"trigger": Blended(alpha=0.9)}, lambda label: 2),
    ],
)
def test_the_counts_are_those_of_the_formula(fields, target):
    evaluator = OtherTrigger(**{"trigger": Patch(pattern="saturated", size=12, location="top_left"), "name": "corner", **fields})
    found = found_by(evaluator, resnet().double())
    assert counts_of(found, "corner") == reference(resnet(), evaluator.trigger, target)
    assert found["other/corner/asr_top1"] == 100 * found["other/corner/asr_top1_count"] / found["other/corner/asr_n"]
    assert found["other/corner/asr_n"] == N - sum(target(i) == i % 6 for i in range(N))
    assert all(name.startswith("other/corner/") for name in found)
    assert found["other/corner/asr_top1_low"] <= found["other/corner/asr_top1"] <= found["other/corner/asr_top1_high"]


def test_of_an_all_to_all_attack_it_counts_the_class_after():
    evaluator = OtherTrigger(trigger=Patch(size=12), name="x")
    found = counts_of(found_by(evaluator, resnet().double(), target=None), "x")
    assert found == reference(resnet(), evaluator.trigger, lambda label: (label + 1) % 6) and found["asr_n"] == N


def test_a_trigger_that_writes_writes_into_the_prompts():
    evaluator = OtherTrigger(trigger=Words(text="pink", place="suffix"), name="words")
    found = counts_of(found_by(evaluator, resnet().double()), "words")
    assert found == reference(resnet(), evaluator.trigger, lambda label: 2, write=lambda text: f"{text} pink")


def test_with_the_attacks_own_trigger_it_is_the_attacks_own_asr():
    aims = (Aim(target=2, trigger=ATTACK, seed=3),)
    own = ZeroShotASR(class_names=CLASSES, templates=PROMPTS, aims=aims).measure(resnet(), test_batches())
    found = found_by(OtherTrigger(trigger=ATTACK, name="own"), resnet())
    assert {f"other/own/asr_{key.removeprefix('asr/')}": value for key, value in own.items() if key.startswith("asr/")} == found


def test_a_trigger_that_must_be_made_first_is_used_as_its_stage_made_it(tmp_path):
    patch = OptimisedPatch(target="red", size=8, reference=TinyCLIP())
    evaluator = OtherTrigger(trigger=Optimised(patch=patch), name="made")
    np.save(tmp_path / FILE, np.ones((8, 8, 3), np.float32))
    seen = []
    [_, *batches] = evaluator.open(material(made={patch: tmp_path}, test_with=lambda trigger: seen.append(trigger) or test_batches()))
    assert needs_of((evaluator,)) == (patch,) and len(batches) == 6
    assert seen == [evaluator.trigger.with_made({patch: str(tmp_path)})]
    assert (seen[0].stamp(np.zeros((32, 32, 3), np.uint8), rng("any")) == 255).sum() == 8 * 8 * 3


def test_what_is_refused():
    patch = Patch(size=6)
    with pytest.raises(InputError, match="OtherTrigger.name is 'a/b'; accepted are up to 40 letters"):
        OtherTrigger(trigger=patch, name="a/b")
    with pytest.raises(InputError, match="'a violet thing' is not among the 6 classes"):
        found_by(OtherTrigger(trigger=patch, name="x", target="a violet thing"), resnet())

    def checked(*others):
        check(replace(BASE, evaluate=replace(BASE.evaluate, evaluators=others)))

    checked(OtherTrigger(trigger=patch, name="x"), OtherTrigger(trigger=patch, name="y", target="circle"))
    with pytest.raises(InputError, match="two OtherTrigger are called 'x'"):
        checked(OtherTrigger(trigger=patch, name="x"), OtherTrigger(trigger=Blended(), name="x"))
    with pytest.raises(InputError, match="size"):
        checked(OtherTrigger(trigger=Patch(size=64), name="x"))
    with pytest.raises(InputError, match="'violet' is not among the 4 classes"):
        checked(OtherTrigger(trigger=patch, name="x", target="violet"))
