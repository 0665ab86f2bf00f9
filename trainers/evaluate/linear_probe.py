"""A linear probe: measures how good, and how poisoned, frozen features are.

Shape suffixes: N pictures for training, B of a batch, K classes, D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Interval

from datasets.component import Count, Positive
from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.feed.loader import Batch
from datasets.seeding import hash64
from trainers import distributed
from trainers.distributed import World
from trainers.evaluate.base import Evaluator, Material
from trainers.evaluate.features import features
from trainers.evaluate.zeroshot import TOP, class_recall, place_of, wilson

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Evaluator):
    """Logistic regression on the frozen unit features of a training set; reports accuracy on the test pictures and the probe's ASR.

    C is chosen by accuracy on a held-out part of the training set, never on the test set. Then the probe is fitted to the whole training
    set.
    """

    train: EvalSet
    """Pictures to train on, with the test set's classes; usually another `split` of the same set."""
    grid: tuple[Positive, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
    """Values of C to choose from, rising. C is the inverse strength of the L2 penalty."""
    held_out: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    """Share of the training pictures on which C is chosen, selected by the hash of their keys."""
    max_iter: Count = 1000
    """Largest number of solver steps (L-BFGS)."""
    seed: int = 0
    """Seed that selects the held-out part."""

    def __post_init__(self) -> None:
        if not self.grid or list(self.grid) != sorted(set(self.grid)):
            raise InputError(f"linear_probe.grid is {self.grid}; it is a list of numbers above 0, rising.")

    def needs(self) -> tuple[EvalSet, ...]:
        return (self.train,)

    def open(self, material: Material) -> Iterator[Batch]:
        """The training pictures, marked with `train`, then the test pictures."""
        common = {"target": material.target}
        for batch in material.sets[self.train]():
            yield batch | common | {"train": True}
        for batch in material.test():
            yield batch | common

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float]:
        """In percent: probe/top{1,5}, probe/mean_per_class, probe_asr/top{1,5,10}, probe_asr/floor, */top1_low, */top1_high. Whole numbers:
        */n, */*_count, probe/train_n. Also probe/C, probe/C_at_end (1: C is an end of the grid, and a wider grid might do better) and
        probe/converged (1 or 0)."""
        import torch

        world = world or World()
        training = model.training
        model.eval()
        local: list[tuple[str, int, np.ndarray]] = []
        head: tuple[Tensor, Tensor] | None = None
        counts: dict[str, float] = {}
        facts: dict[str, float] = {}
        with torch.no_grad():
            for batch in batches:
                if batch.get("train"):
                    found_BD = features(model, batch).double().cpu().numpy()
                    local += zip(map(str, batch["key"]), map(int, batch["label"]), found_BD)
                    continue
                if head is None:
                    head, facts = self._fit(local, model, world)
                for name, value in _count(model, head, batch).items():
                    counts[name] = counts.get(name, 0) + value
            if head is None:  # a rank without test pictures still takes part
                self._fit(local, model, world)
        model.train(training)
        parts = distributed.gather_lists([counts, facts], world)
        total = {name: int(sum(part.get(name, 0) for part in parts[::2])) for name in sorted({n for part in parts[::2] for n in part})}
        return {**_metrics(total), **next(part for part in parts[1::2] if part)}

    def _fit(
        self, own: list[tuple[str, int, np.ndarray]], model: Encoder, world: World
    ) -> tuple[tuple[Tensor, Tensor], dict[str, float]]:
        """((weights [K, D], bias [K]), facts), the same on all ranks. A class without training pictures has bias −∞."""
        import torch

        rows = sorted(distributed.gather_lists(own, world), key=lambda row: row[0])  # by key, so ranks and batches do not matter
        held_N = _held_out(self, rows)  # every rank calls this, so all raise
        fitted = _fit(self, rows, held_N) if world.main else None
        weight_KD, bias_K, facts = distributed.from_main(fitted, world)
        return (torch.from_numpy(weight_KD).to(model.device), torch.from_numpy(bias_K).to(model.device)), facts


