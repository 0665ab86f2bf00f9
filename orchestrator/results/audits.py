"""What the audits of some models found, and the checks among them that show whether the audits can be believed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from orchestrator.experiment.fingerprint import canonical
from orchestrator.stages.audited import FINDINGS, GALLERY, ROWS
from orchestrator.store import Artefact, part, read_arrays
from trainers.audit.base import Audit
from trainers.audit.robustness import Robustness

LEVEL = 0.05


@dataclass(frozen=True)
class AuditResult:
    """One audit of one model."""

    model: str
    """Its name on the page."""
    audit: Audit
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    """Sentences: checks of the audit that failed; or why it could not be made."""
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    """Of its artefact; None: it could not be made."""
    seconds: float = 0.0
    right: frozenset[str] = frozenset()
    """Keys of the pictures that are still classified correctly under attack, of a `Robustness` with one ε."""

    @property
    def gallery(self) -> dict[str, np.ndarray]:
        """Title → uint8 [n, S, S, 3], in the audit's order."""
        if self.folder is None or not (self.folder / GALLERY).exists():
            return {}
        return {name.partition(" ")[2]: pictures for name, pictures in sorted(read_arrays(self.folder / GALLERY).items())}

    @property
    def robust(self) -> float | None:
        """Accuracy under attack in percent, of a `Robustness` with one ε."""
        return self.metrics.get("robust/accuracy") if isinstance(self.audit, Robustness) else None


def read_audit(model: str, audit: Audit, found: Artefact) -> AuditResult:
    """The findings of a finished audit; InputError if a file was changed."""
    told, right = json.loads(part(found, FINDINGS)), frozenset[str]()
    if isinstance(audit, Robustness) and not audit.attack.minimal:
        rows = pq.read_table(pa.BufferReader(part(found, ROWS)), columns=["key", "y", "prediction"]).to_pylist()
        right = frozenset(row["key"] for row in rows if row["prediction"] == row["y"])
    return AuditResult(
        model, audit, told["metrics"], tuple(told["failures"]), tuple(told["notes"]), found.folder, found.manifest["seconds"], right
    )


def not_believable(results: Sequence[AuditResult]) -> list[str]:
    """Sentences: what fails of the audits by themselves, and in comparison with each other.

    Robust accuracy must not rise with ε; an attack that sees the gradients must not be weaker than one that only asks; one that knows the
    defence must not be weaker than one that does not. Otherwise the robustness is that of a bad attack. Attacks search, so a few pictures
    may always fall on the wrong side: what counts is a difference beyond chance (`beyond_chance`).
    """
    found = [f"{one.model}: {sentence.removeprefix(f'{one.model}: ')}" for one in results for sentence in one.failures]
    for model in dict.fromkeys(one.model for one in results):
        own = [(one.audit, one) for one in results if one.model == model and one.robust is not None]
        measured = [(audit, one) for audit, one in own if isinstance(audit, Robustness)]
        found += [f"{model}: {sentence}" for rule in (_rising, _blind_is_better, _obliviousness_is_better) for sentence in rule(measured)]
    return found


def beyond_chance(more: AuditResult, less: AuditResult) -> bool:
    """Whether more pictures are right in the first than in the second, on the same pictures: one-sided exact sign test at 5 %."""
    gained, lost = len(more.right - less.right), len(less.right - more.right)
    return gained > lost and stats.binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue <= LEVEL


Measured = Sequence[tuple[Robustness, AuditResult]]


def eps_of(audit: Robustness) -> float:
    """The attack's ε."""
    return audit.attack.eps  # type: ignore[attr-defined, no-any-return]


def radius_of(audit: Audit) -> float | None:
    """The ε within which an audit attacks; None: it attacks nothing, or looks for the smallest change."""
    attack: Any = getattr(audit, "attack", audit)
    eps = None if getattr(attack, "minimal", False) else getattr(attack, "eps", None)
    return float(eps) if isinstance(eps, (int, float)) else None


def without_eps(audit: Robustness) -> str:
    """Identifies an audit apart from its ε."""
    attack: Any = audit.attack
    return canonical(replace(audit, attack=replace(attack, eps=0.0)))


def _rising(measured: Measured) -> Iterator[str]:
    for key in dict.fromkeys(without_eps(audit) for audit, _ in measured):
        line = sorted((pair for pair in measured if without_eps(pair[0]) == key), key=lambda pair: eps_of(pair[0]))
        for (small, before), (large, after) in zip(line, line[1:]):
            if beyond_chance(after, before):
                rising = f"{_percent(before)} right at ε = {radius(eps_of(small))} and {_percent(after)} at ε = {radius(eps_of(large))}"
                yield f"{large.label} leaves {rising}; it must not rise."


def _blind_is_better(measured: Measured) -> Iterator[str]:
    bare = [(audit, one) for audit, one in measured if audit.defence is None]
    for audit, asking in bare:
        size = (audit.attack.norm, eps_of(audit))
        white = [one for other, one in bare if (other.attack.norm, eps_of(other)) == size and not other.attack.black_box]
        if audit.attack.black_box and white:
            best = min(white, key=lambda one: len(one.right))
            if beyond_chance(best, asking):
                yield (
                    f"{audit.label}, which only asks, leaves {_percent(asking)} right at ε = {radius(size[1])}; the best attack that "
                    f"sees gradients leaves {_percent(best)}."
                )


def _obliviousness_is_better(measured: Measured) -> Iterator[str]:
    for audit, adaptive in measured:
        for other, oblivious in measured:
            if audit.mode == "adaptive" and other == replace(audit, mode="oblivious") and beyond_chance(adaptive, oblivious):
                yield (
                    f"{other.label} leaves {_percent(oblivious)} right at ε = {radius(eps_of(audit))}, the attack that knows the defence "
                    f"{_percent(adaptive)}."
                )


def _percent(one: AuditResult) -> str:
    return f"{one.robust:.1f} %"


def radius(eps: float) -> str:
    """ε as people write it: 4/255 where that is exact, else the number."""
    steps = eps * 255
    return f"{steps:.4g}/255" if eps <= 1 and abs(steps * 4 - round(steps * 4)) < 1e-6 and steps > 0 else f"{eps:g}"
