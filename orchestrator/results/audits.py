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

from orchestrator.experiment.fingerprint import canonical
from orchestrator.results.audit_names import at_eps, audit_names, radius, radius_of
from orchestrator.stages.audited import FINDINGS, GALLERY, ROWS
from orchestrator.store import Artefact, part, read_arrays
from trainers.audit.base import Audit
from trainers.audit.black_box import QueryCurve, Substitute, Transfer
from trainers.audit.robustness import Robustness
from trainers.audit.shares import beyond_chance

Right = Mapping[str, bool]
"""Key of a picture that was attacked, or was wrong anyhow → whether it is classified correctly under attack."""


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
    right: Mapping[float, Right] = field(default_factory=dict)
    """Of an attack: ε → what it left right; for a minimal attack at each of its radii."""
    alone: Right = field(default_factory=dict)
    """Of an adaptive attack that takes the oblivious one's results where they are worse: what it leaves right without them."""
    asked: tuple[int, ...] = ()
    """Of an attack that only asks: after how many queries it turned each picture that it turned."""
    attacked: int = 0
    """How many pictures that attack was tried on."""
    name: str = ""
    """What the audit is called among others; empty: its label."""

    @property
    def label(self) -> str:
        """The name of the audit, without its ε."""
        return self.name or self.audit.label

    @property
    def title(self) -> str:
        """The name of the audit, with its ε."""
        return self.label + at_eps(self.audit)

    def telling(self, sentence: str) -> str:
        """A sentence of the audit under the name that tells it apart from others."""
        own = f"{self.audit.label}: "
        return f"{self.title}: {sentence.removeprefix(own)}" if sentence.startswith(own) else sentence

    @property
    def gallery(self) -> dict[str, np.ndarray]:
        """Title → uint8 [n, S, S, 3], in the audit's order."""
        if self.folder is None or not (self.folder / GALLERY).exists():
            return {}
        return {name.partition(" ")[2]: pictures for name, pictures in sorted(read_arrays(self.folder / GALLERY).items())}


def read_audit(model: str, audit: Audit, found: Artefact) -> AuditResult:
    """The findings of a finished audit; InputError if a file was changed."""
    told = json.loads(part(found, FINDINGS))
    result = AuditResult(
        model, audit, told["metrics"], tuple(told["failures"]), tuple(told["notes"]), found.folder, found.manifest["seconds"]
    )
    if not isinstance(audit, (Robustness, QueryCurve, Substitute, Transfer)) or ROWS not in found.manifest["files"]:
        return result
    rows = pq.read_table(pa.BufferReader(part(found, ROWS))).to_pydict()
    asked = tuple(queries for queries, turned in zip(rows["queries"], rows["success"]) if turned) if asks(audit) else ()
    attacked = sum(clean == y for clean, y in zip(rows["clean_prediction"], rows["y"]))
    return replace(result, right=_right(audit, rows), alone=_alone(audit, rows), asked=asked, attacked=attacked)


def _right(audit: Audit, rows: Mapping[str, Sequence[Any]]) -> dict[float, Right]:
    if isinstance(audit, Robustness):
        return {_rounded(eps): dict(zip(rows["key"], still_N.tolist())) for eps, still_N in audit.right_under_attack(rows).items()}
    eps = radius_of(audit)
    if eps is None:
        return {}
    return {_rounded(eps): {key: got == y for key, got, y in zip(rows["key"], rows["prediction"], rows["y"])}}


def _alone(audit: Audit, rows: Mapping[str, Sequence[Any]]) -> Right:
    if not isinstance(audit, Robustness) or not audit.worst:
        return {}
    columns = zip(rows["key"], rows["clean_prediction"], rows["alone_prediction"], rows["y"])
    return {key: clean == y == got for key, clean, got, y in columns}


def named(results: Sequence[AuditResult]) -> list[AuditResult]:
    """The results, each under a name that no other audit of them has."""
    called = audit_names(one.audit for one in results)
    return [replace(one, name=called[one.audit]) for one in results]


def not_believable(results: Sequence[AuditResult]) -> list[str]:
    """Sentences: what fails of the audits by themselves, and in comparison with each other.

    Robust accuracy must not rise with ε; an attack that sees the gradients must not be weaker than one that only asks; one that knows the
    defence must not be weaker than one that does not. Otherwise the robustness is that of a bad attack. Attacks search, so a few pictures
    may always fall on the wrong side: what counts is a difference beyond chance on the pictures that both attacked (`surely_more`).
    """
    found = [f"{one.model}: {one.telling(sentence.removeprefix(f'{one.model}: '))}" for one in results for sentence in one.failures]
    for model in dict.fromkeys(one.model for one in results):
        own = [one for one in results if one.model == model and one.right]
        measured = [(one.audit, one) for one in own if isinstance(one.audit, Robustness) and not one.audit.attack.minimal]
        found += [f"{model}: {sentence}" for rule in (_rising, _obliviousness_is_better) for sentence in rule(measured)]
        found += [f"{model}: {sentence}" for sentence in _blind_is_better(own)]
    return found


