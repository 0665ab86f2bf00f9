"""`audit`: robustness, explanations, biases and the hidden trigger of the models of a sweep, or of checkpoints, on one page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets.component import shown
from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.synthetic import World
from orchestrator.cluster import session
from orchestrator.commands.arguments import ratio
from orchestrator.console.log import log, note, recording
from orchestrator.experiment.check import further_sets
from orchestrator.experiment.fingerprint import fingerprint
from orchestrator.experiment.spec import Compute, Experiment, Given
from orchestrator.report.audit import write_audit
from orchestrator.results.audit_names import at_eps, audit_names
from orchestrator.results.audits import AuditResult, not_believable
from orchestrator.results.selection import RULE, table
from orchestrator.running.audits import StoredModel, estimate, make_audits, require_trained, wanted_audits
from orchestrator.running.driver import make_tracker, read_study
from orchestrator.running.stages_on_ray import ensure_all
from orchestrator.stages.audited import Audited, marked
from orchestrator.stages.base import At, ensure, walk
from orchestrator.stages.graph import cleaned_by, make_data, trained_by
from orchestrator.store import Store, slug
from orchestrator.sweep.loading import loaded
from orchestrator.sweep.plan import Plan, trial_experiment
from orchestrator.sweep.targets import OWN as MEASURED_BY
from orchestrator.sweep.targets import experiments_of, own_stage
from orchestrator.sweep.titles import plan_titles
from trainers.audit.base import Audit
from trainers.audit.standard import Asked, named_audits

OWN, OWN_AUDITS = "own", "AUDITS"
"""The name for --only of the audits that a sweep's file has under the second name."""


def audit(plan: Plan, compute: Compute, options: argparse.Namespace) -> int:
    """Make the audits that are missing and write the page. The exit code is 1 if some audit failed or must not be believed."""
    if options.n < 1:
        raise InputError(f"--n is {options.n}; accepted: how many test pictures to audit, at least 1.")
    if options.rule not in RULE:
        raise InputError(f"--rule is {options.rule!r}; accepted: {', '.join(RULE)}.")
    radii = radii_of(options.eps)
    _audits(options, _asked(plan.sweep.base, radii))  # an unknown name is told before anything is read
    store = Store(compute.store)
    at = At(store=store, compute=compute)
    models = given_models(plan, options.checkpoint, store) if options.checkpoint else chosen_models(plan, store, options)
    if not options.checkpoint:
        require_trained(models, at)
    store.prepare()
    with recording(store.root, "audit"):
        try:
            return _audit(plan, compute, options, models, radii, at)
        finally:
            session.shutdown()


def _audit(
    plan: Plan, compute: Compute, options: argparse.Namespace, models: Sequence[StoredModel], radii: tuple[float, ...], at: At
) -> int:
    for one in walk(*(model.model for model in models)):
        if at.find(one) is None:  # of a checkpoint that was made elsewhere
            if options.dry:
                print(f"to make  {one}")
                continue
            session.connect(compute.num_cpus or None)
            if one.pretrained is one:
                make_data(one.pretrained.experiment, at)
            ensure_all([one], at)
    audits = _fitting(models, options, radii, at)
    wanted = wanted_audits(models, audits, options.n, options.seed, at)
    log.info(estimate(wanted, at))
    if options.dry:
        called = audit_names(stage.audit for _, stage in wanted)
        for name, stage in wanted:
            print(f"{'stored ' if at.find(stage) else 'to make'}  {called[stage.audit]}{at_eps(stage.audit)}: {name}")
        return 0
    if any(at.find(stage) is None for _, stage in wanted):
        session.connect(compute.num_cpus or None)
    results = make_audits(wanted, at)
    out = options.out or audit_folder(plan, at.store, wanted)
    facts = [
        ("sweep", plan.sweep.name), ("models", "; ".join(dict.fromkeys(one.name for one in models))),
        ("pictures", f"{options.n} of the test set at most, those with the smallest hashes of (seed {options.seed}, key)"),
    ]  # fmt: skip
    page = write_audit(results, out, f"Audit of {plan.sweep.name}", facts)
    print(f"audit: {page}")
    _track(plan, compute, wanted, results, at.store)
    wrong = not_believable(results)
    for sentence in wrong:
        log.error("%s", sentence)
    return 1 if wrong else 0


def _fitting(models: Sequence[StoredModel], options: argparse.Namespace, radii: tuple[float, ...], at: At) -> list[Audit]:
    """The audits that were asked for; of those that nobody named, the ones that fit the models."""
    source = models[0].model.pretrained
    assert source is not None
    if options.dry and at.find(source.testset) is None:  # its classes are not known yet
        return _audits(options, _asked(source.experiment, radii))
    ensure(source.testset, at)
    classes = source.testset.read(at).class_names
    found = []
    for audit in _audits(options, replace(_asked(source.experiment, radii), classes=len(classes))):
        try:
            audit.check(len(classes), marked(source.experiment))
            found.append(audit)
        except InputError as error:
            if options.only:
                raise
            note(f"{audit.label} is left out: {error}")
    if not found:
        raise InputError("no audit fits these models; see the notes above.")
    return found


def _asked(experiment: Experiment, radii: tuple[float, ...]) -> Asked:
    """What audits of the experiment's models depend on, as far as it is known before its test set is made."""
    tests = experiment.evaluate.data
    further = tuple(one for one in further_sets(experiment) if isinstance(one, EvalSet))
    return Asked(eps=radii, size=experiment.views.size, world=tests if isinstance(tests, World) else None, sets=further)


