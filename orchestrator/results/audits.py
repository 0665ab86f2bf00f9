"""What the audits of some models found, and the checks among them that show whether the audits can be believed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.experiment.fingerprint import canonical
from orchestrator.store import Artefact, part, read_arrays
from trainers.audit.base import Audit
from trainers.audit.robustness import Robustness

FINDINGS, GALLERY = "findings.json", "gallery.npz"


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
    """The findings of a finished audit; InputError if its file was changed."""
    told = json.loads(part(found, FINDINGS))
    return AuditResult(
        model, audit, told["metrics"], tuple(told["failures"]), tuple(told["notes"]), found.folder, found.manifest["seconds"]
    )


def not_believable(results: Sequence[AuditResult]) -> list[str]:
    """Sentences: what fails of the audits by themselves, and in comparison with each other.

    Robust accuracy must not rise with ε; an attack that sees the gradients must not be weaker than one that only asks; one that knows the
    defence must not be weaker than one that does not. Otherwise the robustness is that of a bad attack.
    """
    found = [sentence for one in results for sentence in one.failures]
    for model in dict.fromkeys(one.model for one in results):
        own = [(one.audit, one.robust) for one in results if one.model == model and one.robust is not None]
        measured = [(audit, robust) for audit, robust in own if isinstance(audit, Robustness)]
        found += [f"{model}: {sentence}" for rule in (_rising, _blind_is_better, _obliviousness_is_better) for sentence in rule(measured)]
    return found


Measured = Sequence[tuple[Robustness, float]]


def eps_of(audit: Robustness) -> float:
    """The attack's ε."""
    return audit.attack.eps  # type: ignore[attr-defined, no-any-return]


def without_eps(audit: Robustness) -> str:
    """Identifies an audit apart from its ε."""
    attack: Any = audit.attack
    return canonical(replace(audit, attack=replace(attack, eps=0.0)))


def _rising(measured: Measured) -> Iterator[str]:
    for key in dict.fromkeys(without_eps(audit) for audit, _ in measured):
        line = sorted((eps_of(audit), robust, audit.label) for audit, robust in measured if without_eps(audit) == key)
        for (small, lower, label), (large, higher, _) in zip(line, line[1:]):
            if higher > lower:
                rising = f"{lower:.1f} % right at ε = {radius(small)} and {higher:.1f} % at ε = {radius(large)}"
                yield f"{label} leaves {rising}; it must not rise."


def _blind_is_better(measured: Measured) -> Iterator[str]:
    bare = [(audit, robust) for audit, robust in measured if audit.defence is None]
    for size in sorted({(audit.attack.norm, eps_of(audit)) for audit, _ in bare}):
        same = [(audit, robust) for audit, robust in bare if (audit.attack.norm, eps_of(audit)) == size]
        white = [robust for audit, robust in same if not audit.attack.black_box]
        for audit, robust in same:
            if audit.attack.black_box and white and robust < min(white):
                yield (
                    f"{audit.attack.label}, which only asks, leaves {robust:.1f} % right at ε = {radius(size[1])}; the best attack that "
                    f"sees gradients leaves {min(white):.1f} %."
                )


def _obliviousness_is_better(measured: Measured) -> Iterator[str]:
    for audit, adaptive in measured:
        for other, oblivious in measured:
            if audit.mode == "adaptive" and other == replace(audit, mode="oblivious") and adaptive > oblivious:
                yield (
                    f"{other.label} leaves {oblivious:.1f} % right at ε = {radius(eps_of(audit))}, the attack that knows the defence "
                    f"{adaptive:.1f} %."
                )


def radius(eps: float) -> str:
    """ε as people write it: 4/255 where that is exact, else the number."""
    steps = eps * 255
    return f"{steps:.4g}/255" if eps <= 1 and abs(steps * 4 - round(steps * 4)) < 1e-6 and steps > 0 else f"{eps:g}"
