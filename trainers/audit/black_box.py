"""Audits by attackers who do not see the model: by questions, by another model's adversarial pictures, by an imitation of the model.

Only pictures that the model classifies correctly are attacked, and with a target only those of other classes.

Shape suffixes: B pictures, C channels, H and W height and width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from datasets.component import Component, Count, Natural, Positive
from datasets.errors import InputError
from datasets.seeding import hash64, rng
from trainers.audit import substitute
from trainers.audit.attacks.base import Attack, Attacked, Radius, gradient, is_zero, project, steepest
from trainers.audit.attacks.nes import NES
from trainers.audit.base import Audit, Findings, Pictures, Subject
from trainers.audit.classifier import Classifier, zero_shot
from trainers.audit.shares import beyond_chance, share
from trainers.audit.tables import NOBODY, Table, predictions, right_ones, success
from trainers.model import Model, TinyCLIP
from trainers.weights.files import weights_file
from trainers.weights.load import load_weights


@dataclass(frozen=True, kw_only=True)
class QueryCurve(Audit):
    """How many pictures a black-box attack turns within how many queries; beside it random noise of the same size, which asks nothing.

    Metrics are black_box/<name>/…: n; success, the share that was turned; within_<q>, the share turned within q queries; noise, the share
    that is turned by random noise as large as the attack's change; each in percent with its 95 % Wilson interval (_low, _high);
    median_queries, over the pictures that were turned (left out if there are none).
    """

    attack: Attack
    """NES, Square or another attack that only asks"""
    at: tuple[Count, ...] = (10, 30, 100, 300, 1000, 3000, 10_000)
    """numbers of queries"""
    name: str = ""
    """name in the metrics; empty: the attack's label"""
    seed: int = 0
    """seed of the noise, and of the choice of pictures from which an attack starts"""
    group: ClassVar[str] = "black box"

    def __post_init__(self) -> None:
        if not self.attack.black_box:
            raise InputError(f"QueryCurve.attack is {self.attack.label}, which uses gradients; accepted: an attack that only asks, as NES.")
        if list(self.at) != sorted(set(self.at)):
            raise InputError(f"QueryCurve.at is {self.at}; accepted: rising numbers of queries.")

    @property
    def label(self) -> str:
        return f"{self.name or self.attack.label} by queries"

    def check(self, subject_classes: int, triggered: bool) -> None:
        self.attack.check(subject_classes)

    def run(self, subject: Subject) -> Findings:
        table, classifier, told = Table(self.attack, subject), subject.classifier, 0
        bank = _Bank(subject, self.seed) if isinstance(self.attack, NES) and self.attack.from_others else None
        asked = 0
        for right, picture_BCHW, label_B in right_ones(subject, self.attack):
            before = classifier.queries
            if isinstance(self.attack, NES) and bank is not None:
                start_BCHW = bank.starts(right, self.attack.target)
                made = self.attack.perturb(classifier, picture_BCHW, label_B, right.keys, start_BCHW)
            else:
                made = self.attack.perturb(classifier, picture_BCHW, label_B, right.keys)
            asked, told = asked + classifier.queries - before, told + int(made.queries_B.sum())
            table.add(right, picture_BCHW, made, classifier, self.seed)
        prefix = f"black_box/{self.name or self.attack.label}"
        rows, n = table.rows, len(table.rows["key"])
        if not n:
            return Findings({f"{prefix}/n": 0.0}, rows, notes=(NOBODY,))
        queries = [count for count, turned in zip(rows["queries"], rows["success"]) if turned]
        metrics = {f"{prefix}/n": float(n)} | share(f"{prefix}/success", len(queries), n) | share(f"{prefix}/noise", table.by_noise, n)
        for most in self.at:
            metrics |= share(f"{prefix}/within_{most}", sum(count <= most for count in queries), n)
        if queries:
            metrics[f"{prefix}/median_queries"] = float(median(queries))
        failures = table.failures(self.attack.label)
        if asked != told:
            failures.append(f"{self.attack.label} reports {told} queries, but the model answered {asked}.")
        notes = []
        if bank is not None and bank.without:
            notes.append(f"{bank.without} of {n} pictures had no picture to start from, because the model classifies none of such a class "
                         "correctly; they count as not turned.")  # fmt: skip
        return Findings(metrics, rows, table.gallery(), tuple(failures), tuple(notes))


