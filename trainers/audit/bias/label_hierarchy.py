"""How wrong are wrong answers? Accuracy at each level of a tree of classes, and where a picture may be called by several.

Shape suffixes: N pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from datasets.errors import InputError
from datasets.evaluation.classes import imagenet_synsets
from datasets.words import NO_TREE, Hypernyms, hypernyms, imagenet_hypernyms, required_wordnet
from trainers.audit.base import Audit, Findings, Subject
from trainers.audit.bias.shared import answers, read_rows
from trainers.audit.shares import share


@dataclass(frozen=True, kw_only=True)
class LabelHierarchy(Audit):
    """Zero-shot accuracy where a mistake within a group of the tree is none: at each level, and for classes above or below the label.

    With `several`, a picture's answer also counts if it is any of the classes listed for it (as in Beyer et al. 2020, "Are we done with
    ImageNet?").
    """

    group: ClassVar[str] = "bias"

    tree: Literal["wordnet"] | tuple[tuple[str, str], ...] = "wordnet"
    """wordnet: WordNet's nouns, shipped for the classes of ImageNet-1k and looked up for other classes if WordNet is installed | (class or
    group, the group above it) for each"""
    several: str = ""
    """a CSV with the columns key and class: all classes that each picture shows, a row for each; empty: not measured"""

    def __post_init__(self) -> None:
        if isinstance(self.tree, tuple):
            check_tree(self.tree)

    def check(self, subject_classes: int, triggered: bool) -> None:
        if self.tree == "wordnet" and subject_classes != len(imagenet_synsets()):
            required_wordnet(*NO_TREE)

    def run(self, subject: Subject) -> Findings:
        """bias/label_hierarchy/…, in percent, with _low and _high (Wilson): exact (the label itself), related (the label, or a class above
        or below it), level/<d> (the same group d steps below the root; a class that lies higher stands for itself) with _groups, how many
        there are, and _chance, what an answer drawn from all classes would reach. Also n and depth; mistake_height, the mean height of the
        lowest group that holds answer and label, over the mistakes (Bertinetto et al. 2020), and mistake_height_chance, the same of answers
        drawn from the other classes. With `several`: multi_label and multi_label_or_related, over the n_multi_label pictures that it
        lists."""
        paths = paths_of(*self._tree(subject.class_names))
        given = subject.pictures
        answer_N, label_N = answers(subject, given), given.label_N
        n = len(given)
        same_N, related_KK = answer_N == label_N, related(paths)
        related_N = related_KK[answer_N, label_N]
        metrics: dict[str, float] = {"n": n, **share("exact", int(same_N.sum()), n), **share("related", int(related_N.sum()), n)}
        depth = max(map(len, paths)) - 1
        metrics["depth"] = depth
        for level in range(1, depth + 1):
            group_K = np.unique([path[min(level, len(path) - 1)] for path in paths], return_inverse=True)[1]
            right_N = group_K[answer_N] == group_K[label_N]
            metrics |= share(f"level/{level}", int(right_N.sum()), n) | {f"level/{level}_groups": int(group_K.max()) + 1}
            metrics[f"level/{level}_chance"] = 100 * float((group_K[label_N][:, None] == group_K).mean())
        height_KK = heights(paths)
        if not same_N.all():
            metrics["mistake_height"] = float(height_KK[answer_N, label_N][~same_N].mean())
            others = height_KK[label_N][~same_N].sum(1) - height_KK[label_N, label_N][~same_N]
            metrics["mistake_height_chance"] = float(others.mean() / (len(paths) - 1))
        rows = {
            "key": given.keys, "label": label_N.tolist(), "answer": answer_N.tolist(), "exact": same_N.tolist(),
            "related": related_N.tolist(), "height": height_KK[answer_N, label_N].tolist(),
        }  # fmt: skip
        if self.several:
            metrics |= self._multi(subject, answer_N, related_KK)
        return Findings({f"bias/label_hierarchy/{name}": value for name, value in metrics.items()}, rows)

    def _tree(self, names: tuple[str, ...]) -> tuple[Sequence[str], Mapping[str, str]]:
        """(the node of each class, the parent of each node)."""
        if self.tree == "wordnet":
            found: Hypernyms = imagenet_hypernyms() if _are_imagenets(names) else hypernyms(names)
            return found.nodes, found.parents
        parents = dict(self.tree)
        unknown = [name for name in names if name not in parents and name not in parents.values()]
        if unknown:
            raise InputError(f"LabelHierarchy.tree has no class {unknown[0]!r}; accepted: a tree with all classes, by their names.")
        return names, parents

    def _multi(self, subject: Subject, answer_N: np.ndarray, related_KK: np.ndarray) -> dict[str, float]:
        number: dict[str, list[int]] = {}
        for i, name in enumerate(subject.class_names):
            number.setdefault(name, []).append(i)  # names repeat
        shown: dict[str, list[int]] = {}
        for key, name in read_rows("LabelHierarchy.several", self.several, ("key", "class")):
            if name not in number:
                raise InputError(f"LabelHierarchy.several names the class {name!r}; accepted: the {len(number)} classes of the pictures.")
            shown.setdefault(key, []).extend(number[name])
        listed = [(answer, shown[key]) for answer, key in zip(answer_N, subject.pictures.keys) if key in shown]
        if not listed:
            raise InputError("LabelHierarchy.several lists none of the pictures; accepted: their keys.")
        among = sum(answer in classes for answer, classes in listed)
        near = sum(bool(related_KK[answer, classes].any()) for answer, classes in listed)
        n = len(listed)
        return {"n_multi_label": n, **share("multi_label", among, n), **share("multi_label_or_related", near, n)}


def check_tree(tree: tuple[tuple[str, str], ...]) -> None:
    """Raise InputError unless every node has one parent and no way up leads back to its start."""
    parents = dict(tree)
    if not tree or len(parents) < len(tree):
        twice = next((child for child, parent in tree if parents[child] != parent), "nothing" if not tree else tree[0][0])
        raise InputError(f"LabelHierarchy.tree gives {twice!r} no parent or more than one; accepted: one pair for each class and group.")
    for start in parents:
        above, seen = start, {start}
        while above in parents:
            above = parents[above]
            if above in seen:
                raise InputError(f"LabelHierarchy.tree leads from {start!r} up in a circle; accepted: a tree.")
            seen.add(above)


def paths_of(nodes: Sequence[str], parents: Mapping[str, str]) -> list[list[str]]:
    """From the root to each class. Where there are several roots, one without a name is put above them."""
    paths = []
    for node in nodes:
        path = [node]
        while path[-1] in parents:
            path.append(parents[path[-1]])
        paths.append(path[::-1])
    return paths if len({path[0] for path in paths}) == 1 else [["", *path] for path in paths]


def related(paths: Sequence[Sequence[str]]) -> np.ndarray:
    """bool [K, K]: one of the two classes is the other, or above it."""
    ids = {node: i for i, node in enumerate({node for path in paths for node in path})}
    number_K = np.array([ids[path[-1]] for path in paths])
    above_KK = np.zeros((len(paths), len(paths)), bool)
    for i, path in enumerate(paths):
        among = np.zeros(len(ids), bool)
        among[[ids[node] for node in path]] = True
        above_KK[i] = among[number_K]
    return above_KK | above_KK.T


def heights(paths: Sequence[Sequence[str]]) -> np.ndarray:
    """int64 [K, K]: how many steps the lowest group that holds both classes lies above the lowest class within it; 0 for a class and
    itself."""
    height: dict[str, int] = {}
    for path in paths:
        for steps, node in enumerate(reversed(path)):
            height[node] = max(height.get(node, 0), steps)
    depth = max(map(len, paths))
    ids = {node: i for i, node in enumerate(height)}
    padded_KL = np.array([[ids[node] for node in path] + [-1 - i] * (depth - len(path)) for i, path in enumerate(paths)])
    by_id, number_K = np.array(list(height.values())), np.array([ids[path[-1]] for path in paths])
    found = np.zeros((len(paths), len(paths)), np.int64)
    for i, path in enumerate(paths):
        shared = (padded_KL == padded_KL[i]).cumprod(1).sum(1).clip(max=len(path))  # steps that both ways have in common
        found[i] = by_id[padded_KL[i][shared - 1]]
        found[i, number_K == number_K[i]] = 0
    return found


def _are_imagenets(names: tuple[str, ...]) -> bool:
    if len(names) != len(imagenet_synsets()):
        return False
    from datasets.evaluation.classes import class_names

    return names == class_names("imagenet1k")
