"""Measures on a checkpoint, without further training, whether scores of training pairs find the poison."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from annotated_types import Interval

from datasets.component import Count
from datasets.errors import InputError
from datasets.feed.decode import ahead
from datasets.feed.loader import Batch, Recipe, make_batch
from datasets.index.pairs import Pairs
from trainers import distributed
from trainers.batch import image_tensor
from trainers.detect.base import Features, Score, poisons_per_k
from trainers.detect.early_loss import EarlyLoss
from trainers.detect.merit import figures
from trainers.detect.scoring import Scorer, first_positions
from trainers.distributed import World
from trainers.evaluate.analysis import looking
from trainers.evaluate.base import Evaluator, Material

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Detection(Evaluator):
    """How well scores separate poisoned training pairs from clean ones, computed with the measured model. All metrics are under
    detect/<score>/.

    Embeds every pair that the model was pre-trained on, not augmented, in fp32 or better. `pairs` limits the number.
    """

    scores: tuple[Score, ...]
    caught_at: tuple[Annotated[float, Interval(gt=0, le=100)], ...] = (1.0, 5.0, 10.0)
    """Victims are counted among this percent of all pairs, the most suspect ones."""
    pairs: Count | None = None
    """How many pairs to use, those with the smallest hashes of (seed, key); None: all."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.scores:
            raise InputError("Detection.scores is empty; name at least one score.")
        names = [score.name for score in self.scores]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"Detection.scores has {name!r} {names.count(name)} times; accepted: each once.")
        if any(isinstance(score, EarlyLoss) for score in self.scores):
            raise InputError("Detection.scores has EarlyLoss, which needs several checkpoints; it scores pairs in a Keep.")

    def check_pairs(self, pairs: int) -> None:
        """Raise InputError if there are too few pairs."""
        if self.pairs is not None and self.pairs > pairs:
            raise InputError(f"Detection.pairs is {self.pairs}, but there are only {pairs} pairs.")
        for score in self.scores:
            score.check(self.pairs or pairs, f"Detection.scores: {score.label}")

    def open(self, material: Material) -> Iterable[Batch]:
        pairs, world = material.pairs, material.world
        if self.pairs is not None:
            chosen = pairs.smallest(self.pairs, self.seed, "detection")
            pairs = Pairs(pairs.index, pairs.urls, pairs.plan, pairs.rows_at(chosen))
        return scored_batches(pairs, self.scores, material.recipe, material.batch_size, world.rank, world.size)

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float]:
        """Metrics as named in docs/metrics.md. FloatingPointError if features or scores are not finite."""
        scored = score_pairs(model, batches, self.scores, world or World())
        values: dict[str, float] = {}
        for score in self.scores:
            merits = scored.merit(score, self.caught_at, self.seed)
            values |= {f"detect/{name}/{key}": value for name, numbers in merits.items() for key, value in numbers.items()}
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """The scores of N pairs."""

    position_N: np.ndarray
    """int64, rising"""
    victim_N: np.ndarray
    """bool"""
    suspicion: dict[Score, np.ndarray]
    """Score → float64 [N], high is suspect."""
    clamped: dict[Score, int]
    """As `Scorer.clamped`."""
    poisons: dict[Score, int]
    """As `Scorer.poisons`."""

    def merit(self, score: Score, shares: Sequence[float], seed: int) -> dict[str, dict[str, float]]:
        """Name → figures of merit and counts. A score whose low values may be suspect has a second name for these, `<name>_low`."""
        suspicion_N, victims = self.suspicion[score], int(self.victim_N.sum())
        counts: dict[str, float] = {"n": len(self.victim_N), "victims": victims}
        if score.drawn[0]:
            counts |= {"reference_poisons": self.poisons[score], "expected_poisons": victims * score.drawn[0] / len(self.victim_N)}
        if score.depth:
            counts |= {"poisons_per_k": poisons_per_k(score, len(self.victim_N), victims), "clamped": self.clamped[score]}
        values = {score.name: figures(suspicion_N, self.victim_N, shares, seed) | counts}
        if score.both_tails:
            values[f"{score.name}_low"] = figures(-suspicion_N, self.victim_N, shares, seed)
        return values


