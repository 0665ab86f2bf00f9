"""The report's rules for choosing a cleaned model, and the epochs whose checkpoints the rules may need.

Each rule takes the smallest qualifying model in a total order. So what it chooses among several trials is also what it chooses within that
trial, and a model that it does not choose among the epochs so far will never be chosen: its checkpoint may be removed. All shares are in
percent.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

ACCURACY, ASR = "zeroshot/top1", "asr/top1"
MASK = "decree/mask"
"""Metric of `trainers.evaluate.decree`; small in a backdoored model."""
LIMITS = (5, 10)
"""Limits on the ASR in percent, for the two rules that choose the most accurate model."""
POINTS_LOST = 1.0
"""How many points of accuracy the model with the lowest ASR may lose."""
PERCENT_LOST = 10.0
"""The same limit in percent of the uncleaned model's accuracy."""


class Measured(Protocol):
    """One model after one epoch of cleaning."""

    @property
    def accuracy(self) -> float: ...
    @property
    def asr(self) -> float: ...
    @property
    def epoch(self) -> int: ...
    @property
    def metrics(self) -> dict[str, Any]: ...
    @property
    def trial(self) -> str:
        """The model's trial. It breaks ties between models that are equal otherwise."""

    @property
    def returned(self) -> bool:
        """Whether the method returned this model instead of the one at the end of its training."""


M = TypeVar("M", bound=Measured)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule that chooses a model among the trials and epochs of one cleaning method."""

    key: str
    text: str
    oracle: bool
    """Whether the rule needs the attack's success rate, which a defender cannot measure."""
    choose: Callable[[Sequence[Any], Any], Any] = field(repr=False)
    """(candidates, the uncleaned model) → the choice, or None if no candidate qualifies."""
    metric: str = ""
    """A metric that the rule needs besides accuracy and ASR. Only models that have it qualify; if none has it, tables leave the rule
    out."""

    def concerns(self, points: Iterable[Any]) -> bool:
        """Whether a table of these models includes the rule."""
        return not self.metric or any(self.metric in point.metrics for point in points)


def most_accurate(limit: float) -> Callable[[Sequence[M], Any], M | None]:
    """Highest accuracy among the models with ASR ≤ limit; ties: lower ASR, then earlier epoch."""

    def choose(points: Sequence[M], start: Any) -> M | None:
        fit = [p for p in points if p.asr <= limit]
        return min(fit, key=lambda p: (-p.accuracy, p.asr, p.epoch, p.trial), default=None)

    return choose


def lowest_asr(points: Sequence[M], start: Any, lost: float = POINTS_LOST) -> M | None:
    """Lowest ASR among the models that lost at most `lost` points of accuracy; ties: higher accuracy, then earlier epoch."""
    fit = [p for p in points if start.accuracy - p.accuracy <= lost + 1e-9]
    return min(fit, key=lambda p: (p.asr, -p.accuracy, p.epoch, p.trial), default=None)


def lowest_asr_relative(percent: float) -> Callable[[Sequence[M], Any], M | None]:
    """Lowest ASR among the models that lost at most `percent` percent of the uncleaned model's accuracy."""
    return lambda points, start: lowest_asr(points, start, lost=start.accuracy * percent / 100)


def blind(points: Sequence[M], start: Any) -> M | None:
    """Highest accuracy, whatever the ASR; ties: later epoch, because a defender would train on."""
    return min(points, key=lambda p: (-p.accuracy, -p.epoch, p.trial), default=None)


def blind_last(points: Sequence[M], start: Any) -> M | None:
    """As `blind`, but only among each trial's last epoch: the choice of a defender who trains to the end and compares trials."""
    last: dict[str, M] = {}
    for point in points:
        if point.epoch >= last.get(point.trial, point).epoch:
            last[point.trial] = point
    return blind(list(last.values()), start)


def largest_mask(points: Sequence[M], start: Any) -> M | None:
    """Largest DECREE mask among the models that lost at most POINTS_LOST points of accuracy; ties: higher accuracy, then earlier epoch."""
    fit = [p for p in points if math.isfinite(p.metrics.get(MASK, math.nan)) and start.accuracy - p.accuracy <= POINTS_LOST + 1e-9]
    return min(fit, key=lambda p: (-p.metrics[MASK], -p.accuracy, p.epoch, p.trial), default=None)


RULES = (
    *(
        Rule(key=f"acc_at_asr_le_{limit}", text=f"best accuracy with ASR ≤ {limit} %", oracle=True, choose=most_accurate(limit))
        for limit in LIMITS
    ),
    Rule(key="asr_at_1pt_loss", text=f"lowest ASR at ≤ {POINTS_LOST:g} point of accuracy lost", oracle=True, choose=lowest_asr),
    Rule(
        key="asr_at_10pct_loss", text=f"lowest ASR at ≤ {PERCENT_LOST:g} % of the accuracy lost", oracle=True,
        choose=lowest_asr_relative(PERCENT_LOST),
    ),
    Rule(key="blind", text="most accurate, ASR not looked at", oracle=False, choose=blind),
    Rule(key="blind_last", text="most accurate last epoch, ASR not looked at", oracle=False, choose=blind_last),
    Rule(
        key="blind_decree", text=f"largest DECREE mask at ≤ {POINTS_LOST:g} point of accuracy lost, ASR not looked at", oracle=False,
        choose=largest_mask, metric=MASK,
    ),
)  # fmt: skip
RULE = {rule.key: rule for rule in RULES}


@dataclass(frozen=True)
class Epoch:
    """A line of a training's metrics, as a candidate for a rule."""

    epoch: int
    accuracy: float
    asr: float
    trial: str = ""
    returned: bool = False
    metrics: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


def measured(lines: Iterable[dict[str, Any]]) -> list[Epoch]:
    """Every epoch with finite accuracy and ASR, in order. Of two lines for one epoch the later counts. Lines of a helper model that was
    trained beside the stage's own (`Run.fit(aside=True)`) do not count."""
    by_epoch = {}
    for line in lines:
        if line.get("aside"):
            continue
        metrics = line.get("metrics", {})
        values = [metrics.get(name) for name in (ACCURACY, ASR)]
        if all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
            accuracy, asr = map(float, values)
            by_epoch[line["epoch"]] = Epoch(line["epoch"], accuracy, asr, returned=bool(line.get("returned")), metrics=metrics)
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def start_of(points: Sequence[M], start: str) -> M | None:
    """The pre-training epoch from which a cleaning starts; None if it is not among `points`.

    `start`: last | most_accurate (ignores the ASR; ties: later epoch) | the number of an epoch.
    """
    if start == "most_accurate":
        return blind([point for point in points if point.epoch > 0] or points, None)  # a training stores no checkpoint of epoch 0
    return next((point for point in reversed(points) if start in ("", "last", str(point.epoch))), None)


def results(points: Iterable[M]) -> list[M]:
    """The models of one cleaning: one after each epoch, or only the model that the method returned, if it differs from the training's last
    one."""
    cleaned = [point for point in points if point.epoch > 0]
    return [point for point in cleaned if point.returned] or cleaned


def chosen_epochs(lines: Iterable[dict[str, Any]], start: Epoch | None = None) -> set[int]:
    """The epochs of one cleaning that some rule chooses among those so far. `start` is the uncleaned model; the default is epoch 0."""
    points = measured(lines)
    start = start or next((p for p in points if p.epoch == 0), None) or Epoch(0, math.nan, math.nan)
    return {choice.epoch for rule in RULES if (choice := rule.choose(results(points), start)) is not None}
