"""NES: an attack that estimates gradients from answers alone (Ilyas, Engstrom, Athalye and Lin, 2018).

Shape suffixes: B pictures, P points, M pairs of points, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Interval, MultipleOf
from torch import Tensor

from datasets.component import Count, Natural, Positive
from datasets.errors import InputError
from trainers.audit.attacks.base import Attack, Attacked, Radius, margin, project
from trainers.audit.classifier import Classifier

CHUNK = 64
"""Most points that are classified at a time. A picture's points never share a batch with another's, so no result depends on batches."""
TRIES = 100
"""Most random pictures that are tried as a start."""
FIRST_CUT, LEAST_CUT = 0.5, 2e-3
"""Where the attack starts from another picture: by how much it first tries to shrink the distance, and the smallest such cut."""


@dataclass(frozen=True, kw_only=True)
class NES(Attack):
    """Steps along the sign of an estimated gradient, g = Σ (f(x + σu) − f(x − σu))·u / (2σm) over m random directions u.

    Every estimate takes `samples` = 2m queries and every step one more, to see whether it fools the classifier; then the attack stops. An
    estimate is averaged with those before it (`momentum`). The step is halved when the score of the last `plateau` estimates fell.

    What the attacker sees (`sees`):

    * scores: all logits. f is the best other logit minus the label's; with a target, the target's minus the best other one.
    * top_k: the probabilities of the k likeliest classes. f is the logarithm of the aimed-at class's probability; where that is not seen,
      of the smallest one seen. The attack starts from a picture of another class and moves it towards the original: the largest distance
      per pixel shrinks to ε while the class stays among the k.
    * labels: the likeliest class alone. f is the share of `probes` random pictures within `probe_radius` of a point that get the aimed-at
      class; otherwise as top_k with k = 1.

    top_k and labels need a start, a picture of the target class (`perturb`). Without a target they may do without: then random pictures
    are tried, at one query each. The zero-gradient share is that of the estimates.
    """

    eps: Radius = 0.05
    """largest change of a pixel"""
    sees: Literal["scores", "top_k", "labels"] = "scores"
    """what the attacker sees of an answer"""
    target: Natural | None = None
    """the class that pictures should be taken for; None: any but their own"""
    queries: Count = 10_000
    """most queries per picture"""
    samples: Annotated[int, Ge(2), MultipleOf(2)] = 50
    """points per estimate, in pairs x ± σu"""
    sigma: Positive = 1e-3
    """standard deviation of the directions"""
    lr: Annotated[float, Interval(gt=0, le=1)] = 0.01
    """first step per pixel"""
    min_lr: Annotated[float, Interval(gt=0, le=1)] = 5e-5
    """smallest step"""
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """weight of earlier estimates"""
    plateau: Annotated[int, Ge(2)] = 5
    """estimates after which the step is halved if the score fell over them"""
    k: Count = 5
    """with top_k: how many classes are seen"""
    probes: Count = 20
    """with labels: random pictures per point"""
    probe_radius: Positive = 1e-3
    """with labels: largest distance of these per pixel"""

    norm: ClassVar[str] = "linf"
    black_box: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.min_lr > self.lr:
            raise InputError(f"NES.min_lr is {self.min_lr}; accepted: at most NES.lr, {self.lr}.")
        if self.queries < self.cost + 2:
            raise InputError(f"NES.queries is {self.queries}; accepted: at least {self.cost + 2}, for a look, an estimate and a step.")

    @property
    def label(self) -> str:
        seen = {"scores": "", "top_k": f" top {self.k}", "labels": " labels"}[self.sees]
        return f"NES{seen}" if self.target is None else f"NES{seen} to {self.target}"

    @property
    def cost(self) -> int:
        """Queries of an estimate."""
        return self.samples * (self.probes if self.sees == "labels" else 1)

    @property
    def from_others(self) -> bool:
        """Whether it starts from pictures of other classes."""
        return self.sees != "scores"

    def check(self, classes: int) -> None:
        """InputError for fewer than two classes, or a target that is none of them."""
        if classes < 2:
            raise InputError(f"NES needs another class that a picture can be taken for, and there are {classes} classes.")
        if self.target is not None and self.target >= classes:
            raise InputError(f"NES.target is {self.target}; accepted: a class, 0 to {classes - 1}.")

    def perturb(
        self,
        classifier: Classifier,
        picture_BCHW: Tensor,
        label_B: Tensor,
        keys_B: Sequence[str],
        start_BCHW: Tensor | None = None,
    ) -> Attacked:
        """As for every attack. `start`: for each picture one of the target class, or without a target of any other class than its own;
        only top_k and labels use it. InputError if there is none and a target, or a target that is no class."""
        self.check(classifier.classes)
        if self.from_others and self.target is not None and start_BCHW is None:
            raise InputError(f"NES.sees is {self.sees!r} and NES.target a class: it must be given a picture of that class to start from.")
        found, queries, zero = list[Tensor](), list[int](), list[float]()
        with torch.no_grad():
            for number, (picture_CHW, label, key) in enumerate(zip(picture_BCHW, label_B.tolist(), keys_B)):
                run = _Run(self, classifier, picture_CHW, label, key)
                found.append(run.shrink(None if start_BCHW is None else start_BCHW[number]) if self.from_others else run.climb())
                queries.append(run.queries)
                zero.append(run.zero / run.estimates if run.estimates else float("nan"))
        queries_B, zero_B = torch.tensor(queries, dtype=torch.int64), torch.tensor(zero, dtype=picture_BCHW.dtype)
        return Attacked(torch.stack(found) if found else picture_BCHW, queries_B.to(label_B.device), zero_B.to(label_B.device))


def estimate(
    score: Callable[[Tensor], Tensor], picture_CHW: Tensor, direction_MCHW: Tensor, sigma: float
) -> tuple[Tensor, float]:
    """(the gradient of a score [P, C, H, W] → [P], estimated from pairs of points x ± σu; the mean score of the points).

    The points are cut to 0 … 1. So a pixel at either end is moved by half as much, and its gradient comes out half as large. For standard
    normal directions and a linear score of d pixels the cosine with the true gradient is about √(m/(m + d + 1)).
    """
    step_MCHW = sigma * direction_MCHW
    point_PCHW = torch.cat([picture_CHW + step_MCHW, picture_CHW - step_MCHW]).clamp(0, 1)
    score_P = score(point_PCHW)
    plus_M, minus_M = score_P.chunk(2)
    rise_M = (plus_M - minus_M) / (2 * sigma)
    return torch.einsum("m,mchw->chw", rise_M, direction_MCHW) / len(rise_M), float(score_P.mean())


class _Step:
    """The step size, halved when scores fall."""

    def __init__(self, attack: NES) -> None:
        self.attack, self.now, self.seen = attack, attack.lr, list[float]()

    def see(self, score: float) -> None:
        """Record an estimate's mean score."""
        self.seen = [*self.seen, score][-self.attack.plateau :]
        if len(self.seen) == self.attack.plateau and self.seen[-1] < self.seen[0]:
            self.now, self.seen = max(self.now / 2, self.attack.min_lr), []


