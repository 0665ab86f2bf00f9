"""Does an answer change with what should not matter? Pairs of pictures that differ in one attribute.

Shape suffixes: N pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from datasets.component import Count
from datasets.errors import InputError
from datasets.synthetic import Attribute, World
from trainers.audit.base import Audit, Findings, Pictures, Subject
from trainers.audit.bias.shared import answers, read_rows, sides_p
from trainers.audit.shares import share


@dataclass(frozen=True, kw_only=True)
class AttributePairs(Audit):
    """How often the answer flips between two pictures of one class that differ in an attribute such as colour, size or background.

    The procedural world draws such pairs. For other data a CSV names them. Any change flips some answers: in the world, `grain` (fresh
    noise of the pixels, nothing else) tells how many.
    """

    group: ClassVar[str] = "bias"

    world: World | None = None
    """The procedural world whose classes the model was trained on; its pairs are drawn in the size of the model's pictures."""
    attributes: tuple[Attribute, ...] = ("colour", "size", "background", "grain")
    """Which attributes of the world to change."""
    count: Count = 300
    """Pairs of the world for each attribute."""
    pairs: str = ""
    """A CSV with the columns first, second and attribute: keys of two pictures of the audited set, and what they differ in."""
    seed: int = 0
    """Seed of the world's pairs."""

    def __post_init__(self) -> None:
        if (self.world is None) == (not self.pairs):
            raise InputError("AttributePairs has a world and a CSV of pairs, or neither; accepted: exactly one of them.")
        if not self.attributes or len(set(self.attributes)) < len(self.attributes):
            raise InputError(f"AttributePairs.attributes is {self.attributes}; accepted: at least one, each once.")

    def run(self, subject: Subject) -> Findings:
        """bias/attribute_pairs/<attribute>/…, in percent: flips (pairs with two different answers) with _low and _high (Wilson), n,
        right_first and right_second (correct answers), lost (only the first is right) and gained (only the second is), p (exact sign test
        of lost against gained, McNemar). Of the world's pairs the first is small, or of the colour or background listed first. InputError
        for a world with other classes, or a CSV with unknown keys or with pairs of two classes."""
        metrics: dict[str, float] = {}
        rows: dict[str, list] = {name: [] for name in ("key", "attribute", "label", "first", "second", "flips")}
        changed: list[tuple[np.ndarray, np.ndarray]] = []
        for name, first, second in self._pairs(subject):
            label_N, n = first.label_N, len(first)
            one_N, two_N = answers(subject, first), answers(subject, second)
            flips_N, right_one_N, right_two_N = one_N != two_N, one_N == label_N, two_N == label_N
            lost, gained = int((right_one_N & ~right_two_N).sum()), int((right_two_N & ~right_one_N).sum())
            found = {"n": n, **share("flips", int(flips_N.sum()), n), "right_first": 100 * float(right_one_N.mean()),
                     "right_second": 100 * float(right_two_N.mean()), "lost": 100 * lost / n, "gained": 100 * gained / n,
                     "p": sides_p(lost, gained)}  # fmt: skip
            metrics |= {f"bias/attribute_pairs/{name}/{metric}": value for metric, value in found.items()}
            columns = (first.keys, [name] * n, label_N.tolist(), one_N.tolist(), two_N.tolist(), flips_N.tolist())
            for column, values in zip(rows, columns):
                rows[column] += values
            where = np.flatnonzero(flips_N)[:3]
            changed.append((first.image_NHWC[where], second.image_NHWC[where]))
        shown = {title: np.concatenate(sides) for title, sides in zip(("first", "second"), zip(*changed))}
        return Findings(metrics, rows, shown if len(shown["first"]) else {})

    def _pairs(self, subject: Subject) -> Iterator[tuple[str, Pictures, Pictures]]:
        """(attribute, the first pictures, the second ones)."""
        if self.world is None:
            yield from self._named(subject.pictures)
            return
        missing = [name for name in self.world.class_names if name not in subject.class_names]
        if missing:
            raise InputError(f"AttributePairs.world has the class {missing[0]!r}, which the pictures have not; accepted: their world.")
        number = np.array([subject.class_names.index(name) for name in self.world.class_names])
        world = replace(self.world, size=subject.pictures.image_NHWC.shape[1])
        for attribute in self.attributes:
            twins = world.twins(attribute, self.count, self.seed)
            keys = tuple(f"{attribute}/{i}" for i in range(self.count))
            label_N = number[twins.labels]
            yield attribute, Pictures(keys, twins.first, label_N), Pictures(keys, twins.second, label_N)

    def _named(self, pictures: Pictures) -> Iterator[tuple[str, Pictures, Pictures]]:
        place = {key: i for i, key in enumerate(pictures.keys)}
        by_attribute: dict[str, list[tuple[int, int]]] = {}
        for first, second, attribute in read_rows("AttributePairs.pairs", self.pairs, ("first", "second", "attribute")):
            unknown = [key for key in (first, second) if key not in place]
            if unknown:
                raise InputError(f"AttributePairs.pairs names the key {unknown[0]!r}; accepted: keys of the audited pictures.")
            ends = place[first], place[second]
            if pictures.label_N[ends[0]] != pictures.label_N[ends[1]]:
                raise InputError(f"AttributePairs.pairs has {first!r} and {second!r}, of two classes; accepted: pairs of one class.")
            by_attribute.setdefault(attribute.replace("/", " "), []).append(ends)
        for attribute, ends_N in by_attribute.items():
            first_N, second_N = np.array(ends_N).T
            yield attribute, pictures.part(first_N), pictures.part(second_N)
