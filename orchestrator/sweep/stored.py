"""Reading a sweep back from the store."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.evaluation.classes import target_index
from orchestrator.experiment.fingerprint import described, encode
from orchestrator.experiment.spec import Experiment, Gate
from orchestrator.manifest import commit
from orchestrator.results.kinds import names
from orchestrator.results.outcome import StageResult, StageState, Study, TrialResult
from orchestrator.results.published import load_published
from orchestrator.stages.base import Stage, place
from orchestrator.stages.cleaned import Cleaned
from orchestrator.stages.graph import cleaned_by, stages, trained_by
from orchestrator.stages.measured import afterwards, arrays_of, lines_of, measurements
from orchestrator.stages.trained import Trained, Unpoisoned
from orchestrator.store import Store, part, read_failure
from orchestrator.sweep.plan import Plan, claims_of, trial_experiment
from orchestrator.sweep.records import Records
from trainers.evaluate.choice import measured


def load_study(plan: Plan, store: Store, trials: "list[Trial] | None" = None, *, live: bool = False) -> Study:
    """As `Reader.read`, once."""
    return Reader(plan, store).read(trials, live=live)


@dataclass(frozen=True)
class Asked:
    """A training that a sweep asks for."""

    experiment: Experiment
    stage: Stage
    config: dict[str, Any]
    """The experiment with the labels of its components."""
    measurements: tuple[Stage, ...]
    """What is asked for of its checkpoints; such a stage is made where it was not measured during the training."""
    unpoisoned: "tuple[tuple[str, Asked], ...]"
    """(role, training) of the trainings without the poison among its experiment's stages."""


