"""Does an explanation of the target class point at the trigger?

Shape suffixes: N pictures, H and W height and width, 3 channels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from datasets.component import Count, Natural
from datasets.errors import InputError
from datasets.seeding import hash64
from trainers.audit.base import Audit, Findings, Pictures, Subject
from trainers.audit.explain.base import Explainer, Explanation
from trainers.audit.explain.lime import LIME
from trainers.audit.explain.localisation import Ceiling, Found, ceiling, found
from trainers.audit.explain.overlay import OUTLINE, bordered, enlarged, heated
from trainers.evaluate.zeroshot import wilson

SIDE = 128
"""Gallery pictures are enlarged to at least this side, so that lines are thin beside pixels."""
KINDS = ("triggered", "clean")
WEAK_FIT = 0.1
LOW_CEILING = 0.5


@dataclass(frozen=True, kw_only=True)
class Localisation(Audit):
    """Explains the target class on triggered pictures of other classes, and on the same pictures without the trigger, and measures how much
    of the heat lies on the trigger.

    A model with the backdoor answers the target because of the trigger, so the heat is there (mass far above the trigger's share of the
    area). For a clean or cleaned model, and without the trigger, it is not.
    """

    group: ClassVar[str] = "explanations"
    explainer: Explainer = LIME()
    """how the class is explained"""
    n: Count = 32
    """pictures of other classes than the target, chosen by the hash of their keys; all if there are fewer"""
    seed: int = 0
    """of the choice"""
    shown: Natural = 4
    """pictures in the gallery"""

    @property
    def label(self) -> str:
        """The explainer's label."""
        return self.explainer.label

    @property
    def name(self) -> str:
        """The explainer's label as part of a metric's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")

    def check(self, subject_classes: int, triggered: bool) -> None:
        """InputError without a trigger on pictures, or with a single class."""
        if not triggered:
            raise InputError("Localisation: the model has no trigger on pictures, so there is nothing to be found; accepted: a model whose "
                             "attack has one.")
        if subject_classes < 2:
            raise InputError(f"Localisation: the model has {subject_classes} class; accepted: at least 2.")

    def run(self, subject: Subject) -> Findings:
        """Metrics of `explain/<explainer>/`, for triggered pictures, and under `clean/` for the same without trigger, each with _low and
        _high: mass, iou1, iouk and pointing in percent, lift (a ratio) and r2. `_n`: over how many pictures mass, lift and r2 are means,
        mass and lift over those that have any positive heat. iou1 and r2 are left out where the explainer has no segments or no model.
        Further n; in percent area, ceiling_mass, ceiling_iou1, ceiling_iou, pointing_chance and asr (triggered pictures that are taken for
        the target).

        A trigger that covers whole pictures gives area and n alone, for its mass is 100 % and its lift 1 by definition. InputError without
        a single target class, or without triggered pictures of other classes.
        """
        if subject.target is None:
            raise InputError("Localisation: the attack has no single target class that could be explained; accepted: an attack with one.")
        self.check(subject.classifier.classes, subject.pictures.triggered_NHWC is not None)
        chosen = self.chosen(subject.pictures, subject.target)
        mask_NHW = chosen.trigger_NHW
        base = f"explain/{self.name}"
        sizes = {f"{base}/n": float(len(chosen)), f"{base}/area": 100 * float(mask_NHW.mean())}
        if mask_NHW.all():
            return Findings(sizes, notes=("The trigger covers the whole picture: all heat lies on it by definition (mass 100 %, lift 1), "
                                          "so nothing was explained.",))
        looks = {kind: self._looks(subject, chosen, mask_NHW, kind == "triggered") for kind in KINDS}
        metrics = sizes | self._metrics(looks, subject.target)
        rows = [row for both in zip(*(looks[kind] for kind in KINDS)) for row in (look.row(subject, self.label) for look in both)]
        return Findings(
            metrics,
            rows={column: [row[column] for row in rows] for column in rows[0]},
            gallery=self._gallery(chosen, looks),
            notes=self._notes(metrics),
        )

    def chosen(self, pictures: Pictures, target: int) -> Pictures:
        """The pictures that are explained: of other classes, changed by the trigger, by the smallest hashes of (seed, key)."""
        changed_N = pictures.trigger_NHW.any((1, 2))
        fitting = np.flatnonzero((pictures.label_N != target) & changed_N)
        order = sorted(fitting, key=lambda at: (hash64(self.seed, "localisation", pictures.keys[at]), pictures.keys[at]))
        if not order:
            raise InputError("Localisation: the test set has no triggered pictures of other classes than the target; accepted: at least 1.")
        return pictures.part(np.array(order[: self.n]))

    def _looks(self, subject: Subject, chosen: Pictures, mask_NHW: np.ndarray, triggered: bool) -> list[_Look]:
        assert subject.target is not None
        looks = []
        for at, key in enumerate(chosen.keys):
            one = chosen.part(slice(at, at + 1))
            picture_1CHW = one.floats(subject.classifier, triggered)
            prediction = int(subject.classifier.predict(picture_1CHW, one.keys)[0])
            told = self.explainer.explain(subject.classifier, subject.encoder, picture_1CHW[0], subject.target, key)
            measured = found(told.heat_HW, mask_NHW[at], told.segment_HW)
            kind = KINDS[0] if triggered else KINDS[1]
            looks.append(_Look(key, kind, int(one.label_N[0]), prediction, float(mask_NHW[at].mean()), told, measured,
                               ceiling(mask_NHW[at], told.segment_HW)))
        return looks

    def _metrics(self, looks: dict[str, list[_Look]], target: int) -> dict[str, float]:
        base = f"explain/{self.name}"
        out: dict[str, float] = {}
        for kind, place in zip(KINDS, (base, f"{base}/clean")):
            for name, percent in (("mass", True), ("lift", False), ("iou1", True), ("iouk", True), ("r2", False)):
                values = [look.value(name) for look in looks[kind]]
                finite = [value for value in values if np.isfinite(value)]
                if finite:
                    out |= _mean(f"{place}/{name}", finite, percent)
                if name in ("mass", "lift") or (name == "r2" and finite):
                    out[f"{place}/{name}_n"] = float(len(finite))
            out |= _share(f"{place}/pointing", [look.found.pointing for look in looks[kind]])
        for name in ("mass", "iou1", "iou"):
            out[f"{base}/ceiling_{name}"] = 100 * float(np.mean([getattr(look.ceiling, name) for look in looks["triggered"]]))
        out[f"{base}/pointing_chance"] = 100 * float(np.mean([look.ceiling.chance for look in looks["triggered"]]))
        return out | _share(f"{base}/asr", [float(look.prediction == target) for look in looks["triggered"]])

    def _gallery(self, chosen: Pictures, looks: dict[str, list[_Look]]) -> dict[str, np.ndarray]:
        shown = range(min(self.shown, len(chosen)))
        assert chosen.triggered_NHWC is not None
        columns: dict[str, list[np.ndarray]] = {}
        for at in shown:
            pictures = {"clean": chosen.image_NHWC[at], "triggered": chosen.triggered_NHWC[at]}
            mask_HW = enlarged(chosen.trigger_NHW[at].astype(int), SIDE)
            for kind, image_HW3 in pictures.items():
                columns.setdefault(kind, []).append(enlarged(image_HW3, SIDE))
            segment_HW = looks["triggered"][at].told.segment_HW
            if segment_HW is not None:
                columns.setdefault("segments", []).append(bordered(enlarged(pictures["triggered"], SIDE), enlarged(segment_HW, SIDE)))
            for kind, image_HW3 in pictures.items():
                heat_HW3 = heated(enlarged(image_HW3, SIDE), enlarged(looks[kind][at].told.heat_HW, SIDE))
                columns.setdefault(f"heat, {kind}", []).append(bordered(heat_HW3, mask_HW, OUTLINE))
        return {title: np.stack(images) for title, images in columns.items()}

    def _notes(self, metrics: dict[str, float]) -> tuple[str, ...]:
        base = f"explain/{self.name}"
        notes = ["Red speaks for the target class and blue against it, each picture on a scale of its own; the yellow line surrounds the "
                 "trigger."] if self.shown else []
        if metrics.get(f"{base}/r2", 1.0) < WEAK_FIT:
            notes.append(f"The linear model explains little of what the classifier answers (R² {metrics[f'{base}/r2']:.2f}).")
        if metrics[f"{base}/ceiling_mass"] < 100 * LOW_CEILING:
            notes.append(f"The segments are coarse for this trigger: no explanation could have more than "
                         f"{metrics[f'{base}/ceiling_mass']:.0f} % of its heat on it.")
        return tuple(notes)


@dataclass(frozen=True)
class _Look:
    """One explained picture."""

    key: str
    kind: str
    label: int
    prediction: int
    area: float
    told: Explanation = field(repr=False)
    found: Found
    ceiling: Ceiling

    def value(self, name: str) -> float:
        """A measure; NaN where it means nothing."""
        if name == "r2":
            return float("nan") if self.told.r2 is None else self.told.r2
        if name == "iou1" and self.told.segment_HW is None:
            return float("nan")
        return float(getattr(self.found, name))

    def row(self, subject: Subject, explainer: str) -> dict[str, Any]:
        """For the table; shares in 0 … 1."""
        names = [one.name for one in dataclasses.fields(Found)] + ["r2"]
        about = {"checkpoint": subject.checkpoint, "key": self.key, "explainer": explainer, "mode": self.kind, "label": self.label,
                 "target": subject.target, "prediction": self.prediction, "area": self.area}
        ceilings = {f"ceiling_{one.name}": getattr(self.ceiling, one.name) for one in dataclasses.fields(Ceiling) if one.name != "chance"}
        return about | {name: self.value(name) for name in names} | ceilings


def _mean(name: str, values: Sequence[float], percent: bool) -> dict[str, float]:
    """The mean with its 95 % interval by Student's t, cut to 0 … 100 where it is a percentage; without an interval for a single value."""
    from scipy.stats import t

    value_N = np.asarray(values) * (100 if percent else 1)
    mean = float(value_N.mean())
    if len(value_N) < 2:
        return {name: mean}
    half = float(t.ppf(0.975, len(value_N) - 1) * value_N.std(ddof=1) / np.sqrt(len(value_N)))
    low, high = mean - half, mean + half
    return {name: mean, f"{name}_low": max(low, 0.0) if percent else low, f"{name}_high": min(high, 100.0) if percent else high}


def _share(name: str, hits: Sequence[float]) -> dict[str, float]:
    """The mean in percent with its 95 % Wilson interval."""
    low, high = wilson(sum(hits), len(hits))
    return {name: 100 * float(np.mean(hits)), f"{name}_low": low, f"{name}_high": high}
