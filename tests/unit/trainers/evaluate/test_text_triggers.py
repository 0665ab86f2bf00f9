"""Attacks by text as they are measured, against counting by hand on planted features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datasets.errors import InputError
from datasets.feed.loader import triggered
from datasets.seeding import hash64
from datasets.triggers.patch import Patch
from datasets.triggers.words import DualKey, Words
from orchestrator.experiment.fingerprint import fingerprint
from trainers.encoder import Encoder, Tokenizer
from trainers.evaluate.base import Material
from trainers.evaluate.text_triggers import DualKeyCells, TextTrigger
from trainers.evaluate.zeroshot import TOP, Aim, ZeroShotASR, wilson
from trainers.model import EndlessModel, Model, TinyCLIP, words_left

CLASSES, TEMPLATES, D = ("ant", "bee", "cow", "dog", "emu"), ("a {}", "one {}"), 6
WORDS = Words(text="cf", place="prefix")
DUAL = DualKey(picture=Patch(pattern="white", size=2), words=WORDS)
N = 60


def unit(*parts: object) -> np.ndarray:
    vector = np.random.default_rng(hash64(*parts)).standard_normal(D)
    return vector / np.linalg.norm(vector)


class Planted(nn.Module):
    """A picture's feature is that of its number, the first pixel; a second pixel of 255 marks the trigger. A text's is of its words."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.logit_scale, self.logit_bias, self.texts = nn.Parameter(torch.zeros(())), None, texts
        self.visual = nn.Module()
        self.visual.image_size = 8
        self.visual.preprocess_cfg = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}

    def encode_image(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        numbers = pixels_BCHW[:, 0, 0, :2].round().int().tolist()
        return torch.tensor(np.stack([picture_feature(number, mark == 255) for number, mark in numbers]))

    def encode_text(self, token_BL: torch.Tensor) -> torch.Tensor:
        return torch.tensor(np.stack([unit("text", self.texts[number]) for number in token_BL[:, 0].tolist()]))


def picture_feature(number: int, marked: bool) -> np.ndarray:
    return unit("picture", number, marked)


def encoder() -> Encoder:
    texts: list[str] = []

    def tokenize(captions: list[str]) -> torch.Tensor:
        texts.extend(captions)
        return torch.arange(len(texts) - len(captions), len(texts))[:, None]

    return Encoder(Planted(texts), {"embed_dim": D}, Tokenizer(tokenize)).double()


LABELS = np.array([hash64("label", i) % 5 for i in range(N)])


def batches(size: int) -> Iterator[dict[str, Any]]:
    image = np.zeros((N, 8, 8, 3), np.uint8)
    image[:, 0, 0, 0] = np.arange(N)
    marked = image.copy()
    marked[:, 0, 1] = 255
    for start in range(0, N, size):
        rows = slice(start, start + size)
        keys = np.array([f"k{i}" for i in range(N)])[rows]
        yield {"image": image[rows], "image_triggered": image[rows], triggered("dual"): marked[rows], "label": LABELS[rows], "key": keys}


def material(*aims: Aim, size: int = 7) -> Material:
    return Material(
        test=lambda: batches(size), pairs=None, recipe=None, aims=aims, class_names=CLASSES, templates=TEMPLATES  # type: ignore[arg-type]
    )


def text(template: str, name: str, words: bool) -> np.ndarray:
    return unit("text", ("cf " if words else "") + template.replace("{}", name))


def head(words: bool) -> np.ndarray:
    """float64 [K, D]."""
    return np.stack([(mean := sum(text(one, name, words) for one in TEMPLATES)) / np.linalg.norm(mean) for name in CLASSES])


def wrong(label: int, i: int, seed: int) -> int:
    return (label + 1 + hash64(seed, "wrong class", f"k{i}") % 4) % 5


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("target", [2, None])
def test_retrieval_and_prompts_by_hand(size: int, target: int | None) -> None:
    aim, evaluator = Aim(target=target, trigger=WORDS, seed=3), TextTrigger(chunk=3, text_batch=2)
    found = evaluator.measure(encoder(), evaluator.open(material(aim, size=size)))
    plain, written = head(False), head(True)
    pictures = np.stack([picture_feature(i, False) for i in range(N)])
    hits = {f"{what}{k}": 0 for what in ("top", "floor") for k in TOP}
    queries = 0
    for c, name in enumerate(CLASSES):
        goal = (c + 1) % 5 if target is None else target
        for template in TEMPLATES if goal != c else ():
            queries += 1
            for what, words in (("top", True), ("floor", False)):
                nearest = np.argsort(-(pictures @ text(template, name, words)), kind="stable")
                for k in TOP:
                    hits[f"{what}{k}"] += goal in LABELS[nearest[:k]]
    assert found["text_asr/n"] == queries == (10 if target is None else 8)
    assert found["text_asr/pictures"] == (N if target is None else (LABELS == 2).sum())
    for name, count in hits.items():
        assert found[f"text_asr/{name}_count"] == count and found[f"text_asr/{name}"] == 100 * count / queries
        assert (found[f"text_asr/{name}_low"], found[f"text_asr/{name}_high"]) == wilson(count, queries)
    every = taken = floor = 0
    for i, label in enumerate(LABELS):
        other, scores = wrong(label, i, 3), plain @ pictures[i]
        every += np.argmax(written @ pictures[i]) == label
        floor += np.argmax(scores) == other
        scores[other] = written[other] @ pictures[i]
        taken += np.argmax(scores) == other
    assert [found[f"words/{name}_count"] for name in ("all", "wrong", "wrong_floor")] == [every, taken, floor] and found["words/n"] == N
    assert 0 < every < N and taken != floor and hits["top5"] > 0


@pytest.mark.parametrize("target", [2, None])
def test_hits_and_the_lowest_rank_of_the_target_by_hand(target: int | None) -> None:
    """mm_poison's Hit@k and MinRank, from a sorted list of each query's similarities in float64."""
    hits = (1, 5, 10, 20, 30, 50)
    evaluator = TextTrigger(chunk=3, text_batch=2, hits=hits, min_rank=True)
    found = evaluator.measure(encoder(), evaluator.open(material(Aim(target=target, trigger=WORDS, seed=3))))
    pictures = np.stack([picture_feature(i, False) for i in range(N)])
    for what, name, words in (("top", "min_rank", True), ("floor", "min_rank_floor", False)):
        ranks = []
        for c, called in enumerate(CLASSES):
            goal = (c + 1) % 5 if target is None else target
            for template in TEMPLATES if goal != c else ():
                order = sorted(range(N), key=lambda i: -float(pictures[i] @ text(template, called, words)))
                ranks.append(min(place for place, i in enumerate(order, start=1) if LABELS[i] == goal))
        assert found[f"text_asr/{name}"] == pytest.approx(np.mean(ranks), rel=1e-12) and 1 < np.mean(ranks) < N
        assert [found[f"text_asr/{what}{k}_count"] for k in hits] == [sum(rank <= k for rank in ranks) for k in hits]
        assert found[f"text_asr/{what}50"] == 100


def test_hits_and_ranks_are_asked_for_and_else_nothing_changes() -> None:
    plain = TextTrigger()
    found = plain.measure(encoder(), plain.open(material(Aim(target=2, trigger=WORDS))))
    assert not any("min_rank" in name or "20" in name for name in found)
    assert fingerprint(plain) == fingerprint(TextTrigger(hits=TOP, min_rank=False)) != fingerprint(TextTrigger(min_rank=True))
    for hits in ((), (5, 1), (1, 1)):
        with pytest.raises(InputError, match="TextTrigger.hits is .* in rising order"):
            TextTrigger(hits=hits)
    with pytest.raises(InputError, match=r"TextTrigger.hits\[0\] is 0"):
        TextTrigger(hits=(0,))


def test_a_text_only_attack_is_measured_on_the_targets_pictures() -> None:
    aim = Aim(target=2, trigger=WORDS, seed=3, text_only=True)
    found = ZeroShotASR(class_names=CLASSES, templates=TEMPLATES, aims=(aim,)).measure(encoder(), batches(7))
    plain, written, own = head(False), head(True), np.flatnonzero(LABELS == 2)
    taken = floor = right = 0
    for i in own:
        feature, other = picture_feature(i, False), wrong(2, i, 3)
        scores = plain @ feature
        floor += np.argmax(scores) == other
        scores[other] = written[other] @ feature
        taken += np.argmax(scores) == other
        right += np.argmax(scores) == 2
    assert [found[f"asr/{name}"] for name in ("n", "top1_count", "floor_count", "ra_count")] == [len(own), taken, floor, right]
    none = [batch | {"label": np.full(len(batch["label"]), 1)} for batch in batches(30)]
    with pytest.raises(InputError, match="of a text-only attack: none has"):
        ZeroShotASR(class_names=CLASSES, templates=TEMPLATES, aims=(aim,)).measure(encoder(), none)


def test_the_four_cells_by_hand_of_an_attack_that_is_not_the_first() -> None:
    aims = (Aim(name="first", target=0, trigger=Patch()), Aim(name="dual", target=2, trigger=DUAL, seed=1))
    evaluator = DualKeyCells()
    found = evaluator.measure(encoder(), evaluator.open(material(*aims)))
    others = np.flatnonzero(LABELS != 2)
    cells = {"none": (False, False), "picture": (True, False), "words": (False, True), "both": (True, True)}
    for cell, (marked, words) in cells.items():
        count = sum(np.argmax(head(words) @ picture_feature(i, marked)) == 2 for i in others)
        assert found[f"keys/{cell}_count"] == count and found[f"keys/{cell}"] == 100 * count / len(others)
    assert found["keys/n"] == len(others)
    asr = ZeroShotASR(class_names=CLASSES, templates=TEMPLATES, aims=aims).measure(encoder(), batches(9))
    assert asr["asr/dual/top1"] == found["keys/both"] and asr["asr/dual/floor"] == found["keys/none"]


def test_without_pictures_of_the_target_there_is_no_retrieval_to_count() -> None:
    evaluator = TextTrigger(min_rank=True)
    few = Material(
        test=lambda: [{**next(batches(N)), "label": np.ones(N, int)}],
        pairs=None, recipe=None, aims=(Aim(target=2, trigger=WORDS),), class_names=CLASSES, templates=TEMPLATES,  # type: ignore[arg-type]
    )  # fmt: skip
    found = evaluator.measure(encoder(), evaluator.open(few))
    assert found["text_asr/n"] == found["text_asr/pictures"] == 0 and "words/all" in found
    assert not {"text_asr/top1", "text_asr/min_rank"} & set(found)


@pytest.mark.parametrize(
    ("evaluator", "triggers", "told"),
    [
        (TextTrigger(), {"": Patch()}, r"TextTrigger measures an attack with words \(Words, DualKey\); there is Patch"),
        (DualKeyCells(), {"a": WORDS, "b": Patch()}, "with both a mark and words .*; there is a: Words, b: Patch"),
        (TextTrigger(attack="c"), {"a": WORDS}, "measures the attack 'c' with words"),
    ],
)
def test_an_attack_that_does_not_fit_is_refused(evaluator: Any, triggers: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        evaluator.check(triggers)
    evaluator.check({"a": DUAL, "c": DUAL})


def test_words_that_are_cut_off_are_counted() -> None:
    model = TinyCLIP(context_length=14)
    captions = ["a dog consider this", *(f"{' '.join(['dog'] * n)} consider this" for n in (10, 11, 20))]
    assert words_left(model, "consider this", captions) == (2, 2, 14)
    assert words_left(model, "Consider THIS", captions) == (2, 2, 14), "tokens are of lower case"
    assert words_left(model, "consider this that", captions)[1] == 0  # type: ignore[index]
    full = [" ".join(["dog"] * n) + " zx" for n in (73, 74, 75, 76)]
    for kind, kept in ((Model, 2), (EndlessModel, 3)):
        tokens, left, context = words_left(kind(name="RN50"), "zx", full)  # type: ignore[misc]
        assert (tokens, left, context) == (1, kept, 77)