class _Run:
    """The attack on one picture."""

    def __init__(self, attack: NES, classifier: Classifier, picture_CHW: Tensor, label: int, key: str) -> None:
        self.attack, self.classifier, self.key = attack, classifier, key
        self.picture_CHW, self.label = picture_CHW, label
        self.draw = attack.draw(key)
        self.step = _Step(attack)
        self.velocity_CHW = torch.zeros_like(picture_CHW)
        self.queries = self.estimates = self.zero = 0
        self.aim = attack.target
        """The class that top_k and labels keep."""

    def climb(self) -> Tensor:
        """From the original, with scores: the first picture that fools, else the one with the best score."""
        here_CHW = best_CHW = self.picture_CHW
        best = float("-inf")
        while True:
            logit_PK = self.ask(here_CHW[None])
            if self.fooled(logit_PK[0]):
                return here_CHW
            if (score := float(self.by_scores(logit_PK)[0])) > best:
                best, best_CHW = score, here_CHW
            if not self.affords(self.attack.cost + 1):
                return best_CHW
            self.look(here_CHW)
            here_CHW = self.near(here_CHW + self.step.now * self.velocity_CHW.sign(), self.attack.eps)

    def shrink(self, start_CHW: Tensor | None) -> Tensor:
        """From a picture of another class towards the original: the first one within ε that fools, else the last one, cut to ε."""
        here_CHW = self.begin(start_CHW)
        if here_CHW is None:
            return self.picture_CHW
        distance, cut = float((here_CHW - self.picture_CHW).abs().max()), FIRST_CUT
        if distance <= self.attack.eps:
            return here_CHW
        while self.affords(self.attack.cost + 1):
            self.look(here_CHW)
            found = None
            while found is None:
                nearer = max(distance - cut, self.attack.eps)
                found = self.kept(here_CHW, nearer)
                if cut == 0 or not self.affords(1):
                    break
                if found is None:
                    cut = cut / 2 if cut / 2 >= LEAST_CUT else 0.0
            if found is not None:
                (here_CHW, fooled), distance = found, nearer
                if fooled and distance <= self.attack.eps:
                    return here_CHW
                cut = min(2 * cut, FIRST_CUT)
            cut = max(cut, LEAST_CUT)
        return self.near(here_CHW, self.attack.eps)

    def begin(self, start_CHW: Tensor | None) -> Tensor | None:
        """The start, once it is known to be of the class aimed at; None if it is not, or none was found, or the original fools."""
        if self.fooled(self.ask(self.picture_CHW[None])[0]):
            return None
        for _ in range(TRIES if start_CHW is None else 1):
            if not self.affords(1):
                return None
            try_CHW = self.drawn(self.draw.random(self.picture_CHW.shape)) if start_CHW is None else start_CHW
            logit_K = self.ask(try_CHW[None])[0]
            if self.fooled(logit_K):
                self.aim = int(logit_K.argmax())
                return try_CHW
        return None

    def kept(self, here_CHW: Tensor, distance: float) -> tuple[Tensor, bool] | None:
        """(the picture one step on, within that distance of the original; whether it fools): the longest step that keeps the class, tried
        from the present step down by halves. None if there is none, or the queries are used up."""
        lr = self.step.now
        while self.affords(1):
            next_CHW = self.near(here_CHW + lr * self.velocity_CHW.sign(), distance)
            logit_K = self.ask(next_CHW[None])[0]
            if self.aim in self.seen(logit_K[None])[0].tolist():
                return next_CHW, self.fooled(logit_K)
            if lr / 2 < self.attack.min_lr:
                break
            lr /= 2
        return None

    def look(self, here_CHW: Tensor) -> None:
        """Estimate the gradient here and add it to those before."""
        scores = {"scores": self.by_scores, "top_k": self.by_probability}
        if self.attack.sees == "labels":
            score = self.by_robustness
        else:
            score = lambda point_PCHW: scores[self.attack.sees](self.ask(point_PCHW))
        shape = (self.attack.samples // 2, *here_CHW.shape)
        gradient_CHW, mean = estimate(score, here_CHW, self.drawn(self.draw.standard_normal(shape)), self.attack.sigma)
        self.estimates, self.zero = self.estimates + 1, self.zero + int((gradient_CHW == 0).all())
        self.velocity_CHW = self.attack.momentum * self.velocity_CHW + (1 - self.attack.momentum) * gradient_CHW
        self.step.see(mean)

    def by_scores(self, logit_PK: Tensor) -> Tensor:
        """How far each point is beyond the decision, from all logits [P]."""
        of_P = torch.full(logit_PK.shape[:1], self.label if self.aim is None else self.aim, device=logit_PK.device)
        return margin(logit_PK, of_P) if self.aim is None else -margin(logit_PK, of_P)

    def by_probability(self, logit_PK: Tensor) -> Tensor:
        """The logarithm of the class's probability [P]; where it is not among the k likeliest, of the least of those."""
        log_PK = logit_PK.log_softmax(1)
        own_P, least_P = log_PK[:, self.aim], log_PK.gather(1, self.seen(logit_PK))[:, -1]
        return torch.maximum(own_P, least_P)

    def by_robustness(self, point_PCHW: Tensor) -> Tensor:
        """The share of random pictures near each point that get the class [P]."""
        assert self.aim is not None, "only known once there is a start"
        shares = []
        for point_CHW in point_PCHW:
            noise = self.draw.uniform(-1, 1, (self.attack.probes, *point_CHW.shape))
            near_PCHW = (point_CHW + self.attack.probe_radius * self.drawn(noise)).clamp(0, 1)
            shares.append((self.ask(near_PCHW).argmax(1) == self.aim).to(point_CHW.dtype).mean())
        return torch.stack(shares)

    def seen(self, logit_PK: Tensor) -> Tensor:
        """The classes that the attacker sees, likeliest first, int64 [P, k]."""
        k = 1 if self.attack.sees == "labels" else min(self.attack.k, logit_PK.shape[1])
        return logit_PK.topk(k, dim=1).indices

    def fooled(self, logit_K: Tensor) -> bool:
        """Whether these are the logits of success."""
        got = int(logit_K.argmax())
        return got != self.label if self.attack.target is None else got == self.attack.target

    def near(self, picture_CHW: Tensor, distance: float) -> Tensor:
        """The picture, cut to that distance from the original."""
        return project(picture_CHW[None], self.picture_CHW[None], distance, "linf")[0]

    def drawn(self, value: np.ndarray) -> Tensor:
        """Random numbers as a tensor like the picture."""
        return torch.from_numpy(value).to(self.picture_CHW)

    def affords(self, more: int) -> bool:
        """Whether that many queries are left."""
        return self.queries + more <= self.attack.queries

    def ask(self, point_PCHW: Tensor) -> Tensor:
        """Logits [P, K], counted."""
        self.queries += len(point_PCHW)
        return torch.cat([self.classifier(part, [self.key] * len(part)) for part in point_PCHW.split(CHUNK)])
