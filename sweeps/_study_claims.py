"""The study's four claims, each with a criterion that was fixed before any result was looked at. CLAIMS is what its sweeps ask for."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from datasets.component import Component
from orchestrator.results.claims import SEEDS, Asked, Bench, Claim, Verdict, at_end, benches, verdict_of
from orchestrator.results.kinds import Node, is_a
from orchestrator.results.names import number_of, settings, signed, value_at
from orchestrator.results.outcome import Study
from orchestrator.results.points import Point, cleaned_points, mean_interval, repetitions
from orchestrator.results.selection import RULE, Choice, Rule
from trainers.methods.finetune import CleanCLIP, FineTune, MMCLFineTune, SSLFineTune
from trainers.objectives.contrastive import MMCL, MMCLSSL, SSL, Contrastive

POISONS = 5
FIRST = f"Fixed before any result: at least {SEEDS} seeds, the attack gate passed, every trial run to its end or diverged. "


def _weighing(*classes: type[Component], clip: bool, inmodal: bool) -> Asked:
    """Asks for these classes, by which of the two losses have a weight."""

    def has_them(node: Node) -> bool:
        weights = node.get("clip_weight", 0) > 0, node.get("inmodal_weight", 0) > 0
        return is_a(node, *classes) and weights == (clip, inmodal)

    return has_them


OBJECTIVES, METHODS = (Contrastive, MMCL, MMCLSSL, SSL), (FineTune, MMCLFineTune, CleanCLIP, SSLFineTune)
ON_MMCL = _weighing(*OBJECTIVES, clip=True, inmodal=False)
ON_MMCLSSL = _weighing(*OBJECTIVES, clip=True, inmodal=True)
BY_MMCL = _weighing(*METHODS, clip=True, inmodal=False)
BY_CLEANCLIP = _weighing(*METHODS, clip=True, inmodal=True)


@dataclass(frozen=True, kw_only=True)
class LittleLost(Claim):
    """Estimate: change of accuracy, points, over the seeds that reach ASR ≤ 5 %; of each the most accurate such point."""

    label: str = "a"
    text = "CleanCLIP on an MMCL model reaches ASR ≤ 5 % at ≤ 1 point of accuracy lost"
    criterion = FIRST + "Every seed loses at most 1 point at ASR ≤ 5 %."
    needed = "It needs CleanCLIP on a model pre-trained with MMCL."
    published = "CC3M: accuracy 16.0 → 16.5 %; CC6M: 23.8 → 24.0 %"

    def judge(self, study: Study) -> Iterator[Verdict]:
        for bench in benches(study, ON_MMCL, BY_CLEANCLIP):
            row = bench.row(RULE["acc_at_asr_le_5"])
            against = bench.against(row)
            if missing := len(row.choices) - len(row.reached):
                against.append(f"no model with ASR ≤ 5 % in {missing} of {number_of(len(row.choices), 'seed')}")
            if lost := sum(choice.drop > 1 + 1e-9 for choice in row.reached):
                against.append(f"more than 1 point lost in {lost} of {number_of(len(row.reached), 'seed')}")
            ends = at_end(study, row)
            yield verdict_of(
                bench, row, against=against, fine="at most 1 point lost in every seed",
                measure="change of accuracy at ASR ≤ 5 %, points", measured=mean_interval([-choice.drop for choice in row.reached]),
                seen=f"Chosen at the end of a grid ({ends}): better points may lie beyond." if ends else "",
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Resists(Claim):
    """Estimate: the difference of the shares, points. A grid that stops early fabricates it, so no choice may lie at an end.

    Whatever the verdict, the ASR of both models after the same cleaning is told.
    """

    label: str = "b"
    text = "on an MMCL+SSL model CleanCLIP costs accuracy that it does not cost on an MMCL model"
    criterion = (
        FIRST + "The share of accuracy kept at ASR ≤ 5 %, MMCL minus MMCL+SSL, paired by seed, has a 95 % interval above 0, and no choice "
        "lies at the end of its grid."
    )
    needed = "It needs CleanCLIP on models pre-trained with MMCL and with MMCL+SSL that are otherwise alike."
    published = "17 % (CC3M) to 45 % (CC6M) of the accuracy lost at ASR ≤ 5 %"

    def judge(self, study: Study) -> Iterator[Verdict]:
        others = benches(study, ON_MMCL, BY_CLEANCLIP)
        for bench in benches(study, ON_MMCLSSL, BY_CLEANCLIP):
            other = bench.partner(others)
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
                if ends := at_end(study, row):
                    against.append(f"chosen at the end of its grid on {row.panel.label} ({ends})")
            measured = mean_interval(gaps)
            if measured and len(gaps) > 1 and measured[1] <= 0:
                against.append("the interval of the difference does not lie above 0")
            verdict = verdict_of(
                bench, rows[1], against=against, measured=measured, seen=same_setting(study, other, bench), diverged=other.diverged,
                fine="the interval of the difference lies above 0, and no choice at the end of its grid",
                measure="share of accuracy kept at ASR ≤ 5 %, MMCL minus MMCL+SSL, points",
            )  # fmt: skip
            yield replace(verdict, where=f"{other.panel.label} against {bench.panel.label}{bench.cleaning}", seeds=len(pairs))


def same_setting(study: Study, one: Bench, other: Bench) -> str:
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


@dataclass(frozen=True, kw_only=True)
class NeverAlone(Claim):
    """Estimate: the lowest ASR of a seed, whatever its accuracy."""

    label: str = "c"
    text = "cleaning with MMCL alone never reaches ASR ≤ 10 %"
    criterion = FIRST + "No point has ASR ≤ 10 %, and the lowest does not lie at the end of its grid."
    needed = "It needs fine-tuning with MMCL alone."
    published = "CC6M: no point with ASR ≤ 10 %; on CC3M ASR ≤ 5 % is reached, at 12.4 and 13.4 % accuracy"

    def judge(self, study: Study) -> Iterator[Verdict]:
        def choose(points: Sequence[Point], start: Point) -> Point:
            return min(points, key=lambda p: (p.asr, -p.accuracy))

        lowest = Rule(key="lowest", text="", oracle=True, choose=choose)
        for bench in [*benches(study, ON_MMCL, BY_MMCL), *benches(study, ON_MMCLSSL, BY_MMCL)]:
            row = bench.row(lowest)
            against, under = bench.against(row), [choice for choice in row.reached if choice.asr <= 10]
            seen = ""
            if under:
                against.append(f"ASR ≤ 10 % was reached in {len(under)} of {number_of(len(row.choices), 'seed')}")
                best = bench.row(RULE["acc_at_asr_le_10"]).reached
                kept = mean_interval([_kept(choice) for choice in best])
                seen = f"Where it was reached, {kept[0]:.0f} % of the accuracy was kept at best." if kept else ""
            elif ends := at_end(study, row):
                against.append(f"the lowest ASR lies at the end of its grid ({ends})")
            yield verdict_of(
                bench, row, against=against, fine="no point of any seed has ASR ≤ 10 %", measure="lowest ASR of any point, %",
                measured=mean_interval([choice.asr for choice in row.reached]), seen=seen,
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FivePoisons(Claim):
    """Estimate: the lowest ASR with five poisons that keeps half of the accuracy."""

    label: str = "d"
    text = "five poisons left in the cleaning set are enough to prevent cleaning"
    criterion = (
        FIRST + "Without poison every seed has a point with ASR ≤ 5 % that keeps half of the accuracy; with five none has, and the lowest "
        "ASR does not lie at the end of its grid."
    )
    needed = f"It needs CleanCLIP on an MMCL model with {POISONS} poisons in the cleaning set and with none."
    published = "CC6M, MMCL model: no point with ASR ≤ 10 % from 3 poisons in 100 000 pairs on"

    def judge(self, study: Study) -> Iterator[Verdict]:
        without_poison = benches(study, ON_MMCL, BY_CLEANCLIP)
        for bench in benches(study, ON_MMCL, BY_CLEANCLIP, poisons=POISONS):
            controls = [other for other in without_poison if other.panel == bench.panel and other.like(bench)]
            if not controls:
                continue
            clean, row = controls[0].row(_half(5)), bench.row(_half(100))
            cleaned = {choice.repetition: choice for choice in clean.choices}
            row = replace(row, choices=tuple(c for c in row.choices if c.repetition in cleaned))
            against = bench.against(row) + [reason for reason in controls[0].left if reason not in bench.left]
            of = number_of(len(row.choices), "seed")
            if failed := sum(cleaned[choice.repetition].point is None for choice in row.choices):
                against.append(f"even with no poison nothing is cleaned in {failed} of {of}")
            if under := sum(choice.asr <= 5 for choice in row.reached):
                against.append(f"ASR ≤ 5 % at half of the accuracy or more in {under} of {of} all the same")
            elif ends := at_end(study, row):
                against.append(f"the lowest ASR lies at the end of its grid ({ends})")
            without = mean_interval([cleaned[c.repetition].asr for c in row.choices if cleaned[c.repetition].point])
            seen = f"With no poison, cleaned by the same method: ASR {without[0]:.1f} %." if without else ""
            pairs = value_at(bench.trials[0], "clean.pairs")
            if isinstance(pairs, int) and pairs > 0:
                seen += f" {POISONS} of {pairs} pairs are {100 * POISONS / pairs:.2g} % of the cleaning set; the study's five were 0.005 %."
            yield verdict_of(
                bench, row, against=against, fine="cleaned in every seed without poison, in none with five",
                measure="lowest ASR with five poisons at half of the accuracy or more, %",
                measured=mean_interval([choice.asr for choice in row.reached]), seen=seen, diverged=controls[0].diverged,
            )  # fmt: skip


CLAIMS: tuple[Claim, ...] = (LittleLost(), Resists(), NeverAlone(), FivePoisons())


def _half(limit: float) -> Rule:
    """Lowest ASR, at most `limit`, that keeps at least half of the accuracy."""

    def choose(points: Sequence[Point], start: Point) -> Point | None:
        fit = [p for p in points if p.asr <= limit and p.accuracy >= start.accuracy / 2]
        return min(fit, key=lambda p: (p.asr, -p.accuracy), default=None)

    return Rule(key="half", text="", oracle=True, choose=choose)


def _kept(choice: Choice) -> float:
    """The share of the accuracy that is kept, percent."""
    return 100 - choice.drop_relative
