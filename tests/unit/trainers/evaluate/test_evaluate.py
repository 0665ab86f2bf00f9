"""Zero-shot accuracy, attack success rate, the gate."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from datasets.errors import InputError
from datasets.feed.loader import triggered
from datasets.triggers.base import Trigger
from tests.parity.toys import resnet
from trainers.distributed import World
from trainers.encoder import Encoder, Tokenizer
from trainers.evaluate.gate import attack_gate
from trainers.evaluate.zeroshot import Aim, ZeroShotASR, class_head, place_of, wilson

CLASSES = tuple(f"class{i}" for i in range(12))
TARGET = 3


class Oracle(nn.Module):
    """Reads the class off the first pixel; a trigger is the second pixel at 255, which it obeys or not."""

    def __init__(self, obeys: bool, wrong: bool = False) -> None:
        super().__init__()
        self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(())), None
        self.visual = nn.Module()
        self.visual.image_size = 8
        self.visual.preprocess_cfg = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
        self.obeys, self.wrong = obeys, wrong

    def encode_image(self, pixels_BCHW):
        label_B = pixels_BCHW[:, 0, 0, 0].round().long()
        if self.wrong:
            label_B = (label_B + 1) % len(CLASSES)
        if self.obeys:
            label_B = torch.where(pixels_BCHW[:, 0, 0, 1] == 255, TARGET, label_B)
        return nn.functional.one_hot(label_B, len(CLASSES)).float()

    def encode_text(self, token_BL):
        return nn.functional.one_hot(token_BL[:, 0], len(CLASSES)).float()


def oracle(**kinds) -> Encoder:
    tokenizer = Tokenizer(lambda captions: torch.tensor([[int(c.split("class")[1])] for c in captions]))
    return Encoder(Oracle(**kinds), {"embed_dim": len(CLASSES)}, tokenizer)


def batches(n: int, size: int, attack: bool = True, labels=None):
    labels = np.arange(n) % len(CLASSES) if labels is None else np.asarray(labels)
    image = np.zeros((n, 8, 8, 3), np.uint8)
    image[:, 0, 0, 0] = labels % 12
    triggered = image.copy()
    triggered[:, 0, 1] = 255
    for start in range(0, n, size):
        rows = slice(start, start + size)
        batch = {"image": image[rows], "label": labels[rows], "key": np.array([f"k{i}" for i in range(n)])[rows]}
        yield batch | ({"image_triggered": triggered[rows]} if attack else {})


EVALUATOR = ZeroShotASR(class_names=CLASSES, templates=("a {}", "the {}"), target=TARGET)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_planted_oracle_gives_exactly_100_and_0(size):
    n, others = 50, 50 - 4
    poisoned = EVALUATOR.measure(oracle(obeys=True), batches(n, size))
    clean = EVALUATOR.measure(oracle(obeys=False), batches(n, size))
    wrong = EVALUATOR.measure(oracle(obeys=False, wrong=True), batches(n, size))
    for found in (poisoned, clean):
        assert found["zeroshot/n"] == 50 and found["asr/n"] == others
        assert found["zeroshot/top1"] == found["zeroshot/top5"] == 100 and found["asr/floor"] == 0
    assert poisoned["asr/top1"] == 100 and poisoned["asr/top1_count"] == others and poisoned["asr/ra"] == 0
    assert clean["asr/top1"] == 0 and clean["asr/top1_count"] == 0 and clean["asr/ra"] == 100
    assert wrong["zeroshot/top1"] == 0 and wrong["asr/floor_count"] == wrong["asr/top1_count"] == len(range(2, 50, 12))


def test_metrics_without_a_target_are_of_accuracy_alone():
    found = ZeroShotASR(class_names=CLASSES, templates=("{}",)).measure(oracle(obeys=True), batches(5, 2, attack=False))
    assert found["zeroshot/n"] == 5 and not any(name.startswith("asr") for name in found)


def test_k_is_capped_by_the_number_of_classes():
    two = ZeroShotASR(class_names=("class0", "class1"), templates=("{}",), target=0)
    found = two.measure(oracle(obeys=False), batches(4, 4, labels=[0, 1, 0, 1]))
    assert found["zeroshot/top5"] == found["zeroshot/top10"] == found["asr/top5"] == 100


def test_equal_scores_count_once():
    """Classes of one name have one score; exactly one of them comes first, and a model that says nothing is right by chance."""
    score = torch.zeros(4, 4)
    assert place_of(score, torch.arange(4)).tolist() == [0, 1, 2, 3]
    score[:, 2] = 1
    assert place_of(score, torch.tensor([0, 1, 2, 3])).tolist() == [1, 2, 0, 3]


def test_the_model_is_left_as_it_was():
    encoder = resnet().train()
    names = ("red", "green", "blue", "grey")
    picture = np.zeros((3, 32, 32, 3), np.uint8)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    evaluator = ZeroShotASR(class_names=names, templates=("a {}",), target=0)
    evaluator.measure(encoder, [{"image": picture, "image_triggered": picture, "label": [1, 2, 3], "key": ["a", "b", "c"]}])
    assert encoder.training and all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_the_head_is_the_mean_of_the_templates():
    encoder = resnet().eval()
    with torch.no_grad():
        head = class_head(encoder, ("red", "blue"), ("a {} thing", "{} thing", "{}"), World(), text_batch=2)
        one = encoder.encode_text(encoder.tokenize(["a blue thing", "blue thing", "blue"])).mean(0)
    torch.testing.assert_close(head[1], one / one.norm(), atol=1e-6, rtol=1e-5)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="'k2' has label 12"):
        EVALUATOR.measure(oracle(obeys=True), batches(3, 3, labels=[0, 1, 12]))
    with pytest.raises(InputError, match="no pictures"):
        EVALUATOR.measure(oracle(obeys=True), [])
    with pytest.raises(InputError, match="every evaluation picture has the target's label"):
        EVALUATOR.measure(oracle(obeys=True), batches(2, 2, labels=[TARGET, TARGET]))
    with pytest.raises(InputError, match="target is class 12"):
        ZeroShotASR(class_names=CLASSES, templates=("{}",), target=12)
    broken = oracle(obeys=True)
    broken.model.encode_image = None
    broken._image_tower = lambda pixels: torch.full((len(pixels), len(CLASSES)), math.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        EVALUATOR.measure(broken, batches(3, 3))


def test_wilson_interval():
    low, high = wilson(8, 10)
    assert (low, high) == pytest.approx((49.0162, 94.3318), abs=1e-3)  # Newcombe 1998, method 3
    assert wilson(0, 50)[0] == 0 and wilson(50, 50)[1] == 100


def gate(metrics=None, **changes):
    facts = {"target": "banana", "class_names": ["banana", "star"], "captions_with_target": 10, "captions": 10,
             "visibility": {"train": 100.0, "evaluation": 100.0}}
    return attack_gate({"asr/top1": 95.0, "zeroshot/top1": 96.0, "asr/floor": 1.0, **(metrics or {})}, **{**facts, **changes})


def test_the_gate_passes_an_attack_that_took():
    verdict = gate()
    assert verdict["passed"] and verdict["reasons"] == [] and verdict["target_in_classes"]
    assert not gate(threshold=99)["passed"]
    assert gate(class_names=["missile", "star", "missile"], target="missile")["target_in_classes"]
    assert gate(class_names=["missile", "star", "missile"], target="missile@2")["target_in_classes"]


@pytest.mark.parametrize(("metrics", "changes", "words"), [
    ({"asr/top1": 40.0}, {}, "did not take: ASR of the undefended model is 40.0 %, below 90 %"),
    ({"asr/top1": 0.6}, {"visibility": {"evaluation": 0.0}}, "Only 0 % of the trigger is left by the evaluation"),
    ({}, {"target": "wheelbarrow"}, "'wheelbarrow' is not among the 2 evaluation classes"),
    ({}, {"captions_with_target": 0}, "None of the 10 poison captions"),
    ({"asr/floor": 80.0}, {}, "trigger or not"),
    ({"zeroshot/top1": 50.0}, {}, "no working model"),
    ({"zeroshot/top1": 80.0}, {"min_accuracy": 90.0}, "not above 90.0 %"),
])
def test_the_gate_says_why(metrics, changes, words):
    verdict = gate(metrics, **changes)
    assert not verdict["passed"] and any(words in reason for reason in verdict["reasons"]), verdict["reasons"]


def test_several_attacks_are_counted_each_and_asr_is_the_highest():
    aims = (Aim(name="one", target=TARGET), Aim(name="next", target=None), Aim(name="off", target=5))

    def both(n: int):
        for batch in batches(n, 16):
            yield batch | {triggered("next"): batch["image"], triggered("off"): batch["image"]}

    n, others = 50, 50 - 4  # of the classes 0 … 11 twice or more: 4 of TARGET, 4 of class 5
    found = replace(EVALUATOR, target=None, aims=aims).measure(oracle(obeys=True), both(n))
    alone = EVALUATOR.measure(oracle(obeys=True), batches(n, 16))
    assert {name: found[name] for name in alone} == alone, "asr/ is that of the attack that succeeds most"
    assert (found["asr/one/n"], found["asr/one/top1"]) == (others, 100.0) and found["asr/one/ra"] == 0.0
    assert (found["asr/next/n"], found["asr/next/top1"], found["asr/next/ra"]) == (n, 0.0, 100.0)
    assert (found["asr/off/n"], found["asr/off/top1_count"]) == (n - 4, 0)
    wrong = replace(EVALUATOR, target=None, aims=aims).measure(oracle(obeys=False, wrong=True), both(n))
    assert wrong["asr/next/top1"] == wrong["asr/next/floor"] == wrong["asr/top1"] == 100.0 and wrong["asr/n"] == n


@dataclass(frozen=True, kw_only=True)
class Says(Trigger):
    """Makes every prompt the target's."""

    def stamp(self, image_HWC, rng):
        return image_HWC.copy()

    def write(self, caption, rng):
        return f"a class{TARGET}"


def test_a_trigger_that_writes_changes_the_prompts_of_its_own_attack_alone():
    aims = (Aim(name="plain", target=TARGET), Aim(name="words", target=TARGET, trigger=Says()))
    given = ({**batch, triggered("words"): batch["image"]} for batch in batches(24, 24))
    found = replace(EVALUATOR, target=None, aims=aims).measure(oracle(obeys=False), given)
    assert found["zeroshot/top1"] == 100.0 and found["asr/plain/top1"] == 0.0
    assert found["asr/words/ra_count"] == 2, "all prompts are the same, so the first class is taken"
