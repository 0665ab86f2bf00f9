"""What a reader must know before believing a table or a figure, one sentence each."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.failures import DIVERGED, SAID
from orchestrator.results.names import called, hyperparameters, is_number, is_seed, short_paths, value_at, value_text
from orchestrator.results.once import once
from orchestrator.results.outcome import StageResult, Study, TrialResult
from orchestrator.results.points import GIVEN, cleaned_points, panels, plans_cleaning, points_of, repetitions
from orchestrator.results.selection import Choice, Row, table

MARGIN = 0.1
"""A drawn value counts as lying at the end if its distance from a bound is less than this share of the range."""


@dataclass(frozen=True, kw_only=True)
class Caution:
    """One warning, and the panels whose figures it concerns (none: all of them)."""

    text: str
    panels: tuple[str, ...] = ()
    gate: bool = False
    where: tuple[tuple[str, str], ...] = ()
    """The (panel, method) pairs that it holds for, if not for all; `text` does not name them."""

    def told(self, panel: str = "") -> str:
        """The sentence, about one panel or all."""
        named = [f"{method} on {label}" if not panel else method for label, method in self.where if panel in ("", label)]
        return f"{self.text}: {'; '.join(named)}." if named else self.text


@dataclass(frozen=True, kw_only=True)
class End:
    """A chosen value at an end of the values that were tried: a value beyond it might be better."""

    setting: str
    """`lr = 0.004, the largest tried (0.001 … 0.004)`"""
    drawn: bool
    path: str


def warnings(study: Study, gates: bool = True) -> list[str]:
    """All cautions of a study as text, the most serious first; `gates=False` leaves out the verdicts of the attack gate."""
    return [caution.told() for caution in cautions(study) if gates or not caution.gate]


def beside(panel: str, found: list[Caution]) -> list[str]:
    """The cautions that belong beside a panel's figure, shortened to what concerns it."""
    return [caution.told(panel) for caution in found if panel in caution.panels and not caution.gate]


@once
def cautions(study: Study) -> list[Caution]:
    """Failed gates, broken trials, empty choices, ends of grids, unequal evaluations, too few seeds."""
    rows = table(study)
    result = [*_gates(study), *_broken(study), *_several(study), *_missed(rows), *_ends(study, rows)]
    sizes = {_pictures(p.metrics) for stage in [*study.pretrains, *study.trials] for p in points_of(stage)}
    if len(sizes) > 1:
        result.append(
            Caution(text="The evaluations differ in their number of images: some points are not comparable with others.")
        )
    return [*result, *_few_seeds(study, rows)]


def _pictures(metrics: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """The number of pictures behind each metric. With several attacks `asr/n` is left out: `asr/` is then that of the strongest attack."""
    several = any(re.fullmatch(r"asr/[^/]+/n", name) for name in metrics)
    return tuple(sorted((name, metrics[name]) for name in metrics if re.fullmatch(r"(zeroshot|asr(/[^/]+)?)/n", name)
                        and not (several and name == "asr/n")))  # fmt: skip


def ends(study: Study, row: Row, choice: Choice) -> Iterator[End]:
    """The numbers of the chosen trial that are the smallest or largest of those tried.

    A value counts as tried if a trial with it gave a point in the repetition of the choice. Only trials that equal the chosen one in all
    other fields are compared; if no other trial does (values were drawn, or vary together), all trials are.
    """
    chosen = choice.trial
    assert chosen
    settings_of = {trial.fingerprint: hyperparameters(trial) for trial in row.trials}
    names = short_paths(list(dict.fromkeys(path for settings in settings_of.values() for path in settings)))
    seeds = repetitions(study, row.trials)
    siblings = [t for t in row.trials if t.pretrain == chosen.pretrain and seeds[t.fingerprint] == choice.repetition]

    def ran_with(trial: TrialResult, path: str) -> Any:
        settings = settings_of[trial.fingerprint]
        return settings[path] if path in settings else value_at(trial, path)  # a trial of another sweep, which did not vary it

    values = [{path: ran_with(trial, path) for path in names} for trial in [chosen, *filter(cleaned_points, siblings)]]
    for path, value in values[0].items():
        if is_seed(path) or not is_number(value) or len({str(ran_with(trial, path)) for trial in siblings}) < 2:
            continue
        others = [other for other in names if other != path and not is_seed(other)]
        alike = [settings for settings in values if all(settings[other] == values[0][other] for other in others)]
        tried = _tried(alike, path) if len(_tried(alike, path)) > 1 else _tried(values, path)
        range_ = _range(study, chosen, path)
        if range_:
            if not MARGIN <= _share(value, *range_) <= 1 - MARGIN:
                bounds = f"{value_text(range_[0])} … {value_text(range_[1])}"
                yield End(setting=f"{names[path]} = {value_text(value)}, drawn from {bounds}", drawn=True, path=path)
        elif value in (tried[0], tried[-1]):
            end = "smallest" if value == tried[0] else "largest"
            within = f"{value_text(tried[0])} … {value_text(tried[-1])}" if len(tried) > 2 else "of two values"
            text = f"the {end} tried ({within})" if len(tried) > 1 else "the only one that gave a point"
            yield End(setting=f"{names[path]} = {value_text(value)}, {text}", drawn=False, path=path)


def _tried(found: list[dict[str, Any]], path: str) -> list[float]:
    return sorted({values[path] for values in found if is_number(values[path])})


def _range(study: Study, trial: TrialResult, path: str) -> tuple[float, float] | None:
    """Bounds of the space that the trial's value was drawn from; None for a grid. In joined sweeps each trial has its own space."""
    spaces = study.config.get("spaces", {})
    space = spaces.get(trial.fingerprint, study.config.get("space"))
    described = space.get(path) if isinstance(space, dict) else None
    if not isinstance(described, dict) or not is_number(described.get("lower")) or not is_number(described.get("upper")):
        return None
    return float(described["lower"]), float(described["upper"])


def _share(value: float, low: float, high: float) -> float:
    """The place of a value between two bounds, 0 to 1; on a logarithmic scale if they span more than a decade."""
    if low > 0 and high / low > 10:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low) if high > low else 0.5