def surely_more(more: Right, less: Right) -> bool:
    """Whether the first leaves more of the pictures right that both attacked, beyond chance: one-sided exact sign test at 5 %."""
    both = more.keys() & less.keys()
    return beyond_chance(sum(more[key] and not less[key] for key in both), sum(less[key] and not more[key] for key in both))


def asks(audit: Audit) -> bool:
    """Whether it attacks the model by questions to it alone."""
    return isinstance(audit, QueryCurve) or (isinstance(audit, Robustness) and audit.attack.black_box)


Measured = Sequence[tuple[Robustness, AuditResult]]


def eps_of(audit: Robustness) -> float:
    """The attack's ε."""
    return audit.attack.eps  # type: ignore[attr-defined, no-any-return]


def without_eps(audit: Robustness) -> str:
    """Identifies an audit apart from its ε."""
    attack: Any = audit.attack
    return canonical(replace(audit, attack=replace(attack, eps=0.0)))


def _rising(measured: Measured) -> Iterator[str]:
    for key in dict.fromkeys(without_eps(audit) for audit, _ in measured):
        line = sorted((pair for pair in measured if without_eps(pair[0]) == key), key=lambda pair: eps_of(pair[0]))
        for (small, before), (large, after) in zip(line, line[1:]):
            if surely_more(_only(after), _only(before)):
                rising = f"{_percent(before)} right at ε = {radius(eps_of(small))} and {_percent(after)} at ε = {radius(eps_of(large))}"
                yield f"{after.label} leaves {rising}; it must not rise."


def _blind_is_better(own: Sequence[AuditResult]) -> Iterator[str]:
    """At every ε at which both were tried on the bare model. That an attack cannot reach one class says nothing of the others."""
    bare = [(one.audit, one) for one in own if getattr(one.audit, "defence", None) is None]
    seeing = [(audit, one) for audit, one in bare if isinstance(audit, Robustness) and not audit.attack.black_box]
    seeing = [(audit, one) for audit, one in seeing if getattr(audit.attack, "target", None) is None]
    for asking in (one for audit, one in bare if _is_blind(audit)):
        for eps, left in asking.right.items():
            white = [one.right[eps] for audit, one in seeing if audit.attack.norm == _norm(asking.audit) and eps in one.right]
            white = [one for one in white if one.keys() & left.keys()]
            if not white:
                continue
            best = min(white, key=lambda one: _share(one, left))
            if surely_more(best, left):
                yield (
                    f"{asking.label}, which sees no gradients, leaves {_share(left, best):.1f} % right at ε = {radius(eps)}; the best "
                    f"attack that sees gradients leaves {_share(best, left):.1f} % of the same pictures."
                )


def _obliviousness_is_better(measured: Measured) -> Iterator[str]:
    for audit, adaptive in measured:
        for other, oblivious in measured:
            if audit.mode != "adaptive" or other != replace(audit, mode="oblivious", worst=False):
                continue
            knowing = adaptive.alone or _only(adaptive)  # before the oblivious attack's results help it out
            if surely_more(knowing, _only(oblivious)):
                yield (
                    f"{oblivious.label} leaves {_percent(oblivious)} right at ε = {radius(eps_of(audit))}, the attack that knows the "
                    f"defence {_share(knowing, knowing):.1f} %{' by itself' if adaptive.alone else ''}."
                )


def _is_blind(audit: Audit) -> bool:
    return asks(audit) or isinstance(audit, Substitute) or (isinstance(audit, Transfer) and audit.source is not None)


def _norm(audit: Audit) -> str:
    attack: Any = getattr(audit, "attack", audit)
    return str(attack.norm)


def _only(one: AuditResult) -> Right:
    (right,) = one.right.values()
    return right


def _share(left: Right, among: Right) -> float:
    """What an attack left right of the pictures that another one attacked too, in percent."""
    both = left.keys() & among.keys()
    return 100 * sum(left[key] for key in both) / len(both)


def _percent(one: AuditResult) -> str:
    return f"{_share(_only(one), _only(one)):.1f} %"


def _rounded(eps: float) -> float:
    """Equal for two ε that differ by the rounding of a product alone."""
    return round(eps, 12)