@dataclass(frozen=True, kw_only=True)
class SourceModel(Component):
    """Another model with the same classes. Unlike a given model's in an experiment its checkpoint is identified by its path alone."""

    model: Model | TinyCLIP
    checkpoint: str
    """absolute path of its weights: an epoch folder, or anything else that `evaluate --checkpoint` reads"""

    def __post_init__(self) -> None:
        if getattr(self.model, "pretrained", None):
            raise InputError("SourceModel.model.pretrained is set: the source starts from SourceModel.checkpoint alone, so leave it out.")
        if not os.path.isabs(self.checkpoint):
            raise InputError(f"SourceModel.checkpoint is {self.checkpoint!r}: give the absolute path, workers have other working folders.")

    @contextmanager
    def opened(self, subject: Subject) -> Iterator[Classifier]:
        """Within the block: its zero-shot classifier of the subject's classes. InputError if its pictures have another size."""
        if self.model.image_size != subject.encoder.image_size:
            raise InputError(f"SourceModel.model takes pictures of {self.model.image_size} pixels; accepted: {subject.encoder.image_size}, "
                             "as the model that is audited.")  # fmt: skip
        encoder = self.model.build(0)
        load_weights(encoder, self.checkpoint)
        encoder.to(subject.encoder.device).eval().requires_grad_(False)
        with zero_shot(encoder, subject.class_names, subject.templates) as classifier:
            yield classifier


@dataclass(frozen=True, kw_only=True)
class Transfer(Audit):
    """Adversarial pictures for one model, the source, shown to another, the audited one. Both must classify the pictures correctly.

    Metrics are transfer/<name>/…: n; source, the share that the source takes for another class; success, the share that the audited model
    does; carried, the share of those that turned the source which also turn the audited model (with carried_n); noise, the share that
    random noise of the same size turns; rate, success over source (left out if no picture turned the source). Intervals as for
    `QueryCurve`. The column queries counts questions to the source.
    """

    attack: Attack
    """any attack; it sees the source alone"""
    source: SourceModel | None = None
    """the model that the pictures are made for; None: the audited model itself, which gives the white-box rate"""
    name: str = ""
    """name in the metrics; empty: the attack's label"""
    seed: int = 0
    """seed of the noise"""
    group: ClassVar[str] = "black box"

    @property
    def label(self) -> str:
        return f"{self.name or self.attack.label} transferred"

    def check(self, subject_classes: int, triggered: bool) -> None:
        self.attack.check(subject_classes)
        if self.source is not None:
            weights_file(self.source.checkpoint)

    def run(self, subject: Subject) -> Findings:
        if self.source is None:
            return self._run(subject, subject.classifier)
        with self.source.opened(subject) as classifier:
            return self._run(subject, classifier)

    def _run(self, subject: Subject, source: Classifier) -> Findings:
        table, turned = Table(self.attack, subject), list[bool]()
        for right, picture_BCHW, label_B in right_ones(subject, self.attack, source):
            made = self.attack.perturb(source, picture_BCHW.to(source.dtype), label_B, right.keys)
            turned += success(source.predict(made.picture_BCHW, right.keys), label_B, self.attack).tolist()
            table.add(right, picture_BCHW, made, subject.classifier, self.seed)
        return _transferred(f"transfer/{self.name or self.attack.label}", table, turned, f"{self.attack.label}, transferred,")