def _several(study: Study) -> Iterator[Caution]:
    if attacks := list(study.poison.get("found", {})):
        names = ", ".join(attacks)
        yield Caution(text=f"There are {len(attacks)} attacks ({names}): the ASR shown is that of the one that succeeds most at that "
                      "moment. Each has its own under what one would keep, in points.csv and in MLflow, asr/<attack>/top1.")  # fmt: skip


def _gates(study: Study) -> Iterator[Caution]:
    so = "so its cleanings show nothing of a defence" if plans_cleaning(study) else "or the pre-training is a defence that kept it out"
    for panel in panels(study):
        for stage in panel.pretrains:
            gate = study.gates.get(stage.fingerprint)
            if gate is None and stage.status == "finished":
                yield Caution(text=f"{called(stage)}: the attack gate was not evaluated.", panels=(panel.label,), gate=True)
            elif gate and not gate.get("passed"):
                reasons = "; ".join(str(reason).rstrip(".") for reason in gate.get("reasons", [])) or "no reason was given"
                text = f"{called(stage)}: the attack did not take, {so}. {reasons}."
                yield Caution(text=text, panels=(panel.label,), gate=True)


def _broken(study: Study) -> Iterator[Caution]:
    where = {stage.fingerprint: panel.label for panel in panels(study) for stage in panel.pretrains}
    stages: list[StageResult] = [*study.pretrains, *study.trials]
    for stage in stages:
        label = where.get(stage.pretrain if isinstance(stage, TrialResult) else stage.fingerprint)
        concerned = (label,) if label else ()
        bad = _not_finite(stage)
        if stage.status == "failed":
            reason = (stage.error or "no reason was recorded").strip().splitlines()[0]
            yield Caution(text=f"{called(stage)} {SAID.get(stage.failure, 'failed')}: {reason}", panels=concerned)
        elif bad:
            yield Caution(text=f"{called(stage)} diverged: {', '.join(bad)} stopped being finite numbers.", panels=concerned)
    if stopped := sum(trial.status == "stopped" for trial in study.trials):
        yield Caution(text=f"The scheduler stopped {stopped} of {len(study.trials)} trials early; later epochs are not known.")
    if study.missing:
        yield Caution(text=f"{study.missing} cleanings have not been begun: the table knows only the others.")
    if running := sum(stage.status == "running" for stage in stages):
        yield Caution(text=f"{running} stages have not finished: this page shows them as far as they are.")


def _missed(rows: list[Row]) -> Iterator[Caution]:
    missed = []
    for row in rows:
        if row.rule.key == "acc_at_asr_le_5" and len(row.reached) < len(row.choices):
            count = f" (in {len(row.choices) - len(row.reached)} of {len(row.choices)} repetitions)"
            missed.append((row.panel.label, row.method + (count if len(row.choices) > 1 else "")))
    if missed:
        yield Caution(text="No model reached ASR ≤ 5 %", panels=tuple(dict(missed)), where=tuple(missed))


def _ends(study: Study, rows: list[Row]) -> Iterator[Caution]:
    """Cautions about choices at the end of a range or grid.

    Each row is checked. The values of the series are checked too, among all trials of a method, because a row of its own has only one of
    them. A series is left out if no rule chooses among its values: one of what a cleaning is given (its pairs, its poisons) or of an
    earlier stage.
    """
    series = study.series if study.series.startswith("clean.") and study.series not in GIVEN else ""
    judged = [(row, "") for row in rows] + [(row, series) for row in (table(study, series) if series else ())]
    places: dict[End, dict[tuple[str, str], None]] = {}
    for row, only in judged:
        for choice in row.reached if row.rule.oracle else ():
            for end in ends(study, row, choice):
                if only in ("", end.path):
                    places.setdefault(end, {})[row.panel.label, row.method] = None
    for end, where in places.items():
        space = "range" if end.drawn else "grid"
        text = f"Chosen at the end of its {space}: {end.setting}; a wider {space} may change it. This holds for"
        yield Caution(text=text, panels=tuple(dict.fromkeys(label for label, _ in where)), where=tuple(where))


def _few_seeds(study: Study, rows: list[Row]) -> Iterator[Caution]:
    if study.trials:
        counts = {(row.panel.label, row.method): len(row.choices) for row in rows if row.choices}
        what = "a pre-training and method"
    else:
        counts, what = {(panel.label, ""): len(panel.pretrains) for panel in panels(study)}, "a pre-training"
    few = {key: count for key, count in counts.items() if count < 3}
    if few:
        most = max(few.values())
        seeds = "one seed" if most <= 1 else f"at most {most} seeds"
        yield Caution(
            text=f"Fewer than three seeds ({seeds} for {what}): differences may be chance. The "
            "intervals of single models count the evaluation's images, neither seeds nor the choice among trials.",
            panels=tuple(dict.fromkeys(label for label, _ in few)),
        )


def diverged(stage: StageResult) -> bool:
    """Whether the training diverged: it failed for that reason, or some metric is not finite."""
    return stage.failure == DIVERGED or bool(_not_finite(stage))


def _not_finite(stage: StageResult) -> list[str]:
    """The metrics that are not finite in some epoch."""
    metrics = (line.get("metrics", {}) for line in stage.metrics)
    return sorted({name for values in metrics for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)})