class Reader:
    """Reads a sweep from the store, again and again: what was finished when it was read is not opened again while its folder is there."""

    def __init__(self, plan: Plan, store: Store):
        self.plan, self.store = plan, store
        self.now = store.listed()
        """The store when it was read last."""
        self._records = Records(plan, store)
        self._upstream: list[Asked] = []
        self._trials: list[Trial] = []
        """Those of the grid."""
        self._asked: dict[str, Asked] = {}
        """First digits of a trial's fingerprint → the trial."""
        self._kept: dict[str, tuple[Any, StageResult]] = {}
        """Fingerprint → the folders that a finished training was read from, and what was read."""
        self._judged: dict[str, tuple[Any, dict[str, Any]]] = {}
        """Fingerprint → the folders that a verdict of the gate comes from, and the verdict."""
        self._named: tuple[frozenset[str], dict[str, str]] = frozenset(), {}
        self._poison: tuple[Any, tuple[dict[str, Any], list[dict[str, Any]], str]] | None = None
        """The folders that the poison was read from, and what was read."""
        sweep = plan.sweep
        self._facts: dict[str, Any] = {
            "name": sweep.name, "doc": sweep.doc, "fingerprint": plan.fingerprint, "config": encode_sweep(plan), "commit": commit(),
            "series": sweep.series, "published": load_published(sweep.reference), "claims": claims_of(sweep),
        }  # fmt: skip

    def read(self, trials: "list[Trial] | None" = None, *, live: bool = False) -> Study:
        """Everything the store holds of the sweep: finished stages, and the lines of those that are not.

        `trials` are those that Tune ran; without them the sweep's grid or draws are used, or Optuna's recorded draws. `live`: the sweep
        is under way, so a trial that failed may be tried again and counts as running.
        """
        plan = self.plan
        self.now = store = self.store.listed()
        study = Study(**self._facts)
        self._upstream = self._upstream or [_asked(experiment, trained_by(experiment)) for _, experiment in plan.upstream]
        for asked in self._upstream:
            trained = asked.stage
            assert isinstance(trained, Trained)
            self._read_unpoisoned(study, asked)
            _read_dropped(study, trained.kept, store, "pre-training")
            self._read_poison(study, trained)
            result = self._result(asked, StageResult)
            if result is None:
                continue
            if result.status != "finished" and not live and (failed := _failed(result.folder)):
                result.status, result.error, result.failure = "failed", *failed
            study.pretrains.append(result)
            verdict = self._verdict(asked, trained)
            if verdict is not None:
                study.gates[result.fingerprint] = verdict
        if not live:
            study.stages = _stages(plan, store)
        known: set[str] = set()
        for trial in self._known_trials() if trials is None else trials:
            asked = self._of(trial)
            if asked.stage.fingerprint in known:
                continue  # two draws of the same values are two trials, but one cleaning
            known.add(asked.stage.fingerprint)
            self._read_trial(study, trial, asked, given=trials is not None, live=live)
        self._name(study)
        return study

    def _read_trial(self, study: Study, trial: "Trial", asked: Asked, *, given: bool, live: bool) -> None:
        """Add a trial to the study if it has begun."""
        cleaned = asked.stage
        assert isinstance(cleaned, Cleaned)
        self._read_unpoisoned(study, asked)
        _read_dropped(study, cleaned.kept, self.now, "cleaning")
        status, error, failure = trial.status, trial.error, trial.failure
        if not given and not live and (failed := _failed(self.now.work(cleaned.kind, cleaned.fingerprint))):
            status, error, failure = "failed", *failed
        result = self._result(asked, TrialResult)
        if result is None and status != "failed":
            gate = self.plan.sweep.gate
            refused = gate.action == "stop" and study.gates.get(cleaned.model.fingerprint, {}).get("passed") is False
            study.missing += not refused
            return
        if result is None:
            result = TrialResult(
                stage=cleaned.kind, name=cleaned.name, fingerprint=cleaned.fingerprint,
                folder=self.now.work(cleaned.kind, cleaned.fingerprint), config=asked.config, status=status,
            )  # fmt: skip
        assert isinstance(result, TrialResult)
        result.overrides = trial.overrides
        result.pretrain = cleaned.model.fingerprint
        if result.status != "finished":
            result.status, result.error, result.failure = status, error, failure
        study.trials.append(result)

    def _of(self, trial: "Trial") -> Asked:
        """The trial's experiment and cleaning."""
        digits = trial.fingerprint[:12]
        if digits not in self._asked:
            experiment = trial_experiment(self.plan.sweep, trial.overrides)
            self._asked[digits] = _asked(experiment, cleaned_by(experiment))
        return self._asked[digits]

    def _known_trials(self) -> "list[Trial]":
        """Every known trial; the store tells which of them are finished."""
        records = self._records.read()
        if self.plan.grid is None:
            return [Trial(record.overrides, record.trial, record.status or "running") for record in records]
        if not self._trials:
            for overrides, experiment in self.plan.grid:
                stage = cleaned_by(experiment)
                self._trials.append(Trial(overrides, stage.fingerprint, "running"))
                if stage.fingerprint[:12] not in self._asked:
                    self._asked[stage.fingerprint[:12]] = _asked(experiment, stage)
        stopped = {record.trial for record in records if record.status == "stopped"}
        return [replace(trial, status="stopped") if trial.fingerprint[:12] in stopped else trial for trial in self._trials]

    def _result(self, asked: Asked, kind: type[Any]) -> Any:
        """As `read_stage`."""
        stage, store = asked.stage, self.now
        found = self._folders(stage, *asked.measurements)
        if not found[0] and not store.has(store.work(stage.kind, stage.fingerprint)):
            return None
        where, result = self._kept.get(stage.fingerprint, ((), None))
        if result is None or where != found:
            result = read_stage(store, stage, asked.config, kind)
            if result is not None and result.status == "finished":
                self._kept[stage.fingerprint] = found, result
        return result

    def _folders(self, *stages: Stage) -> tuple[tuple[str, ...], ...]:
        """The names of the stages' finished folders."""
        named = (self.now.ending(one.kind, one.fingerprint[:12]) for one in stages)
        return tuple(tuple(name for name in names if not name.startswith(".")) for names in named)

    def _verdict(self, asked: Asked, trained: Trained) -> dict[str, Any] | None:
        """As `judge`."""
        found = self._folders(trained, *asked.measurements, trained.attack, trained.testset)
        where, verdict = self._judged.get(trained.fingerprint, ((), None))
        if verdict is None or where != found:
            verdict = judge(self.now, trained, self.plan.sweep.gate)
            if verdict is not None:
                self._judged[trained.fingerprint] = found, verdict
        return verdict

    def _name(self, study: Study) -> None:
        """Set what the objectives and methods are called in the study."""
        results = [*study.pretrains, *study.trials]
        known, called = self._named
        if known != (fingerprints := frozenset(result.fingerprint for result in results)):
            for result in results:
                result.called = ""  # a name depends on the other names in the study
            called = names(study.pretrains) | names(study.trials)
            self._named = fingerprints, called
        for result in results:
            result.called = called[result.fingerprint]

    def _read_unpoisoned(self, study: Study, asked: Asked) -> None:
        """Add an experiment's trainings without the poison to the study, unless it has them."""
        for role, training in asked.unpoisoned:
            result = next((known for known in study.priors if known.fingerprint == training.stage.fingerprint), None)
            if result is None:
                result = self._result(training, StageResult)
                study.priors += [result] if result else []
            if result and role not in result.role:
                result.role = f"{result.role} and {role}" if result.role else role

    def _read_poison(self, study: Study, trained: Trained) -> None:
        """Add what the store holds of the poison, unless the study has it."""
        if study.poison:
            return
        found = self._folders(trained.attack, trained.attack.index, trained.testset)
        if self._poison is None or self._poison[0] != found:
            self._poison = found, _read_poison(trained, self.now)
        study.poison, study.samples, study.data_hash = self._poison[1]