@dataclass(frozen=True, kw_only=True)
class Substitute(Audit):
    """An attacker who sees labels alone trains a small network to imitate the model, and attacks with the network's FGSM (Papernot 2017).

    S₀ are `starts` of the pictures. In each round the network is trained further on all of S and the model's labels, then S grows to
    S ∪ {x + λ·sign ∂F_y(x)/∂x : x in S}, y the model's label of x and F_y the network's logit of it; after the last growth it is trained
    once more. This takes starts·2^rounds queries. Then every other picture that the model classifies correctly is moved by ε along the sign
    of the gradient of the network's cross-entropy, without a query, and shown to the model.

    Metrics are substitute/…: queries; starts, the pictures in S₀; agreement/<r>, the share of the other pictures that network and model
    classify alike after r rounds, with interval; agreement_n; and those of `Transfer`, the network being the source. The network is trained
    in floats: S takes 12·side² bytes a picture.
    """

    eps: Radius = 4 / 255
    """largest change of a pixel"""
    starts: Count = 64
    """pictures in S₀, at most half of all, chosen by the hash of their keys; the others are attacked"""
    rounds: Natural = 5
    """how often S is doubled"""
    lam: Annotated[float, Interval(gt=0, le=1)] = 0.1
    """λ, the change of a pixel when S grows"""
    epochs: Count = 10
    """passes over S per training"""
    lr: Positive = 1e-3
    """Adam's learning rate"""
    batch_size: Count = 32
    """pictures per step of the training"""
    width: Count = 32
    """channels of the network's first layer"""
    seed: int = 0
    """seed of the choice of S₀, of the network and of the noise"""
    group: ClassVar[str] = "black box"
    norm: ClassVar[str] = "linf"

    def run(self, subject: Subject) -> Findings:
        pictures, victim = subject.pictures, subject.classifier
        if len(pictures) < 2:
            raise InputError("Substitute needs at least 2 pictures: some to learn from and others to attack.")
        starts = min(self.starts, len(pictures) // 2)
        order = sorted(range(len(pictures)), key=lambda number: hash64(self.seed, "substitute", pictures.keys[number]))
        first, rest = pictures.part(np.array(order[:starts])), pictures.part(np.sort(order[starts:]))
        others = replace(subject, pictures=rest)
        theirs_N = predictions(victim, others)
        n, before, alike = len(theirs_N), victim.queries, list[Tensor]()
        for ours in self.imitations(victim, first, subject.batch_size):  # noqa: B007 (the last one is used below)
            alike.append(predictions(ours, others) == theirs_N)
        whole = {"queries": victim.queries - before, "starts": starts, "agreement_n": n}
        metrics = {f"substitute/{name}": float(count) for name, count in whole.items()}
        for number, alike_N in enumerate(alike):
            metrics |= share(f"substitute/agreement/{number}", int(alike_N.sum()), n)
        table, turned = Table(self, subject), list[bool]()
        for right, picture_BCHW, label_B in right_ones(others, self):
            made = self.step(ours, picture_BCHW, label_B, right.keys)
            turned += success(ours.predict(made.picture_BCHW, right.keys), label_B, self).tolist()
            table.add(right, picture_BCHW, made, victim)
        found = _transferred("substitute", table, turned, "the substitute's FGSM")
        failures, (first_N, last_N) = list(found.failures), (alike[0], alike[-1])
        if beyond_chance(int((first_N & ~last_N).sum()), int((last_N & ~first_N).sum())):
            failures.append(
                f"The substitute agrees with the model less after {self.rounds} rounds ({int(last_N.sum())} of {n} pictures) than before "
                f"the first ({int(first_N.sum())}): its training failed, so its attack says nothing about the model."
            )
        notes = list(found.notes)
        if starts < self.starts:
            notes.append(f"The substitute starts from {starts} pictures, not {self.starts}: the other half of them is attacked.")
        return replace(found, metrics={**metrics, **found.metrics}, failures=tuple(failures), notes=tuple(notes))

    def imitations(self, victim: Classifier, first: Pictures, at_a_time: int) -> Iterator[Classifier]:
        """The network after 0, 1, … `rounds` rounds. The victim is asked for each picture of S once."""
        draw_of = lambda number: rng(self.seed, "substitute", number)
        label_N = torch.empty(0, dtype=torch.int64, device=victim.device)
        s_NCHW = new_NCHW = first.floats(victim)
        net = substitute.network(victim.classes, self.width, hash64(self.seed, "substitute"), new_NCHW)
        ours = Classifier(lambda picture_BCHW, _: net(substitute.centred(picture_BCHW)), victim.classes, victim.device, victim.dtype)
        for number in range(self.rounds + 1):
            if number:
                new_NCHW = substitute.augmented(net, s_NCHW, label_N, self.lam)
                s_NCHW = torch.cat([s_NCHW, new_NCHW])
            names = [f"{key} {copy}" for copy in range(len(label_N) // len(first), len(s_NCHW) // len(first)) for key in first.keys]
            parts = zip(new_NCHW.split(at_a_time), range(0, len(names), at_a_time))
            label_N = torch.cat([label_N, *(victim.predict(part, names[at : at + len(part)]) for part, at in parts)])
            substitute.train(net, s_NCHW, label_N, self.epochs, self.lr, self.batch_size, draw_of(number))
            yield ours

    def step(self, ours: Classifier, picture_BCHW: Tensor, label_B: Tensor, keys: Sequence[str]) -> Attacked:
        """FGSM on the network: ε along the sign of the gradient of the cross-entropy."""
        with torch.enable_grad():
            x_BCHW = picture_BCHW.detach().requires_grad_()
            gradient_BCHW = gradient(F.cross_entropy(ours(x_BCHW, keys), label_B, reduction="none"), x_BCHW)
        moved_BCHW = project(picture_BCHW + self.eps * steepest(gradient_BCHW, self.norm), picture_BCHW, self.eps, self.norm)
        return Attacked(moved_BCHW, torch.zeros_like(label_B), is_zero(gradient_BCHW).to(picture_BCHW.dtype))


class _Bank:
    """The pictures that the model classifies correctly, from which an attack on another picture may start."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self.pictures, self.classifier, self.seed = subject.pictures, subject.classifier, seed
        right_N = predictions(subject.classifier, subject).cpu().numpy() == subject.pictures.label_N
        self.without = 0
        """How many pictures had no start so far."""
        self.order = sorted(np.flatnonzero(right_N), key=lambda number: subject.pictures.keys[number])

    def starts(self, part: Pictures, target: int | None) -> Tensor:
        """For each picture one of the target class, or without a target of another class than its own, drawn by its key; where there is
        none, the picture itself, from which no attack can start."""
        of, chosen = self.pictures.label_N, []
        own = {key: number for number, key in enumerate(self.pictures.keys)}
        for key, label in zip(part.keys, part.label_N.tolist()):
            fitting = [number for number in self.order if (of[number] == target if target is not None else of[number] != label)]
            self.without += not fitting
            chosen.append(fitting[rng(self.seed, "start", key).integers(len(fitting))] if fitting else own[key])
        return self.pictures.part(np.array(chosen)).floats(self.classifier)


def _transferred(prefix: str, table: Table, turned: Sequence[bool], who: str) -> Findings:
    """What an attack on a source did there (`turned`) and to the audited model. `who`: the attack in a sentence."""
    n, here, there = len(turned), table.successes, sum(turned)
    if not n:
        return Findings({f"{prefix}/n": 0.0}, table.rows, notes=(NOBODY,))
    metrics = {f"{prefix}/n": float(n)}
    for name, count in (("source", there), ("success", here), ("noise", table.by_noise)):
        metrics |= share(f"{prefix}/{name}", count, n)
    if there:
        both = sum(a and b for a, b in zip(turned, table.rows["success"]))
        metrics |= {f"{prefix}/rate": here / there, f"{prefix}/carried_n": float(there)} | share(f"{prefix}/carried", both, there)
    return Findings(metrics, table.rows, table.gallery(), tuple(table.failures(who)))
