"""Checks of an experiment that read no data: whether its fields fit each other, and what it needs."""

from dataclasses import replace

from datasets.component import needs_of
from datasets.errors import InputError, its_type
from datasets.evaluation.classes import target_index
from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.retrieval import RetrievalSet
from datasets.synthetic import World
from orchestrator.experiment.identity import clean_pairs
from orchestrator.experiment.spec import Experiment, Given, Keep, Pretrain
from trainers.detect.cosine import CosineByReference
from trainers.detect.early_loss import EarlyLoss
from trainers.evaluate.analysis import Analysis
from trainers.evaluate.bdetclip import BDetCLIP
from trainers.evaluate.decree import Decree
from trainers.evaluate.detection import Detection
from trainers.evaluate.linear_probe import LinearProbe
from trainers.evaluate.mmbd import MMBD
from trainers.evaluate.other_trigger import OtherTrigger
from trainers.evaluate.retrieval import Retrieval
from trainers.evaluate.targeted import TargetedSuccess
from trainers.evaluate.text_triggers import DualKeyCells, TextTrigger
from trainers.evaluate.zeroshot import ZeroShotASR
from trainers.methods.base import Method
from trainers.methods.with_labels import WithLabels
from trainers.model import Model, TinyCLIP

ONE_EACH = (ZeroShotASR, Analysis, Detection, LinearProbe, Retrieval, TextTrigger, DualKeyCells, TargetedSuccess, Decree, MMBD, BDetCLIP)
"""Evaluators that may be given once only, because their metrics have the same names whatever their fields."""


def further_sets(experiment: Experiment) -> tuple[EvalSet | RetrievalSet, ...]:
    """The evaluation and retrieval sets that its evaluators need beside the test pictures, each once."""
    return tuple(need for need in needs_of(experiment.evaluate.evaluators) if isinstance(need, (EvalSet, RetrievalSet)))


def unpoisoned(experiment: Experiment, spec: Pretrain) -> Experiment:
    """The experiment that pre-trains by `spec` on the same pairs without the poison.

    Only accuracy and attack success are measured; the latter is then the floor.
    """
    return replace(
        experiment,
        pretrain=spec,
        views=replace(experiment.views, size=spec.model.image_size),
        evaluate=replace(experiment.evaluate, evaluators=()),
        prior=None,
        keep=None,
        clean=None,
    )


def labelling(experiment: Experiment) -> WithLabels | None:
    """The part of the cleaning method that needs a stage of labels; None if there is none."""
    parts = experiment.clean.method.parts() if experiment.clean is not None else ()
    return next((part for part in parts if isinstance(part, WithLabels)), None)


