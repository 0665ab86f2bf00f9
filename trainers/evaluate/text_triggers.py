"""The effect of a trigger's words: on retrieval of pictures by text, in class prompts, and together with a mark on the picture.

Shape suffixes: N pictures, B of a batch, Q queries, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.component import Count, since
from datasets.errors import InputError
from datasets.feed.loader import Batch, triggered
from datasets.seeding import rng
from datasets.triggers.base import Trigger, write_in
from datasets.triggers.words import DualKey
from trainers import distributed
from trainers.distributed import World
from trainers.evaluate.base import Evaluator, Material
from trainers.evaluate.features import features
from trainers.evaluate.retrieval import first_place
from trainers.evaluate.zeroshot import TOP, Aim, class_head, labels_of, place_of, swapped, wilson, wrong_class

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


@dataclass(frozen=True)
class Asked:
    """The test pictures with the attack, class names and prompts to compare them with."""

    batches: Iterable[Batch]
    aim: Aim
    pictures: str
    """The name of the attack's triggered pictures in a batch"""
    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


@dataclass(frozen=True, kw_only=True)
class OfWords(Evaluator):
    """An evaluator of attacks that put words into captions."""

    attack: str = ""
    """Name of the attack; empty: the first one that fits."""
    text_batch: Count = 512
    """Captions to encode at a time."""

    def fits(self, trigger: Trigger) -> bool:
        """Whether it can measure attacks with this trigger."""
        return trigger.writes

    def check(self, triggers: Mapping[str, Trigger]) -> None:
        if not any(self.fits(trigger) and self.attack in ("", name) for name, trigger in triggers.items()):
            asked = f"the attack {self.attack!r}" if self.attack else "an attack"
            has = ", ".join(f"{name}: {type(one).__name__}" if name else type(one).__name__ for name, one in triggers.items())
            raise InputError(
                f"evaluate.evaluators: {type(self).__name__} measures {asked} "
                f"with {'both a mark and words (DualKey)' if isinstance(self, DualKeyCells) else 'words (Words, DualKey)'}; there is {has}."
            )

    def open(self, material: Material) -> Asked:
        """The test pictures, with the attack to measure."""
        self.check({aim.name: aim.trigger for aim in material.aims if aim.trigger is not None})
        number, aim = next(
            (number, aim) for number, aim in enumerate(material.aims)
            if aim.trigger is not None and self.fits(aim.trigger) and self.attack in ("", aim.name)
        )  # fmt: skip
        pictures = triggered(aim.name) if number else "image_triggered"
        return Asked(material.test(), aim, pictures, material.class_names, material.templates)


@dataclass(frozen=True, kw_only=True)
class TextTrigger(OfWords):
    """Retrieval of pictures by prompts with the trigger's words; zero-shot classification with the words in all prompts, and in those of
    one wrong class.

    A query is a prompt of a class other than the target, with the words in it, and retrieves among the test pictures. It is a hit in the
    top k if any of its k nearest pictures is of the target class (ToxicTextCLIP 2025; mm_poison, Yang et al. 2023, calls this Hit@k). In an
    all-to-all attack the target of a class is the next class. A wrong class is drawn for each picture by its key.
    """

    chunk: Count = 256
    """Queries to compare with all pictures at a time."""
    hits: tuple[Count, ...] = since(TOP)
    """The k to report; mm_poison reports 1, 5, 10, 20, 30, 50"""
    min_rank: bool = since(False)
    """Whether to report mm_poison's MinRank too: the place of the first picture of the target class (1: the nearest), mean over queries"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hits or list(self.hits) != sorted(set(self.hits)):
            raise InputError(f"TextTrigger.hits is {self.hits}; accepted: at least one k, each once, in rising order.")

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float]:
        """In percent: text_asr/top{hits}, text_asr/floor{hits} (the same queries without the words), words/all (accuracy with the words
        in all prompts), words/wrong and words/wrong_floor (pictures taken for the wrong class, with and without the words in its prompts),
        each with _count, _low and _high. Whole numbers: text_asr/n (queries), text_asr/pictures (of target classes), words/n. With
        `min_rank`, places from 1: text_asr/min_rank, text_asr/min_rank_floor. Without pictures of a target class the shares and places of
        text_asr/ are left out."""
        import torch

        assert isinstance(batches, Asked)
        asked, world, training = batches, world or World(), model.training
        model.eval()
        with torch.no_grad():
            plain_KD = class_head(model, asked.class_names, asked.templates, world, self.text_batch)
            words_KD = class_head(model, asked.class_names, asked.templates, world, self.text_batch, asked.aim)
            counts: dict[str, float] = dict.fromkeys(("words/n", "words/all_count", "words/wrong_count", "words/wrong_floor_count"), 0)
            local: list[tuple[np.ndarray, np.ndarray]] = []
            for batch in asked:
                label_B, feature_BD = labels_of(batch, len(plain_KD), model.device), features(model, batch)
                local.append((label_B.cpu().numpy(), feature_BD.cpu().numpy()))
                for name, count in _prompts(asked.aim, feature_BD @ plain_KD.T, feature_BD @ words_KD.T, label_B, batch["key"]).items():
                    counts[name] += count
            parts = distributed.gather_lists(local, world)
            label_N = torch.from_numpy(np.concatenate([label for label, _ in parts])).to(model.device)
            image_ND = torch.from_numpy(np.concatenate([feature for _, feature in parts])).to(model.device)
            counts |= self._retrieved(model, asked, label_N, image_ND, world)
        model.train(training)
        summed = {name: int(value) for name, value in distributed.sum_over_ranks(counts, world).items()}
        ranks = {name: summed.pop(name) for name in list(summed) if name.startswith("text_asr/min_rank")}
        found = shares(summed, {"words": "words/n", "text_asr": "text_asr/n"}) | {"text_asr/pictures": _targets(asked, label_N)}
        return found | {name: total / summed["text_asr/n"] for name, total in ranks.items() if summed["text_asr/n"]}

    def _retrieved(self, model: Encoder, asked: Asked, label_N: Tensor, image_ND: Tensor, world: World) -> dict[str, float]:
        """Counts of this rank's queries: every `size`-th."""
        import torch

        classes = len(asked.class_names)
        targets = [(i + 1) % classes if asked.aim.target is None else asked.aim.target for i in range(classes)]
        present = set(label_N.tolist())
        queries = [
            (template.replace("{}", name), targets[i])
            for i, name in enumerate(asked.class_names) for template in asked.templates if targets[i] != i and targets[i] in present
        ][world.rank :: world.size]  # fmt: skip
        counts: dict[str, float] = {"text_asr/n": len(queries)}
        counts |= {f"text_asr/{what}{k}_count": 0 for what in ("top", "floor") for k in self.hits}
        if self.min_rank:
            counts |= {"text_asr/min_rank": 0, "text_asr/min_rank_floor": 0}
        trigger = asked.aim.trigger
        assert trigger is not None
        for start in range(0, len(queries), self.chunk):
            part = queries[start : start + self.chunk]
            target_Q = torch.tensor([target for _, target in part], device=label_N.device)
            plain = [prompt for prompt, _ in part]
            written = [write_in(trigger, prompt, rng(asked.aim.seed, "eval-trigger", prompt)) for prompt in plain]
            for what, texts in (("top", written), ("floor", plain)):
                text_QD = torch.cat([
                    model.encode_text(model.tokenize(texts[i : i + self.text_batch]).to(model.device))
                    for i in range(0, len(texts), self.text_batch)
                ])  # fmt: skip
                place_Q = first_place(text_QD @ image_ND.T, label_N[None] == target_Q[:, None])
                for k in self.hits:
                    counts[f"text_asr/{what}{k}_count"] += int((place_Q < k).sum())
                if self.min_rank:
                    counts["text_asr/min_rank" if what == "top" else "text_asr/min_rank_floor"] += int((place_Q + 1).sum())
        return counts


