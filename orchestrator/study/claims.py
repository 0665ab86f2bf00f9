"""The four claims of the study, each with a criterion that was fixed before any result was looked at.

A claim is `shown`, `not shown` (tried, and the criterion is not met; the reason says why) or `not tried`. Every criterion
wants at least three seeds whose attack gate passed, and all of their trials at an end. Nothing weaker counts as shown.

A trial is at its end when it has run to its last epoch, or when it diverged: that too is what its setting leads to, and the reason
says so. One that failed otherwise or that a scheduler stopped is not, nor is a seed without a point or with every second trial diverged.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator.study.cautions import diverged, ends
from orchestrator.study.kinds import study_method
from orchestrator.study.names import number_of, seeds_of, settings, signed, value_at
from orchestrator.study.outcome import Study, TrialResult
from orchestrator.study.points import GIVEN, Panel, Point, before_cleaning, cleaned_points, mean_interval, panels, repetitions
from orchestrator.study.selection import RULE, Choice, Row, Rule, choices

SEEDS = 3
"""Fewer show nothing."""
POISONS = 5
TEXTS = {
    "a": "CleanCLIP on an MMCL model reaches ASR ≤ 5 % at ≤ 1 point of accuracy lost",
    "b": "on an MMCL+SSL model CleanCLIP costs accuracy that it does not cost on an MMCL model",
    "c": "cleaning with MMCL alone never reaches ASR ≤ 10 %",
    "d": "five poisons left in the cleaning set are enough to prevent cleaning",
}
PUBLISHED = {
    "a": "CC3M: accuracy 16.0 → 16.5 %; CC6M: 23.8 → 24.0 %",
    "b": "17 % (CC3M) to 45 % (CC6M) of the accuracy lost at ASR ≤ 5 %",
    "c": "CC6M: no point with ASR ≤ 10 %; on CC3M ASR ≤ 5 % is reached, at 12.4 and 13.4 % accuracy",
    "d": "CC6M, MMCL model: no point with ASR ≤ 10 % from 3 poisons in 100 000 pairs on",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one sweep, or several joined, say to one claim on one pre-training and cleaning set."""

    claim: str
    verdict: str
    """shown | not shown | not tried"""
    reason: str
    where: str = ""
    seeds: int = 0
    images: int | None = None
    """Of the evaluation set."""
    measure: str = ""
    """What is estimated."""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    """95 % interval over seeds (Student)."""
    seen: str = ""
    """What was seen beyond the criterion."""

    @property
    def text(self) -> str:
        return TEXTS[self.claim]


def claims(studies: Sequence[Study]) -> list[Verdict]:
    """The verdicts of several sweeps taken together: trials of one pre-training are compared whichever sweep ran them."""
    study = joined(studies)
    found = [*little_lost(study), *resists(study), *mmcl_alone(study), *five_poisons(study)]
    tried = {verdict.claim for verdict in found}
    found += [Verdict(claim=claim, verdict="not tried", reason=WANTED[claim]) for claim in TEXTS if claim not in tried]
    return sorted(found, key=lambda verdict: verdict.claim)


WANTED = {
    "a": "It needs CleanCLIP on a model pre-trained with MMCL.",
    "b": "It needs CleanCLIP on models pre-trained with MMCL and with MMCL+SSL that are otherwise alike.",
    "c": "It needs fine-tuning with MMCL alone.",
    "d": f"It needs CleanCLIP on an MMCL model with {POISONS} poisons in the cleaning set and with none.",
}