def _asked(experiment: Experiment, stage: Stage) -> Asked:
    made = stages(experiment).items()
    unpoisoned = tuple((role, _asked(one.experiment, one)) for role, one in made if isinstance(one, Unpoisoned) and one is not stage)
    return Asked(experiment, stage, described(experiment), tuple(measurements(stage)), unpoisoned)


def _stages(plan: Plan, store: Store) -> list[StageState]:
    """Every stage of the trials that are known before Optuna draws any, by kind."""
    wanted = plan.known()
    for stage in list(wanted.values()):
        wanted |= {later.fingerprint: later for later in afterwards(store, stage)}
    states = []
    for stage in sorted(wanted.values(), key=place):
        found = store.find(stage.kind, stage.fingerprint)
        begun = store.work(stage.kind, stage.fingerprint).is_dir()
        state, seconds = ("finished", found.manifest["seconds"]) if found else ("begun" if begun else "to do", 0.0)
        states.append(StageState(kind=stage.kind, name=stage.name, fingerprint=stage.fingerprint, state=state, seconds=seconds))
    return states


def read_stage(store: Store, stage: Stage, config: Any, kind: type[Any]) -> Any:
    """The stage's result from its artefact or its working folder; None where there is neither. InputError for an artefact whose metrics
    were lost or broken, which would look like a stage that measured nothing.
    """
    found = store.find(stage.kind, stage.fingerprint)
    folder = found.folder if found else store.work(stage.kind, stage.fingerprint)
    lines = lines_of(store, stage)
    if not found and not lines:
        return None
    return kind(
        stage=stage.kind,
        name=stage.name,
        fingerprint=stage.fingerprint,
        folder=folder,
        arrays=arrays_of(store, stage),
        config=config,
        metrics=lines,
        seconds=found.manifest["seconds"] if found else (lines[-1]["seconds"] if lines else 0.0),
        status="finished" if found else "running",
        commit=found.manifest["commit"] if found else "",
    )