def check(experiment: Experiment) -> None:
    """All checks that read no data. InputError for fields that do not fit each other."""
    size = experiment.pretrain.model.image_size
    if experiment.views.size != size:
        raise InputError(
            f"views.size is {experiment.views.size}, but the model takes pictures of {size}×{size}: set views.size to {size}."
        )
    if experiment.eda not in ("once", "per_epoch"):
        raise InputError(f"eda is {experiment.eda!r}; accepted: once, per_epoch.")
    for attack in experiment.poisons:
        attack.trigger.check(size)
    clean = experiment.clean
    if clean is not None:
        epochs = getattr(experiment.pretrain, "epochs", 0)
        if clean.start.isdecimal() and not min(epochs, 1) <= int(clean.start) <= epochs:
            stored = f"1 to {epochs}" if epochs else "0, for a given model has no other"
            raise InputError(f"clean.start is {clean.start}; the pre-training has a checkpoint after the epochs {stored}.")
        pairs = clean_pairs(clean)
        if pairs < clean.batch_size:
            what = f"clean.keys {clean.keys} holds {pairs} keys" if clean.keys else f"clean.pairs is {pairs}"
            raise InputError(f"{what}, fewer than one batch of {clean.batch_size}.")
        most = min(pairs, sum(pairs if attack.count is None else attack.count for attack in experiment.poisons))
        if not 0 <= clean.poisons <= most:
            raise InputError(f"clean.poisons is {clean.poisons}; accepted are 0 to {most}, of {pairs} pairs to clean with.")
        if clean.keep is not None:
            clean.keep.score.check(pairs, "clean.keep.score")
            trusted = clean.keep.score.trusts
            if isinstance(trusted, int) and trusted > pairs - clean.poisons:
                raise InputError(f"clean.keep.score.trusted is {trusted}, but only {pairs - clean.poisons} of the {pairs} pairs to clean "
                                 "with are no victims.")  # fmt: skip
            pairs, whole = clean.keep.kept(pairs), pairs
            if pairs < clean.batch_size:
                raise InputError(f"clean.keep.share is {clean.keep.share}, which leaves {pairs} of {whole} pairs: fewer than one batch of "
                                 f"{clean.batch_size}.")  # fmt: skip
        clean.check(clean.epochs * (pairs // clean.batch_size), 1)
        for part in clean.method.parts():
            part.check(pairs)
            part.check_training(clean, pairs)
    check_methods(experiment)
    _check_model(experiment.pretrain.model, "pretrain.model")
    method = labelling(experiment)
    if method is not None:
        if not isinstance(method.labeller, (Model, Pretrain)):
            raise InputError(f"labeller is {its_type(method.labeller)}; accepted: a Model with pretrained, or a Pretrain.")
        labeller = method.labeller if isinstance(method.labeller, Model) else method.labeller.model
        _check_model(labeller, "labeller" if labeller is method.labeller else "labeller.model")
        for attack in experiment.poisons:
            attack.trigger.check(labeller.image_size)
    if isinstance(experiment.pretrain, Given) and experiment.prior is not None:
        raise InputError("prior is set, but pretrain is a given model, which is not trained here: leave the prior out.")
    if experiment.prior is not None:
        _check_model(experiment.prior.model, "prior.model")
        if getattr(experiment.pretrain.model, "pretrained", None):
            raise InputError("pretrain.model.pretrained is set, but pretrain starts from the prior: set prior.model.pretrained instead.")
        if blank(experiment.prior.model) != experiment.pretrain.model:
            raise InputError("prior.model is another model than pretrain.model, which starts from its weights: give both the same fields.")
    if experiment.keep is not None and isinstance(experiment.pretrain, Given):
        raise InputError("keep is set, but pretrain is a given model, which is not trained here: leave the keep out, or set clean.keep.")
    for where, keep in (("keep", experiment.keep), ("clean.keep", None if clean is None else clean.keep)):
        if keep is not None:
            _check_keep(experiment, keep, where)
    first = experiment.poisons[0]
    looking = [type(one).__name__ for one in experiment.evaluate.evaluators if isinstance(one, (Analysis, LinearProbe, Retrieval))]
    if looking and not first.trigger.marks:
        raise InputError(
            f"evaluate.evaluators: {looking[0]} looks at pictures with the first attack's trigger, {type(first.trigger).__name__}, which "
            "leaves them as they are; put an attack that marks pictures first, or leave it out."
        )
    for one in experiment.evaluate.evaluators:
        one.check({attack.name: attack.trigger for attack in experiment.poisons})
    measured = [ZeroShotASR, *map(type, experiment.evaluate.evaluators)]
    for kind in ONE_EACH:
        if measured.count(kind) > 1:
            raise InputError(
                f"evaluate.evaluators: {kind.__name__} would be measured twice, under the same names; accepted: "
                f"{', '.join(one.__name__ for one in ONE_EACH[1:])} once each (ZeroShotASR always is)."
            )
    others = [one for one in experiment.evaluate.evaluators if isinstance(one, OtherTrigger)]
    for one in others:
        one.trigger.check(size)
        if [other.name for other in others].count(one.name) > 1:
            raise InputError(f"evaluate.evaluators: two OtherTrigger are called {one.name!r}; give each a name of its own.")
    if isinstance(experiment.evaluate.data, World):
        attacked = [attack.target for attack in experiment.poisons if not attack.all_to_all]
        for target in (*attacked, *(one.target for one in others if one.target is not None)):
            target_index(experiment.evaluate.data.class_names, target)


def check_methods(experiment: Experiment, pairs: int | None = None) -> None:
    """InputError if the method of a pre-training does not fit its fields or, once the pairs are indexed, their number."""
    left = pairs if pairs is None or experiment.keep is None else experiment.keep.kept(pairs)
    for training, count in ((experiment.pretrain, left), (experiment.prior, pairs)):
        if isinstance(training, Pretrain) and isinstance(training.objective, Method):
            for part in training.objective.parts():
                if count is not None:
                    part.check(count)
                part.check_training(training, count)


def _check_keep(experiment: Experiment, keep: Keep, where: str) -> None:
    model = keep.model or experiment.pretrain
    if keep.model is None and isinstance(keep.score, CosineByReference):
        raise InputError(
            f"{where}.score is CosineByReference, which needs a model that has not learnt the backdoor: set {where}.model, or use "
            "CosineByModel."
        )
    if isinstance(model, Given) and isinstance(keep.score, EarlyLoss):
        raise InputError(f"{where}.score is EarlyLoss, which needs the checkpoints of a training; the model that scores is a given one.")
    if keep.model is not None:
        _check_model(keep.model.model, f"{where}.model.model")
        for attack in experiment.poisons:
            attack.trigger.check(keep.model.model.image_size)


def blank(model: Model | TinyCLIP) -> Model | TinyCLIP:
    """The model without `pretrained`: weights are loaded into it afterwards."""
    return replace(model, pretrained=None) if isinstance(model, Model) else model


def _check_model(model: Model | TinyCLIP, where: str) -> None:
    if isinstance(model, Model):
        model.check(where)
        if model.file is not None and not model.file.is_absolute():
            raise InputError(f"{where}.pretrained is {model.pretrained!r}: give the absolute path, workers have other working folders.")