def as_json(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Plain values, numbers that are not finite as null."""
    rows = [{"claim": verdict.claim, "text": verdict.text, **asdict(verdict)} for verdict in found]
    return [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]


def joined(studies: Sequence[Study]) -> Study:
    """One study of all their stages, each once; series are dropped, so that a method's best is sought over all its settings."""
    pretrains = {stage.fingerprint: stage for study in studies for stage in study.pretrains}
    trials: dict[str, TrialResult] = {}
    for trial in (trial for study in studies for trial in study.trials):
        known = trials.get(trial.fingerprint, trial)  # one sweep may vary what another sets once
        trials[trial.fingerprint] = replace(trial, overrides={**known.overrides, **trial.overrides})
    gates = {key: gate for study in studies for key, gate in study.gates.items()}
    spaces = {trial.fingerprint: study.config.get("space") for study in studies for trial in study.trials}
    return Study(
        name=" + ".join(study.name for study in studies), doc="", fingerprint="", config={"spaces": spaces},
        pretrains=list(pretrains.values()), trials=list(trials.values()), gates=gates, missing=sum(s.missing for s in studies),
    )  # fmt: skip


def little_lost(study: Study) -> list[Verdict]:
    """(a) In every seed the most accurate point with ASR ≤ 5 % lies at most 1 point of accuracy below its start.

    Estimate: change of accuracy, points, over the seeds that have such a point.
    """
    made = []
    for bench in _benches(study, "MMCL", "CleanCLIP", poisons=0):
        row = bench.row(RULE["acc_at_asr_le_5"])
        against = bench.against(row)
        if missing := len(row.choices) - len(row.reached):
            against.append(f"no model with ASR ≤ 5 % in {missing} of {number_of(len(row.choices), 'seed')}")
        if lost := sum(choice.drop > 1 + 1e-9 for choice in row.reached):
            against.append(f"more than 1 point lost in {lost} of {number_of(len(row.reached), 'seed')}")
        measured = mean_interval([-choice.drop for choice in row.reached])
        fine = "at most 1 point lost in every seed"
        at_end = _at_end(study, row)
        seen = f"Chosen at the end of a grid ({at_end}): better points may lie beyond." if at_end else ""
        made.append(_verdict("a", bench, row, against, fine, "change of accuracy at ASR ≤ 5 %, points", measured, seen))
    return made


def resists(study: Study) -> list[Verdict]:
    """(b) The share of its accuracy that a model keeps at ASR ≤ 5 %, MMCL minus MMCL+SSL, paired by seed: its 95 % interval
    lies above 0, and no choice of either lies at the end of its grid (a grid that stops early fabricates the effect).

    Estimate: that difference, points of share. Whatever the verdict, the ASR of both models after the same cleaning is told.
    """
    made = []
    for bench in _benches(study, "MMCL+SSL", "CleanCLIP", poisons=0):
        other = _partner(study, bench)
        if other is None:
            continue
        rows = [side.row(RULE["acc_at_asr_le_5"]) for side in (other, bench)]
        by_seed = [{choice.repetition: choice for choice in row.choices} for row in rows]
        pairs = [(by_seed[0][seeds], by_seed[1][seeds]) for seeds in by_seed[0] if seeds in by_seed[1]]
        gaps = [_kept(a) - _kept(b) for a, b in pairs if a.point and b.point]
        against = [f"fewer than {SEEDS} seeds that both were run with"] if len(pairs) < SEEDS else []
        against += [reason for side in (other, bench) for reason in side.left]
        for row in rows:
            if missing := len(row.choices) - len(row.reached):
                against.append(f"no model with ASR ≤ 5 % on {row.panel.label} in {missing} of {number_of(len(row.choices), 'seed')}")
            if at_end := _at_end(study, row):
                against.append(f"chosen at the end of its grid on {row.panel.label} ({at_end})")
        measured = mean_interval(gaps)
        if measured and len(gaps) > 1 and measured[1] <= 0:
            against.append("the interval of the difference does not lie above 0")
        where = f"{other.panel.label} against {bench.panel.label}{bench.cleaning}"
        fine = "the interval of the difference lies above 0, and no choice at the end of its grid"
        measure = "share of accuracy kept at ASR ≤ 5 %, MMCL minus MMCL+SSL, points"
        verdict = _verdict(
            "b", bench, rows[1], against, fine, measure, measured, same_setting(study, other, bench), other.diverged
        )
        made.append(replace(verdict, where=where, seeds=len(pairs)))
    return made


def same_setting(study: Study, one: "Bench", other: "Bench") -> str:
    """ASR after the last epoch of the same cleaning, MMCL+SSL minus MMCL, paired by seed: mean and interval by setting."""
    ends_of: list[dict[tuple[str, str], Point]] = []
    for bench in (one, other):
        found, seeds = {}, repetitions(study, bench.trials)
        for trial in bench.trials:
            points = cleaned_points(trial)
            if points:
                found[settings(trial, list(bench.trials), seeds=False), seeds[trial.fingerprint]] = points[-1]
        ends_of.append(found)
    by_setting: dict[str, list[float]] = {}
    for (setting, seed), point in ends_of[0].items():
        if (setting, seed) in ends_of[1]:
            by_setting.setdefault(setting, []).append(ends_of[1][setting, seed].asr - point.asr)
    told = []
    for setting, gaps in by_setting.items():
        mean, low, high = mean_interval(gaps) or (math.nan,) * 3
        interval = f" [{low:.1f}, {high:.1f}]".replace("-", "−") if math.isfinite(low) else ""
        higher = f"higher in {sum(gap > 0 for gap in gaps)} of {number_of(len(gaps), 'seed')}"
        told.append(f"{setting or 'as given'}: {signed(mean, 'points')}{interval}, {higher}")
    return "ASR after the same cleaning, MMCL+SSL model minus MMCL model: " + "; ".join(told) + "." if told else ""


def mmcl_alone(study: Study) -> list[Verdict]:
    """(c) No point of any trial and seed has ASR ≤ 10 %, and the lowest does not lie at the end of its grid.

    Estimate: the lowest ASR of a seed, whatever its accuracy.
    """

    def choose(points: Sequence[Point], start: Point) -> Point:
        return min(points, key=lambda p: (p.asr, -p.accuracy))

    lowest = Rule(key="lowest", text="", oracle=True, choose=choose)
    made = []
    for objective in ("MMCL", "MMCL+SSL"):
        for bench in _benches(study, objective, "MMCL", poisons=0):
            row = bench.row(lowest)
            against, under = bench.against(row), [choice for choice in row.reached if choice.asr <= 10]
            seen = ""
            if under:
                against.append(f"ASR ≤ 10 % was reached in {len(under)} of {number_of(len(row.choices), 'seed')}")
                best = bench.row(RULE["acc_at_asr_le_10"]).reached
                kept = mean_interval([_kept(choice) for choice in best])
                seen = f"Where it was reached, {kept[0]:.0f} % of the accuracy was kept at best." if kept else ""
            elif at_end := _at_end(study, row):
                against.append(f"the lowest ASR lies at the end of its grid ({at_end})")
            measured = mean_interval([choice.asr for choice in row.reached])
            fine = "no point of any seed has ASR ≤ 10 %"
            made.append(_verdict("c", bench, row, against, fine, "lowest ASR of any point, %", measured, seen))
    return made


def five_poisons(study: Study) -> list[Verdict]:
    """(d) With no poison in the cleaning set every seed has a point with ASR ≤ 5 % that keeps at least half of the accuracy;
    with five no seed has one, and the lowest ASR at that accuracy does not lie at the end of its grid.

    Estimate: that lowest ASR, with five poisons.
    """
    made = []
    for bench in _benches(study, "MMCL", "CleanCLIP", poisons=POISONS):
        controls = [other for other in _benches(study, "MMCL", "CleanCLIP", poisons=0) if other.panel == bench.panel and other.like(bench)]
        if not controls:
            continue
        clean, row = controls[0].row(_half(5)), bench.row(_half(100))
        cleaned = {choice.repetition: choice for choice in clean.choices}
        row = replace(row, choices=tuple(c for c in row.choices if c.repetition in cleaned))
        against = bench.against(row) + [reason for reason in controls[0].left if reason not in bench.left]
        if failed := sum(cleaned[choice.repetition].point is None for choice in row.choices):
            against.append(f"even with no poison nothing is cleaned in {failed} of {number_of(len(row.choices), 'seed')}")
        if under := sum(choice.asr <= 5 for choice in row.reached):
            against.append(f"ASR ≤ 5 % at half of the accuracy or more in {under} of {number_of(len(row.choices), 'seed')} all the same")
        elif at_end := _at_end(study, row):
            against.append(f"the lowest ASR lies at the end of its grid ({at_end})")
        measured = mean_interval([choice.asr for choice in row.reached])
        without = mean_interval([cleaned[c.repetition].asr for c in row.choices if cleaned[c.repetition].point])
        seen = f"With no poison, cleaned by the same method: ASR {without[0]:.1f} %." if without else ""
        pairs = value_at(bench.trials[0], "clean.pairs")
        if isinstance(pairs, int) and pairs > 0:
            seen += f" {POISONS} of {pairs} pairs are {100 * POISONS / pairs:.2g} % of the cleaning set; the study's five were 0.005 %."
        fine = "cleaned in every seed without poison, in none with five"
        measure = "lowest ASR with five poisons at half of the accuracy or more, %"
        made.append(_verdict("d", bench, row, against, fine, measure, measured, seen, controls[0].diverged))
    return made


def _half(limit: float) -> Rule:
    """Lowest ASR, at most `limit`, that keeps at least half of the accuracy."""

    def choose(points: Sequence[Point], start: Point) -> Point | None:
        fit = [p for p in points if p.asr <= limit and p.accuracy >= start.accuracy / 2]
        return min(fit, key=lambda p: (p.asr, -p.accuracy), default=None)

    return Rule(key="half", text="", oracle=True, choose=choose)


# ---- what is compared ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The trials of one method on one pre-training with one cleaning set, without the seeds whose attack did not take."""

    study: Study
    panel: Panel
    trials: tuple[TrialResult, ...]
    left: tuple[str, ...]
    """What stands against any claim: seeds left out or without a point, trials that are not at their end."""
    diverged: tuple[str, ...]
    """What is said of trials that count as tried although they diverged."""
    cleaning: str
    """Of the cleaning set, for the reader: ", 600 pairs, 5 poisons"."""

    def row(self, rule: Rule) -> Row:
        return Row(panel=self.panel, method="", rule=rule, choices=choices(self.study, self.trials, rule), trials=self.trials)

    def against(self, row: Row) -> list[str]:
        few = [f"fewer than {SEEDS} seeds" if row.choices else "no seed was measured"] if len(row.choices) < SEEDS else []
        return few + list(self.left)

    def like(self, other: "Bench") -> bool:
        """Whether the cleaning sets differ in their poisons alone."""
        paths = [path for path in GIVEN if path != "clean.poisons"]
        return [_given(self.trials[0], path) for path in paths] == [_given(other.trials[0], path) for path in paths]


def _benches(study: Study, objective: str, method: str, poisons: int) -> list[Bench]:
    """By what the study calls objective and method: exact classes with their weights, whatever others call themselves."""
    made = []
    for panel in panels(study):
        groups: dict[tuple[str, ...], list[TrialResult]] = {}
        for trial in study.trials:
            wanted = panel.study_objective == objective and panel.holds(trial) and study_method(trial) == method
            if wanted and int(value_at(trial, "clean.poisons") or 0) == poisons:
                groups.setdefault(tuple(_given(trial, path) for path in GIVEN), []).append(trial)
        for trials in groups.values():
            failed = {t.pretrain for t in trials if not (study.gates.get(t.pretrain) or {}).get("passed")}
            kept = tuple(trial for trial in trials if trial.pretrain not in failed)
            of = number_of(len({t.pretrain for t in trials}), "model")
            left = [f"the attack gate was not passed by {len(failed)} of {of}"] if failed else []
            left += _unfinished(study, kept)
            models, repeated = _attacks(study, kept), set(repetitions(study, kept).values())
            if models < SEEDS <= len(repeated):
                few = number_of(models, "pre-training")
                left.append(f"the {len(repeated)} seeds are of {few}: of the cleaning or the evaluation, not of the attack")
            broken = sum(map(diverged, kept))
            told = (f"{broken} of {len(kept)} trials diverged and count as tried",) if broken else ()
            pairs = value_at(trials[0], "clean.pairs")
            cleaning = f", cleaned with {pairs} pairs" if pairs else ""
            cleaning += f" of which {poisons} are poisons" if poisons else ""
            made.append(
                Bench(study=study, panel=panel, trials=kept or tuple(trials), left=tuple(left), diverged=told, cleaning=cleaning)
            )
    return made


def _unfinished(study: Study, trials: Sequence[TrialResult]) -> Iterator[str]:
    """What keeps these trials from being all that was to be tried."""
    status = Counter(trial.status for trial in trials if not diverged(trial))
    if running := status["running"] + study.missing:
        yield f"{running} trials have not finished"
    if status["failed"]:
        yield f"{status['failed']} of {len(trials)} trials failed"
    if status["stopped"]:
        yield f"{status['stopped']} of {len(trials)} trials were stopped by the scheduler"
    seeds, by_seed = repetitions(study, trials), dict[tuple[str, str], list[TrialResult]]()
    for trial in trials:
        by_seed.setdefault((trial.pretrain, seeds[trial.fingerprint]), []).append(trial)
    if empty := sum(not any(map(cleaned_points, group)) for group in by_seed.values()):
        yield f"no point was measured in {empty} of {number_of(len(by_seed), 'seed')}"
    if half := sum(2 * sum(map(diverged, group)) >= len(group) for group in by_seed.values()):
        yield f"half of the trials or more diverged in {half} of {number_of(len(by_seed), 'seed')}"


def _partner(study: Study, bench: Bench) -> Bench | None:
    """The same cleaning of the MMCL model that differs in its pre-training objective alone, or in what goes with it."""
    found = [other for other in _benches(study, "MMCL", "CleanCLIP", poisons=0) if other.like(bench)]
    same: list[Callable[[Bench], bool]] = [
        lambda other: _story(other.panel, "pretrain.objective") == _story(bench.panel, "pretrain.objective"),
        lambda other: _story(other.panel, "pretrain") == _story(bench.panel, "pretrain"),
    ]
    for alike in same:  # a larger batch may belong to an objective: the second is asked when the first finds nothing
        if len(matching := [other for other in found if alike(other)]) == 1:
            return matching[0]
    return None


def _story(panel: Panel, without: str) -> Any:
    """A panel's configuration without its cleaning, its seeds and the named path."""
    return before_cleaning(panel.pretrains[0].config, without)


def _attacks(study: Study, trials: Sequence[TrialResult]) -> int:
    """How many trainings the trials start from; those that differ in a seed of the evaluation alone are one."""
    started = {trial.pretrain for trial in trials}
    seeds = [seeds_of(stage.config) for stage in study.pretrains if stage.fingerprint in started]
    return len({tuple(sorted((p, v) for p, v in found.items() if not p.startswith(("evaluate.", "clean.")))) for found in seeds})


def _given(trial: TrialResult, path: str) -> str:
    return str(value_at(trial, path) or "")


def _kept(choice: Choice) -> float:
    return 100 - choice.drop_relative


def _at_end(study: Study, row: Row) -> str:
    """The chosen settings that lie at an end of what was tried."""
    return "; ".join(dict.fromkeys(end.setting for choice in row.reached for end in ends(study, row, choice)))


def _verdict(
    claim: str, bench: Bench, row: Row, against: list[str], fine: str, measure: str,
    measured: tuple[float, float, float] | None, seen: str, diverged: Sequence[str] = (),
) -> Verdict:  # fmt: skip
    points = [choice.point or choice.start for choice in row.choices]
    images = points[0].metrics.get("zeroshot/n") if points else None
    mean, low, high = measured or (None, None, None)
    reason = "; ".join(dict.fromkeys([*(against or [fine]), *bench.diverged, *diverged]))
    return Verdict(
        claim=claim, verdict="not shown" if against else "shown", reason=f"{reason[0].upper()}{reason[1:]}.",
        where=bench.panel.label + bench.cleaning,
        seeds=len(row.choices), images=int(images) if images else None, measure=measure, estimate=mean, low=low, high=high, seen=seen,
    )  # fmt: skip
