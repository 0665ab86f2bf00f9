"""Which data set is a sample from? A classifier that can tell shows that sets differ (Torralba and Efros 2011, "Unbiased look at dataset
bias").

Shape suffixes: N samples of all sets, D columns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Interval
from PIL import Image

from datasets.component import Component, Positive
from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.index.source import Source
from datasets.seeding import hash64
from trainers.audit.base import Audit, Findings, Pictures, Subject
from trainers.audit.bias.shared import Linear, by_hash, chance_p, image_features, logistic
from trainers.audit.shares import share

ALARM = 0.001
"""The control fails below this p."""
SIDE = 32


class Samples(NamedTuple):
    """Samples of one set."""

    keys: tuple[str, ...]
    x: Any
    """What the classifier sees: an array [N, D], or N captions."""
    pictures: Pictures | None = None


@dataclass(frozen=True, kw_only=True)
class NameThatDataset(Audit):
    """A logistic regression is asked which set a sample is from; equally many samples of each set, so that chance is one in as many sets.

    Over pictures the sets are the test pictures, called `test`, and those of `sets`. Over captions they are the pre-training's captions,
    called `pretraining`, and those of `sources`. As a control each set is split by its keys into two halves that a second regression has to
    tell apart: it must be right by chance alone.
    """

    group: ClassVar[str] = "bias"

    over: Literal["pixels", "features", "captions"] = "features"
    """What is looked at: pixels (pictures of 32 × 32), features (the model's, of pictures), or captions (how often each word occurs)."""
    sets: tuple[EvalSet, ...] = ()
    """Further sets of pictures; without any, only the control is run."""
    sources: tuple[Source, ...] = ()
    """Further sets of captions."""
    count: Annotated[int, Ge(20)] = 1000
    """Samples of each set at most, those with the smallest hashes of their keys."""
    held_out: Annotated[float, Interval(ge=0.1, le=0.9)] = 0.3
    """Share of each set's samples that are only tested on, chosen by the hash of their keys."""
    grid: tuple[Positive, ...] = (1e-4, 1e-2, 1.0)
    """Inverse penalties C; of several the best is chosen on a fifth of the training samples, never on the test samples."""
    same_classes: bool = False
    """Whether the classes of `sets` are those of the test pictures, with the same numbers; then the drop from set to set is measured."""
    seed: int = 0
    """Seed of all choices of samples, which go by key."""

    def __post_init__(self) -> None:
        if not self.grid:
            raise InputError("NameThatDataset.grid is empty; accepted: at least one inverse penalty.")
        unused, why = ("sets", "pictures") if self.over == "captions" else ("sources", "captions")
        if getattr(self, unused):
            raise InputError(f"NameThatDataset.{unused} are {why}, and over is {self.over!r}; accepted: none.")
        if self.same_classes and (self.over == "captions" or not self.sets):
            raise InputError("NameThatDataset.same_classes is true, which needs `sets`, and over pixels or features.")

    def needs(self) -> tuple[Component, ...]:
        return self.sets

    def run(self, subject: Subject) -> Findings:
        """bias/name_that_dataset/<over>/…, in percent: accuracy with _low and _high (Wilson), chance, p (exact binomial test against
        chance), n tested samples, sets, each (samples of each set), C; recall/<set>; control/<set> with _low, _high, _n and _p. With
        `same_classes` also drop/<set>: how far a classifier of classes trained on that set falls on the others, as a share of its accuracy
        on its own, and self/<set>, others/<set>. InputError for a set with fewer than 20 samples."""
        samples = self._samples(subject)
        metrics: dict[str, float] = {}
        failures: list[str] = []
        for name, one in samples.items():
            found = self._control(name, one)
            metrics |= found
            if found[f"control/{name}_p"] < ALARM:
                told, p = found[f"control/{name}"], found[f"control/{name}_p"]
                failures.append(f"Over {self.over}, two halves of {name} are told apart in {told:.1f} %, where 50 % is due (p = {p:.1g}).")
        rows: Mapping[str, Sequence[Any]] = {}
        shown: dict[str, np.ndarray] = {}
        if len(samples) > 1:
            found, rows, shown = self._named(samples)
            metrics |= found
        if self.same_classes:
            metrics |= self._drops(samples)
        named = {f"bias/name_that_dataset/{self.over}/{name}": value for name, value in metrics.items()}
        return Findings(named, rows, shown, tuple(failures))

    def _samples(self, subject: Subject) -> dict[str, Samples]:
        """By the set's name: at most `count`, and equally many of each set."""
        if self.over == "captions":
            if subject.pairs is None:
                raise InputError("NameThatDataset.over is captions, which needs the pre-training's pairs, and this checkpoint has none.")
            first = subject.pairs.smallest(self.count, self.seed, "name that data set")
            texts = [("pretraining", subject.pairs.keys(first).to_pylist(), subject.pairs.captions(first).to_pylist())]
            for source in self.sources:
                table = source.index()[0]
                kept = table.filter([drop == "" for drop in table["drop"].to_pylist()])
                texts.append((_called(source.urls), kept["key"].to_pylist(), kept["caption"].to_pylist()))
            given = [(name, Samples(tuple(keys), np.array(captions, object))) for name, keys, captions in texts]
        else:
            sets = [("test", subject.pictures), *((one.name or _called(one.path), subject.sets[one]) for one in self.sets)]
            given = [(name, Samples(pictures.keys, None, pictures)) for name, pictures in sets]
        each = min(self.count, *(len(one.keys) for _, one in given))
        if each < 20:
            raise InputError(f"NameThatDataset needs at least 20 samples of each set; the smallest has {each}.")
        out: dict[str, Samples] = {}
        for name, one in given:
            chosen = by_hash(one.keys, self.seed, "name that data set")[:each]
            pictures = None if one.pictures is None else one.pictures.part(chosen)
            keys = tuple(one.keys[i] for i in chosen)
            x = one.x[chosen] if pictures is None else self._columns(subject, pictures)
            out[name if name not in out else f"{name} ({len(out)})"] = Samples(keys, x, pictures)
        return out

    def _columns(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        if self.over == "features":
            return image_features(subject, pictures.image_NHWC)
        small = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX) for image in pictures.image_NHWC]
        return np.stack([np.asarray(image) for image in small]).reshape(len(small), -1) / 255

    def _parts(self, keys: Sequence[str], name: str) -> np.ndarray:
        """bool [N]: which samples of a set are tested on."""
        test_N = np.zeros(len(keys), bool)
        test_N[by_hash(keys, self.seed, "tested", name)[: math.ceil(self.held_out * len(keys))]] = True
        return test_N

    def _told(self, parts: Sequence[tuple[Sequence[str], Any]], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, Linear]:
        """(which samples of all parts were tested [N], their parts, the probabilities of the parts, the regression)."""
        test_N = np.concatenate([self._parts(keys, name) for (keys, _), name in zip(parts, names)])
        part_N = np.repeat(np.arange(len(parts)), [len(keys) for keys, _ in parts])
        x_ND, keys = np.concatenate([x for _, x in parts]), [f"{i}/{key}" for i, (keys, _) in enumerate(parts) for key in keys]
        if self.over == "captions":
            from sklearn.feature_extraction.text import CountVectorizer

            x_ND = CountVectorizer(token_pattern=r"\b\w+\b").fit(x_ND[~test_N]).transform(x_ND).astype(np.float64)
        trained = [key for key, tested in zip(keys, test_N) if not tested]
        model = logistic(x_ND[~test_N], part_N[~test_N], trained, self.grid, self.seed, "inner")
        return test_N, part_N[test_N], model.scores(x_ND[test_N]), model

    def _control(self, name: str, one: Samples) -> dict[str, float]:
        """One set against itself."""
        order = by_hash(one.keys, self.seed, "halves", name)
        half = len(order) // 2
        parts = [([one.keys[i] for i in chosen], one.x[chosen]) for chosen in (order[:half], order[half : 2 * half])]
        _, part_N, score_NK, _ = self._told(parts, (f"{name}, half", f"{name}, other half"))
        count, n = int((score_NK.argmax(1) == part_N).sum()), len(part_N)
        return {**share(f"control/{name}", count, n), f"control/{name}_n": n, f"control/{name}_p": chance_p(count, n, 0.5)}

    def _named(self, samples: Mapping[str, Samples]) -> tuple[dict[str, float], dict[str, list], dict[str, np.ndarray]]:
        names = list(samples)
        test_N, part_N, score_NK, model = self._told([(one.keys, one.x) for one in samples.values()], names)
        answer_N = score_NK.argmax(1)
        right_N, n = answer_N == part_N, len(part_N)
        metrics = {
            **share("accuracy", int(right_N.sum()), n), "chance": 100 / len(names), "n": n, "sets": len(names),
            "p": chance_p(int(right_N.sum()), n, 1 / len(names)), "each": len(test_N) // len(names), "C": model.strength,
        }  # fmt: skip
        for number, name in enumerate(names):
            metrics |= {f"recall/{name}": 100 * float(right_N[part_N == number].mean())}
        keys = np.array([key for one in samples.values() for key in one.keys], object)[test_N]
        rows = {"key": keys.tolist(), "set": [names[i] for i in part_N], "answer": [names[i] for i in answer_N], "right": right_N.tolist()}
        shown = {}
        if self.over != "captions":
            image_NHWC = np.concatenate([one.pictures.image_NHWC for one in samples.values() if one.pictures is not None])[test_N]
            for number, name in enumerate(names):  # the most typical pictures of each set
                own = np.flatnonzero(part_N == number)
                shown[name] = image_NHWC[own[np.argsort(-score_NK[own, number], kind="stable")[:6]]]
        return metrics, rows, shown

    def _drops(self, samples: Mapping[str, Samples]) -> dict[str, float]:
        """A classifier of classes is trained on each set and tested on all (Torralba and Efros 2011, table 1)."""
        metrics: dict[str, float] = {}
        tested = {name: self._parts(one.keys, name) for name, one in samples.items()}
        for name, one in samples.items():
            assert one.pictures is not None
            train_N = ~tested[name]
            keys = [key for key, kept in zip(one.keys, train_N) if kept]
            model = logistic(one.x[train_N], one.pictures.label_N[train_N], keys, self.grid, self.seed, "classes").model
            accuracy = {
                other: 100 * float(model.score(its.x[tested[other]], its.pictures.label_N[tested[other]]))
                for other, its in samples.items() if its.pictures is not None
            }  # fmt: skip
            own = accuracy.pop(name)
            metrics |= {f"self/{name}": own, f"others/{name}": float(np.mean(list(accuracy.values())))}
            if own:
                metrics[f"drop/{name}"] = 100 * (own - metrics[f"others/{name}"]) / own
        return metrics


def _called(place: str | tuple[str, ...]) -> str:
    """A set's name from its path."""
    first = place if isinstance(place, str) else place[0]
    return os.path.basename(first.rstrip("/")) or f"{hash64(place):016x}"
