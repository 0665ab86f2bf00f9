"""SafeCLIP (Yang et al. 2023): pre-training that matches pictures with captions only for pairs called safe by a mixture model of
cosines."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Interval

from datasets.component import Count, Natural, Positive, Share
from datasets.errors import InputError
from datasets.storage import write_whole
from trainers import distributed
from trainers.batch import image_tensor
from trainers.detect.merit import largest, poisons_among
from trainers.evaluate.analysis import EDGES
from trainers.methods.base import Method, Run
from trainers.methods.epoch import EpochPlan
from trainers.objectives.safeclip import CrossView, Split, Unimodal
from trainers.schedule import Training

if TYPE_CHECKING:
    from trainers.encoder import Encoder

FOLDER = "split"
"""Name of a folder in the stage's folder: it holds ρ of the first split and, for each epoch, the histogram of the cosines."""
FIRST = "first_share.json"
_PartOfAll = Annotated[float, Interval(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class SafeCLIP(Method):
    """Three phases, each with a new AdamW, a schedule counted from 0, and banks of random rows.

    1. `inmodal_epochs` epochs of `Unimodal` over all pairs.
    2. `filter_epochs` epochs of `CrossView` over all pairs at the constant rate `filter_lr`.
    3. The remaining epochs, at the stage's `lr`. Each first computes c = ⟨I, T⟩ of every pair, once, in evaluation mode and not augmented,
       and fits a mixture of two Gaussians to all c. The ρN pairs with the largest c are safe, the others risky. The epoch then takes one
       shuffled pass of `Unimodal` over the risky pairs, and one of `CrossView` over the safe ones.

    ρ of the first split is the share of pairs whose posterior of the component with the larger mean is at least `threshold`. Before each
    later split ρ ← min(ρ + `step`, `cap`). The posterior does not choose the pairs themselves, because that of the narrower component falls
    again at the largest c.

    An epoch has ⌊N/batch⌋ steps for any ρ, so the schedule is known from the start, and each step has pairs of one kind only. If the whole
    batches of both kinds make one step fewer, the kind with more pairs left over gets that step, filled up with pairs that it has already
    used. So each epoch leaves out fewer than a batch of pairs, others each time, and uses fewer than a batch twice.

    Source: the paper, and BigML-CS-UCLA/SafeCLIP, src/main.py and src/train.py, whose numbers are the defaults. Differences: pairs are
    chosen by c instead of the posterior; banks wrap around instead of dropping rows at their end; features are gathered with their
    gradient; no pair is scored twice; phase 3 has its own schedule; optimiser and banks start anew in each phase; the first view is the
    stage's.
    """

    inmodal_epochs: Count = 5
    """epochs of phase 1"""
    inmodal_lr: Positive = 5e-4
    """highest learning rate in phase 1"""
    inmodal_warmup_steps: Natural | None = None
    """warm-up steps of phase 1; None: as many as the stage's"""
    bank: Natural = 256
    """rows in each bank of earlier features; 0: no banks"""
    filter_epochs: Count = 1
    """epochs of phase 2"""
    filter_lr: Positive = 5e-6
    """constant learning rate of phase 2"""
    threshold: Annotated[float, Interval(gt=0, lt=1)] = 0.9
    """smallest posterior that counts towards ρ at the first split"""
    first_share: _PartOfAll | None = None
    """ρ of the first split; None: computed from the posterior"""
    step: Share = 0.01
    """added to ρ after each epoch of phase 3"""
    cap: _PartOfAll = 0.85
    """largest ρ of later splits"""

    def check(self, pairs: int) -> None:
        if self.bank > pairs:
            raise InputError(f"SafeCLIP.bank is {self.bank}, more than the {pairs} pairs that it is to train on.")

    def check_training(self, training: Training, pairs: int | None = None) -> None:
        before = self.inmodal_epochs + self.filter_epochs
        if training.epochs <= before:
            raise InputError(f"{training.slug}.epochs is {training.epochs}, but SafeCLIP has {self.inmodal_epochs} in-modal epochs and "
                             f"{self.filter_epochs} to filter before the first split: at least {before + 1}, or fewer of those.")
        if pairs is None:
            return
        steps = pairs // training.batch_size
        if steps < 2:
            raise InputError(f"SafeCLIP needs at least two batches of pairs, for safe and for risky ones; {pairs} pairs make {steps} of "
                             f"{training.batch_size}. Lower {training.slug}.batch_size.")
        warmup_field = "SafeCLIP.inmodal_warmup_steps" if self.inmodal_warmup_steps is not None else f"{training.slug}.warmup_steps"
        for field, warmup, epochs, phase in (
            (warmup_field, self._inmodal_warmup(training), self.inmodal_epochs, "in-modal"),
            (f"{training.slug}.warmup_steps", training.warmup_steps, training.epochs - before, "last"),
        ):
            if warmup >= epochs * steps:
                raise InputError(f"{field} is {warmup}, but the {phase} phase of SafeCLIP has only {epochs * steps} steps; the warm-up "
                                 "must end before the phase does.")

    def _inmodal_warmup(self, training: Training) -> int:
        return training.warmup_steps if self.inmodal_warmup_steps is None else self.inmodal_warmup_steps

    def train(self, model: Encoder, run: Run) -> Encoder:
        run.fit(model, Unimodal(bank=self.bank), epochs=self.inmodal_epochs, phase="in-modal", lr=self.inmodal_lr,
                warmup_steps=self._inmodal_warmup(run.training))  # fmt: skip
        run.fit(model, CrossView(), epochs=self.filter_epochs, phase="filter", lr=self.filter_lr, schedule="constant", warmup_steps=0)
        first = run.done

        def split(model: Encoder, epoch: int) -> EpochPlan:
            cosine_N, poisoned_N = similarities(model, run)
            if not run.world.main:
                return EpochPlan()
            assert run.folder is not None
            mixture, posterior_N = mixture_of(cosine_N)
            if epoch == first:
                known = self.first_share
                share = float((posterior_N >= self.threshold).mean()) if known is None else known
                _write(run, FIRST, json.dumps({"share": share}).encode())
            else:
                began = json.loads((run.folder / FOLDER / FIRST).read_text())["share"]
                share = share_of(began, epoch - first, self.step, self.cap)
            safe_N = largest(cosine_N, share)
            order, counts = order_of(safe_N, run.training.batch_size, run.rng(f"split {epoch}"))
            clean, poisoned = (np.histogram(cosine_N[kind].clip(-1, 1), EDGES)[0] for kind in (~poisoned_N, poisoned_N))
            kept = {"histogram/clean": clean, "histogram/poisoned": poisoned, "edges": EDGES}
            _write(run, f"epoch_{epoch + 1:04d}.npz", _arrays(kept))
            poisons = poisons_among("safe", safe_N, cosine_N, poisoned_N)
            numbers = {"rho": share, **mixture, **counts, "safe_n": safe_N.sum(), **poisons}
            metrics = {f"safeclip/{name}": float(value) for name, value in numbers.items()}
            return EpochPlan(values={"safe": safe_N}, order=order, metrics=metrics)

        return run.fit(model, Split(bank=self.bank), phase="split", begin_epoch=split)


def share_of(first: float, splits: int, step: float, cap: float) -> float:
    """ρ of a split: `first` for the first one (splits = 0), then min(first + splits·step, cap)."""
    return min(first + splits * step, cap) if splits else first


def similarities(encoder: Encoder, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(cosine float64 [N], poisoned bool [N]) of all pairs in order, computed in evaluation mode; the same on every rank and for any number
    of ranks. FloatingPointError if a cosine is not finite."""
    import torch

    parts: list[tuple[int, np.ndarray, np.ndarray]] = []
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        for batch in run.pairs():
            image_BD = encoder.encode_image(image_tensor(batch["image"], encoder.device))
            text_BD = encoder.encode_text(encoder.tokenize(list(batch["caption"])).to(encoder.device))
            parts.append((batch["number"], (image_BD * text_BD).sum(dim=1).double().cpu().numpy(), np.asarray(batch["poisoned"])))
    encoder.train(training)
    parts = sorted(distributed.gather_lists(parts, run.world), key=lambda part: part[0])
    cosine_N, poisoned_N = (np.concatenate([part[column] for part in parts]) for column in (1, 2))
    if not np.isfinite(cosine_N).all():
        raise FloatingPointError("SafeCLIP cannot split the pairs: the model's features are not finite")
    return cosine_N, poisoned_N


def mixture_of(cosine_N: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """A mixture of two Gaussians: its means, standard deviations and weights; and each pair's posterior of the component with the larger
    mean, float64 [N].

    Fitted until a step raises the mean log-likelihood by less than 1e-5; with scikit-learn's default of 1e-3 the weights still move at the
    end.
    """
    from sklearn.mixture import GaussianMixture

    fitted = GaussianMixture(2, covariance_type="full", tol=1e-5, max_iter=500, random_state=0).fit(cosine_N[:, None])
    order = np.argsort(fitted.means_[:, 0], kind="stable")
    values = {"mean": fitted.means_[:, 0], "sd": np.sqrt(fitted.covariances_[:, 0, 0]), "weight": fitted.weights_}
    summary = {f"{side}_{name}": float(value[at]) for side, at in zip(("low", "high"), order) for name, value in values.items()}
    return summary, fitted.predict_proba(cosine_N[:, None])[:, order[1]]


def order_of(safe_N: np.ndarray, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, int]]:
    """(int64 [⌊N/batch⌋ · batch], counts): the epoch's pairs, risky ones first, with one kind per step; and how many pairs no step uses
    ("left_out") and how many a step uses again ("repeated"). Needs at least two batches of pairs."""
    kinds = [rng.permutation(np.flatnonzero(safe_N == kind)) for kind in (False, True)]
    steps = [len(numbers) // batch for numbers in kinds]
    if sum(steps) < len(safe_N) // batch:  # whole batches of both kinds make one step fewer
        fillable = [kind for kind in (0, 1) if steps[kind]]  # a kind with less than a batch of pairs would repeat them within a step
        steps[max(fillable, key=lambda kind: len(kinds[kind]) % batch)] += 1
    order = np.concatenate([np.resize(numbers, count * batch) if count else numbers[:0] for numbers, count in zip(kinds, steps)])
    taken = len(np.unique(order))
    return order.astype(np.int64), {"left_out": len(safe_N) - taken, "repeated": len(order) - taken}


def _write(run: Run, name: str, content: bytes) -> None:
    assert run.folder is not None
    (run.folder / FOLDER).mkdir(parents=True, exist_ok=True)
    write_whole(run.folder / FOLDER / name, content)


def _arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()