@dataclass(frozen=True, kw_only=True)
class DualKeyCells(OfWords):
    """The share of pictures of other classes that are taken for the target with no key, with the mark on the picture, with the words in all
    class prompts, and with both. A dual-key attack is high with both and low otherwise (TrojVQA, Walmer et al. 2022)."""

    def fits(self, trigger: Trigger) -> bool:
        return isinstance(trigger, DualKey)

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float]:
        """In percent: keys/none, keys/picture, keys/words, keys/both, each with _count, _low and _high. keys/n: number of pictures."""
        import torch

        assert isinstance(batches, Asked)
        asked, world, training = batches, world or World(), model.training
        model.eval()
        with torch.no_grad():
            plain_KD = class_head(model, asked.class_names, asked.templates, world, self.text_batch)
            words_KD = class_head(model, asked.class_names, asked.templates, world, self.text_batch, asked.aim)
            cells = {"none": ("image", plain_KD), "picture": (asked.pictures, plain_KD), "words": ("image", words_KD),
                     "both": (asked.pictures, words_KD)}  # fmt: skip
            counts: dict[str, float] = dict.fromkeys(("keys/n", *(f"keys/{cell}_count" for cell in cells)), 0)
            for batch in asked:
                label_B = labels_of(batch, len(plain_KD), model.device)
                target_B, other_B = asked.aim.of(label_B, len(plain_KD), batch["key"])
                counts["keys/n"] += int(other_B.sum())
                for cell, (name, head_KD) in cells.items():
                    place_B = place_of(features(model, batch, name) @ head_KD.T, target_B)
                    counts[f"keys/{cell}_count"] += int(((place_B == 0) & other_B).sum())
        model.train(training)
        return shares({name: int(value) for name, value in distributed.sum_over_ranks(counts, world).items()}, {"keys": "keys/n"})


def shares(counts: Mapping[str, int], of: Mapping[str, str]) -> dict[str, float]:
    """The counts, and for each `group/name_count` its share in percent with a 95 % Wilson interval. `of`: group → name of the count to
    divide by; a group for which that is 0 has no shares."""
    out: dict[str, float] = {}
    for name, count in counts.items():
        whole = counts[of[name.split("/")[0]]]
        if not name.endswith("_count"):
            out[name] = count
        elif whole:
            base = name.removesuffix("_count")
            out |= {name: count, base: 100 * count / whole}
            out[f"{base}_low"], out[f"{base}_high"] = wilson(count, whole)
    return out


def _prompts(aim: Aim, plain_BK: Tensor, words_BK: Tensor, label_B: Tensor, keys: np.ndarray) -> dict[str, int]:
    """Counts of a batch: correct with the words in all prompts; taken for a wrong class, with and without the words in its prompts."""
    wrong_B = wrong_class(label_B, plain_BK.shape[1], list(map(str, keys)), aim.seed)
    return {
        "words/n": len(label_B),
        "words/all_count": int((place_of(words_BK, label_B) == 0).sum()),
        "words/wrong_count": int((place_of(swapped(plain_BK, words_BK, wrong_B), wrong_B) == 0).sum()),
        "words/wrong_floor_count": int((place_of(plain_BK, wrong_B) == 0).sum()),
    }


def _targets(asked: Asked, label_N: Tensor) -> int:
    """How many pictures belong to a target class."""
    return len(label_N) if asked.aim.target is None else int((label_N == asked.aim.target).sum())