def _audits(options: argparse.Namespace, asked: Asked) -> list[Audit]:
    """The audits that were named, or the usual ones; `own`, or nothing named: those that the sweep's file has as AUDITS too."""
    names = tuple(filter(None, map(str.strip, (options.only or "").split(","))))
    if options.only is not None and not names:
        raise InputError(f"--only is {options.only!r}, which names no audit; leave it out for the usual ones.")
    own = getattr(loaded(options.sweep), OWN_AUDITS, ())
    strange = own if not isinstance(own, (tuple, list)) else next((one for one in own if not isinstance(one, Audit)), None)
    if strange is not None:
        raise InputError(f"{options.sweep}: {OWN_AUDITS} holds {shown(strange)}; accepted: a tuple of audits.")
    if OWN not in names:
        return [*named_audits(names, asked), *(() if names else own)]
    if not own:
        raise InputError(f"--only names {OWN!r}, but {options.sweep} has no {OWN_AUDITS} = (…,).")
    others = [name for name in names if name != OWN]
    return [*(named_audits(others, asked) if others else ()), *own]


def chosen_models(plan: Plan, store: Store, options: argparse.Namespace) -> list[StoredModel]:
    """Of each pre-training of the sweep the model before cleaning and those that the rule chose after it; or every model."""
    study, titles = read_study(plan, store), plan_titles(plan)
    sources = {stage.fingerprint: stage for stage in (trained_by(experiment) for _, experiment in plan.upstream)}
    after: dict[str, list[StoredModel]] = {one: [] for one in sources}
    if options.all:
        for trial in study.trials:
            if trial.status == "finished":
                stage = cleaned_by(trial_experiment(plan.sweep, trial.overrides))
                after[trial.pretrain].append(StoredModel(titles.get(stage.fingerprint, str(stage)), stage))
    else:
        for row in table(study):
            for choice in row.choices if row.rule.key == options.rule else ():
                if choice.trial is None or choice.point is None:
                    continue
                stage = cleaned_by(trial_experiment(plan.sweep, choice.trial.overrides))
                if not choice.checkpoint:
                    note(f"the weights of epoch {choice.point.epoch} of {stage} were not kept; the last epoch is audited instead.")
                title = titles.get(stage.fingerprint, str(stage))
                epoch = choice.point.epoch if choice.checkpoint else None
                after[choice.trial.pretrain].append(StoredModel(f"after: {title}", stage, epoch))
    found: list[StoredModel] = []
    for one, source in sources.items():
        found += [StoredModel(f"before: {titles.get(one, str(source))}", source), *after[one]]
    if plan.sweep.base.clean is not None and study.trials and not any(after.values()):
        note(f"no cleaned model qualifies for the rule {options.rule}: {RULE[options.rule].text}; only the models before are audited.")
    return found


def given_models(plan: Plan, checkpoints: Sequence[str], store: Store) -> list[StoredModel]:
    """The models of checkpoints: of stages of the sweep, or made elsewhere. InputError for one that does not exist."""
    for checkpoint in checkpoints:
        if not os.path.exists(checkpoint):
            raise InputError(
                f"--checkpoint {checkpoint} does not exist; accepted: an epoch folder such as …/epoch_0010, or a file of weights "
                "(.safetensors, .pt), but no tag of open_clip's."
            )
    experiments, titles = experiments_of(plan.sweep, {}, checkpoints, MEASURED_BY, str(store.root)), plan_titles(plan)
    found = []
    for checkpoint, experiment in experiments.items():
        path = Path(checkpoint).resolve()
        own = own_stage(plan, store, checkpoint) if store.root.resolve() in path.parents and path.name.startswith("epoch_") else None
        if own is not None:
            found.append(StoredModel(f"{titles.get(own.fingerprint, str(own))}, epoch {int(path.name[6:])}", own, int(path.name[6:])))
            continue
        given = Given(checkpoint=str(path), model=experiment.pretrain.model)
        bare = replace(experiment, pretrain=given, clean=None, keep=None, prior=None)
        found.append(StoredModel(checkpoint, trained_by(bare), 0))  # brought into the store as epoch 0
    return found


def radii_of(text: str) -> tuple[float, ...]:
    """The ε of `--eps 1/255,0.01`, rising. InputError for anything but shares of the full range above 0 and at most 1."""
    found = []
    for part in text.split(","):
        value = ratio(part)
        if not 0 < value <= 1:
            raise InputError(
                f"--eps {part.strip()}: ε is a share of a pixel's full range, above 0 and at most 1; write e.g. 4/255 or 0.016."
            )
        found.append(value)
    return tuple(sorted(set(found)))


def audit_folder(plan: Plan, store: Store, wanted: Sequence[tuple[str, Audited]]) -> Path:
    """The folder of the page, unless another is named: one for each set of audits."""
    which = fingerprint([[name, stage.fingerprint] for name, stage in wanted])
    return store.root / "reports" / f"audit-{slug(plan.sweep.name)}-{which[:12]}"


def _track(
    plan: Plan, compute: Compute, wanted: Sequence[tuple[str, Audited]], results: Sequence[AuditResult], store: Store
) -> None:
    """Log the numbers to the runs of the checkpoints, where the sweep has them in MLflow."""
    tracker = make_tracker(store, compute.tracking_uri, plan.sweep.name)
    for (_, stage), result in zip(wanted, results):
        values = {name: value for name, value in result.metrics.items() if value is not None}
        tracker.audited(plan.fingerprint, stage.model.fingerprint, result.title, stage.setting, values, stage.epoch)