def judge(store: Store, stage: Trained, gate: Gate) -> dict[str, Any] | None:
    """The attack gate's verdict on a pre-training; None until that is finished and measured."""
    from trainers.evaluate.gate import attack_gate, nobody_poisoned, of_all

    attack = stage.attack
    points = measured(lines_of(store, stage))
    poison, tests = store.find(attack.kind, attack.fingerprint), store.find(stage.testset.kind, stage.testset.fingerprint)
    if store.find(stage.kind, stage.fingerprint) is None or poison is None or tests is None or not points:
        return None
    classes = json.loads(part(tests, "classes.json"))["names"]
    summary = json.loads(part(poison, "summary.json"))
    verdicts, last = {}, points[-1].metrics
    if not attack.planted:
        return nobody_poisoned(last, gate.min_asr)
    for one in attack.planted:
        told = summary["attacks"][one.name] if attack.several else summary
        group = f"asr/{one.name}/" if attack.several else "asr/"
        verdicts[one.name] = attack_gate(
            {**last, **{f"asr/{name}": last[f"{group}{name}"] for name in ("top1", "floor") if f"{group}{name}" in last}},
            target=classes[0] if one.all_to_all else classes[target_index(classes, one.target)],
            class_names=classes,
            captions_with_target=told["captions_with_target"],
            captions=told["victims"],
            visibility=told["visibility"],
            threshold=gate.min_asr,
        )
    return of_all(verdicts) if attack.several else verdicts[""]


def encode_sweep(plan: Plan) -> dict[str, Any]:
    """The sweep as plain JSON: the whole base experiment, and what is varied."""
    return {**plan.stage.config, "base": described(plan.sweep.base)}


@dataclass(frozen=True)
class Trial:
    """A trial of a sweep: its values and, when it has ended, how."""

    overrides: dict[str, Any]
    fingerprint: str
    status: str
    """finished | stopped | failed | running"""
    error: str | None = None
    failure: str = ""
    """Kind of the failure, one of `failures`."""


def _failed(folder: Path) -> tuple[str, str] | None:
    """(text, kind) of the failure that is recorded in a stage's working folder."""
    failed = read_failure(folder)
    return (failed["error"], failed["kind"]) if failed else None


def _read_dropped(study: Study, kept: Stage | None, store: Store, of: str) -> None:
    """Add what was dropped of the pairs of a pre-training or a cleaning, unless the study holds it."""
    found = None if kept is None else store.find(kept.kind, kept.fingerprint)
    if kept is None or found is None or any(one["fingerprint"] == kept.fingerprint for one in study.dropped):
        return
    entry = {"of": of, "name": kept.name, "fingerprint": kept.fingerprint}
    study.dropped.append({**entry, **json.loads(part(found, "summary.json"))})


def _read_poison(trained: Trained, store: Store) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """Facts of the poison, its sample sheet, and the hash of the data; empty until index and plan are made."""
    experiment = trained.experiment
    found = (store.find(stage.kind, stage.fingerprint) for stage in (trained.attack, trained.attack.index, trained.testset))
    poison, index, tested = found
    if poison is None or index is None:
        return {}, [], ""
    tests = json.loads(part(tested, "summary.json")) if tested else {"kept": None, "drops": {}}
    read = json.loads(part(index, "summary.json"))
    told = json.loads(part(poison, "summary.json"))
    if "attacks" in told:
        told["found"] = told.pop("attacks")
    facts = {
        **({"attacks": encode(experiment.poisons, "attacks")} if experiment.poison is None else encode(experiment.poison, "poison")),
        **told,
        "samples": read["samples"],
        "kept": read["kept"],
        "drops": read["drops"],
        "test_pictures": tests["kept"],
        "test_drops": tests["drops"],
    }
    entries = json.loads(part(poison, "samples.json"))
    kinds = ("clean", "triggered")
    samples = [{**entry, **{kind: part(poison, f"samples/{i}-{kind}.png") for kind in kinds}} for i, entry in enumerate(entries)]
    return facts, samples, index.manifest["files"]["index.arrow"]
