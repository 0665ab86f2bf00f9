"""Audits of stored models: all that are missing are made side by side, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from datasets.errors import InputError
from orchestrator.console.log import log
from orchestrator.results.audit_names import at_eps, audit_names
from orchestrator.results.audits import AuditResult, named, read_audit
from orchestrator.results.names import duration
from orchestrator.running.stages_on_ray import ensure_all, ensure_apart_each
from orchestrator.stages.audited import Audited, audited, newest
from orchestrator.stages.base import At, Stage, walk
from trainers.audit.base import Audit


@dataclass(frozen=True)
class StoredModel:
    """A stored model that is audited, under a name."""

    name: str
    model: Stage
    epoch: int | None = None
    """None: its last."""


def wanted_audits(models: Sequence[StoredModel], audits: Sequence[Audit], count: int, seed: int, at: At) -> list[tuple[str, Audited]]:
    """(name of the model, audit of it) for all models and audits, each once."""
    found = []
    for one in models:
        epoch = newest(one.model, at) if one.epoch is None else one.epoch
        found += [(one.name, audited(one.model, epoch, audit, count, seed)) for audit in audits]
    return list({(name, stage.fingerprint): (name, stage) for name, stage in found}.values())


def estimate(wanted: Sequence[tuple[str, Audited]], at: At) -> str:
    """A sentence: how many audits are stored, how many are to be made, and how long that takes by those with the same label in the
    store."""
    missing = [stage for _, stage in wanted if at.find(stage) is None]
    text = f"{len(wanted)} audits: {len(wanted) - len(missing)} stored, {len(missing)} to make"
    if not missing:
        return f"{text}."
    known: dict[str, list[tuple[int, float]]] = {}
    for artefact in at.store.all():
        if artefact.manifest["stage"] == Audited.kind:
            config = artefact.manifest["config"]
            known.setdefault(config["audit"]["label"], []).append((config["pictures"], artefact.manifest["seconds"]))
    times = [_expected(known.get(stage.audit.label, []), stage.count) for stage in missing]
    seconds, unknown = sum(time for time in times if time), sum(time is None for time in times)
    parts = [f"about {duration(seconds)} of one process"] if seconds else []
    parts += [f"{'without ' if seconds else ''}{unknown} of kinds that were never timed here"] if unknown else []
    return f"{text} ({', '.join(parts)})."


def _expected(timed: Sequence[tuple[int, float]], count: int) -> float | None:
    """Seconds for so many pictures, from (pictures, seconds) of audits that were made: those with the number of pictures nearest to it, and
    in proportion. Few pictures tell little of many, for the start of an audit is then most of it."""
    if not timed:
        return None
    nearest = min((pictures for pictures, _ in timed), key=lambda pictures: abs(pictures - count))
    return median(seconds for pictures, seconds in timed if pictures == nearest) * max(1, count) / max(1, nearest)


def make_audits(wanted: Sequence[tuple[str, Audited]], at: At) -> list[AuditResult]:
    """Make what is missing; the results in order. An audit that fails is told as a failure of its own and stops no other."""
    for _, stage in wanted:
        ensure_all([needed for needed in walk(*stage.needs) if at.find(needed) is None], at)
    missing = list(dict.fromkeys(stage for _, stage in wanted if at.find(stage) is None))
    names = audit_names(stage.audit for _, stage in wanted)
    called: dict[Stage, str] = {stage: f"{names[stage.audit]}{at_eps(stage.audit)} of {stage.model.name}" for _, stage in wanted}
    failed: dict[str, str] = {}
    for number, (done, failure) in enumerate(ensure_apart_each(missing, at), 1):
        if failure:
            failed[done.fingerprint] = str(failure)
        log.info(f"audit {number} of {len(missing)}: {called[done]}{' failed' if failure else ''}")
    results = []
    for name, stage in wanted:
        found = at.find(stage)
        why = failed.get(stage.fingerprint, "it was not made")
        results.append(read_audit(name, stage.audit, found) if found else AuditResult(name, stage.audit, failures=(f"{name}: {why}",)))
    return named(results)


def require_trained(models: Sequence[StoredModel], at: At) -> None:
    """InputError for a model that the store does not hold."""
    for one in models:
        if at.find(one.model) is None:
            raise InputError(f"store {at.store.root} does not hold {one.model} ({one.name}) yet: run the sweep first.")