def scored_batches(
    pairs: Pairs, scores: Sequence[Score], recipe: Recipe, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """This rank's batches: first the pairs that scores compare with (`first` is true), then all pairs, as in training but not augmented.
    position int64 [B], key and caption object [B], image uint8 [B, S, S, 3], victim bool [B]."""
    plain = replace(recipe, views=replace(recipe.views, crop=None, flip=False), two_views=False)
    victim_N = victims(pairs)
    parts = [
        (name, own_N[start : start + batch_size])
        for name, position_N in (("first", first_positions(scores, pairs, victim_N)), ("all", np.arange(len(pairs))))
        for own_N in [position_N[rank::world]]
        for start in range(0, len(own_N), batch_size)
    ]

    def make(number: int) -> Batch:
        name, position_B = parts[number]
        batch = make_batch(pairs.records(position_B), 0, plain)
        return {"first": name == "first", "position": position_B, "victim": victim_N[position_B], **batch}

    return ahead(make, range(len(parts)))


def victims(pairs: Pairs) -> np.ndarray:
    """bool [N]: whether each pair is a victim in the plan; a dual key's partial negatives are not."""
    if not pairs.plan:
        return np.zeros(len(pairs), bool)
    plan = pq.read_table(pairs.plan, columns=["row", "target"])
    return np.isin(pairs.rows, plan.filter(pc.not_equal(plan["target"], ""))["row"].to_numpy())


def score_pairs(model: Encoder, batches: Iterable[Batch], scores: Sequence[Score], world: World) -> Scores:
    """The scores of all ranks' pairs, on every rank. The model is left unchanged. `batches`: from `scored_batches`.

    Holds in memory the features of the first pairs and of one batch.
    """
    with looking(model):
        first, others = [], iter(batches)
        for batch in others:
            if not batch["first"]:
                others = itertools.chain([batch], others)
                break
            seen = embed(model, batch)
            first.append((seen.keys, seen.image_BD.cpu().numpy(), seen.text_BD.cpu().numpy(), batch["victim"]))
        gathered = distributed.gather_lists(first, world)
        scorer = Scorer(scores, *_joined(model, gathered))
        parts = [(batch["position"], batch["victim"], scorer.of(embed(model, batch))) for batch in others]
    parts = distributed.gather_lists(parts, world)
    total = distributed.sum_over_ranks({str(number): scorer.clamped[score] for number, score in enumerate(scores)}, world)
    position_N = np.concatenate([position_B for position_B, _, _ in parts])
    order = np.argsort(position_N)
    return Scores(
        position_N=position_N[order],
        victim_N=np.concatenate([victim_B for _, victim_B, _ in parts])[order],
        suspicion={score: np.concatenate([suspicion[score] for _, _, suspicion in parts])[order] for score in scores},
        clamped={score: int(total[str(number)]) for number, score in enumerate(scores)},
        poisons=scorer.poisons,
    )


def embed(model: Encoder, batch: Batch) -> Features:
    """The model's features of a batch. FloatingPointError if they are not finite."""
    image_BD = model.encode_image(image_tensor(batch["image"], model.device), unit=False)
    text_BD = model.encode_text(model.tokenize(list(batch["caption"])).to(model.device), unit=False)
    if not (image_BD.isfinite().all() and text_BD.isfinite().all()):
        raise FloatingPointError("the model's features of training pairs are not finite")
    return Features(keys=batch["key"], image_BD=image_BD, text_BD=text_BD, logit_scale=float(model.model.logit_scale.exp()))


def _joined(model: Encoder, parts: list[tuple[np.ndarray, ...]]) -> tuple[Features, np.ndarray]:
    """All ranks' features of the first pairs, and which pairs are victims; empty if no score has a reference."""
    import torch

    keys, image_FD, text_FD, victim_F = (np.concatenate(column) for column in zip(*parts)) if parts else _nothing()
    on = {"image_BD": torch.from_numpy(image_FD).to(model.device), "text_BD": torch.from_numpy(text_FD).to(model.device)}
    return Features(keys=keys, logit_scale=float(model.model.logit_scale.exp()), **on), victim_F


def _nothing() -> tuple[np.ndarray, ...]:
    return np.zeros(0, object), np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32), np.zeros(0, bool)