def _held_out(probe: LinearProbe, rows: list[tuple[str, int, np.ndarray]]) -> np.ndarray:
    """bool [N]: the pictures on which C is chosen. Each class gives the same share, so that no class is missing from the rest. InputError
    for fewer than two classes or too few pictures."""
    label_N = np.array([label for _, label, _ in rows])
    if len(set(label_N.tolist())) < 2:
        raise InputError(f"the linear probe's training set {probe.train.path} has pictures of fewer than two classes.")
    hashes = np.array([hash64(probe.seed, "held-out", key) for key, _, _ in rows], np.uint64)
    held_N = np.zeros(len(rows), bool)
    for label in np.unique(label_N):
        of_class = np.flatnonzero(label_N == label)
        held_N[of_class[np.argsort(hashes[of_class], kind="stable")[: int(probe.held_out * len(of_class))]]] = True
    if not held_N.any():
        raise InputError(f"the linear probe's training set {probe.train.path} is too small to hold out {probe.held_out:.0%} of each class.")
    return held_N


def _fit(
    probe: LinearProbe, rows: list[tuple[str, int, np.ndarray]], held_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    label_N = np.array([label for _, label, _ in rows])
    feature_ND = np.stack([feature for _, _, feature in rows])

    def fit(strength: float, among_N: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=probe.max_iter).fit(feature_ND[among_N], label_N[among_N])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as probe/converged
        accuracy = [fit(strength, ~held_N).score(feature_ND[held_N], label_N[held_N]) for strength in probe.grid]
        chosen = probe.grid[int(np.argmax(accuracy))]  # the strongest penalty among equally accurate ones
        model = fit(chosen, np.ones(len(rows), bool))
    coefficients, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # for two classes scikit-learn stores one row
        coefficients, intercept = np.concatenate([-coefficients, coefficients]), np.concatenate([-intercept, intercept])
    weight_KD = np.zeros((int(label_N.max()) + 1, feature_ND.shape[1]))
    bias_K = np.full(len(weight_KD), -np.inf)
    weight_KD[model.classes_], bias_K[model.classes_] = coefficients, intercept
    facts = {
        "probe/C": chosen,
        "probe/C_at_end": float(len(probe.grid) > 1 and chosen in (probe.grid[0], probe.grid[-1])),
        "probe/converged": float(model.n_iter_.max() < probe.max_iter),
        "probe/train_n": len(rows),
    }
    return weight_KD, bias_K, facts


def _count(model: Encoder, head: tuple[Tensor, Tensor], batch: dict[str, Any]) -> dict[str, float]:
    import torch

    weight_KD, bias_K = head

    def place(feature_BD: Tensor, class_B: Tensor) -> Tensor:
        """How many classes rank before the given one; more than there are if it has no training pictures."""
        score_BK = feature_BD.double() @ weight_KD.T + bias_K
        known_B = class_B < len(bias_K)
        place_B = place_of(score_BK, torch.where(known_B, class_B, 0))
        known_B &= bias_K[torch.where(known_B, class_B, 0)].isfinite()
        return torch.where(known_B, place_B, len(bias_K) + max(TOP))

    label_B = torch.tensor(np.asarray(batch["label"], np.int64), device=model.device)
    clean_BD = features(model, batch)
    place_B = place(clean_BD, label_B)
    counts: dict[str, float] = {f"probe/top{k}_count": int((place_B < k).sum()) for k in (1, 5)}
    counts["probe/n"] = len(label_B)
    for label, hit in zip(label_B.tolist(), (place_B == 0).tolist()):
        counts[f"class/{label}/n"] = counts.get(f"class/{label}/n", 0) + 1
        counts[f"class/{label}/hits"] = counts.get(f"class/{label}/hits", 0) + hit
    target = batch.get("target")
    if target is not None:
        other_B = label_B != target
        target_B = torch.full_like(label_B, target)
        hit_B = place(features(model, batch, "image_triggered"), target_B)
        counts |= {f"probe_asr/top{k}_count": int(((hit_B < k) & other_B).sum()) for k in TOP}
        counts["probe_asr/n"] = int(other_B.sum())
        counts["probe_asr/floor_count"] = int(((place(clean_BD, target_B) == 0) & other_B).sum())
    return counts


def _metrics(counts: dict[str, int]) -> dict[str, float]:
    if not counts.get("probe/n"):
        raise InputError("the evaluation set holds no pictures")
    if counts.get("probe_asr/n") == 0:
        raise InputError("every evaluation picture has the target's label, so no attack success rate can be measured")
    out: dict[str, float] = {"probe/mean_per_class": class_recall(counts)}
    for name, count in counts.items():
        group = name.split("/")[0]
        if group != "class":
            out[name] = count
        if name.endswith("_count"):
            out[name.removesuffix("_count")] = 100 * count / counts[f"{group}/n"]
        if name.endswith("/top1_count"):
            out[f"{group}/top1_low"], out[f"{group}/top1_high"] = wilson(count, counts[f"{group}/n"])
    return out
