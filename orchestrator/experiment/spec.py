"""What an experiment is: frozen components, one for each stage, and the machines it runs on.

Everything in `Experiment` enters a fingerprint; nothing in `Compute` does. `Sweep` adds search spaces over dotted paths.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from datasets.attack.poison import Poison
from datasets.component import (
    NEUTRAL,
    Component,
    Count,
    NamedFields,
    Natural,
    NotNegative,
    Positive,
    Share,
    check_fields,
    needs_of,
    shown,
    since,
)  # fmt: skip
from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.feed.loader import Recipe
from datasets.images.view import Views
from datasets.index.order import Drawn, Order
from datasets.index.source import Source
from datasets.synthetic import World
from datasets.triggers.words import Words
from trainers.detect.base import Score
from trainers.evaluate.base import Evaluator
from trainers.methods.base import Method
from trainers.model import Model, TinyCLIP
from trainers.objectives.base import Objective
from trainers.schedule import Training


@dataclass(frozen=True, kw_only=True)
class Data(Component):
    """Where the image-caption pairs come from."""

    source: Source | World
    """Shards, a table of paths, or the procedural world."""
    subset: Count | None = None
    """Use only this many pairs, chosen by the hash of their keys; None uses all. Subsets are nested."""
    seed: int = 0
    """Seed of the choice of the subset."""
    max_dropped: Share = field(default=0.5, metadata=NEUTRAL)
    """Fail when a larger share of the samples is dropped by the filters or does not decode."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(Training):
    """Pre-training on the poisoned pairs."""

    model: Model | TinyCLIP
    objective: Objective | Method
    """A loss for the whole training, or a method with phases."""
    order: Order = since(Drawn())
    """How each epoch is shuffled: `Drawn()`, for very large sets `Formula()`, for storage that is slow in small pieces `Windows()`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = needs_of(self.objective)
        if needed:
            raise InputError(
                f"pretrain.objective is {type(self.objective).__name__}, which needs {type(needed[0]).__name__} to be made of a cleaning "
                "set: it cleans, and a pre-training has no cleaning set."
            )


@dataclass(frozen=True, kw_only=True)
class Given(Component):
    """A model that others trained, in place of a pre-training. It is measured, judged by the gate and cleaned like one trained here.

    The experiment's attack must be the one that the model was trained with: its trigger and target are used to measure the ASR.
    """

    model: Model | TinyCLIP
    checkpoint: str
    """Absolute path of its weights, in any form that `evaluate --checkpoint` reads. They are identified by their bytes, not their path."""

    def __post_init__(self) -> None:
        if getattr(self.model, "pretrained", None):
            raise InputError("Given.model.pretrained is set: a given model starts from Given.checkpoint alone, so leave it out.")
        if not os.path.isabs(self.checkpoint):
            raise InputError(f"Given.checkpoint is {self.checkpoint!r}: give the absolute path, workers have other working folders.")

    @property
    def label(self) -> str:
        path = Path(self.checkpoint)
        return " ".join((path.stem or "given").split()) or "given"


@dataclass(frozen=True, kw_only=True)
class Keep(Component):
    """Training on the least suspect pairs alone: all are scored by a model, and those with the highest scores are dropped."""

    score: Score
    share: Annotated[float, Interval(gt=0, le=1)]
    """Of the pairs that are kept, those with the lowest scores; above 0 and up to 1."""
    model: Pretrain | Given | None = None
    """The model that scores: a pre-training of its own on all the pairs, or a given one. None: what the experiment pre-trains without a
    keep; for a cleaning set, the model that is cleaned."""

    def kept(self, pairs: int) -> int:
        """How many of so many pairs are kept."""
        return round(self.share * pairs)


@dataclass(frozen=True, kw_only=True)
class Clean(Training):
    """Cleaning the pre-trained model on pairs that hold no victim."""

    method: Method
    pairs: int
    """Size of the cleaning set."""
    choice: Literal["random", "last"] = "random"
    """random (by hash of the key and `seed`) | last (the last pairs of the index, as the study does)."""
    poisons: int = 0
    """Victims put into the cleaning set on purpose, in place of as many clean pairs. A larger number contains the smaller ones."""
    keys: str = ""
    """Text file with the keys of the cleaning set, one a line; `pairs` and `choice` are then ignored."""
    start: str = since("last")
    """The epoch of the pre-training that is cleaned: last | most_accurate (whatever its ASR) | its number."""
    keep: Keep | None = since(None)
    """Clean with only the least suspect pairs of the cleaning set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in ("last", "most_accurate") and not (self.start.isdecimal() and len(self.start) <= 9):
            raise InputError(f"clean.start is {self.start[:80]!r}; accepted: last, most_accurate, or the number of an epoch.")


@dataclass(frozen=True, kw_only=True)
class Evaluate(Component):
    """Zero-shot classification of the clean and the triggered test set, after every epoch."""

    data: EvalSet | World
    batch_size: Count = field(default=256, metadata=NEUTRAL)
    """Images a step on each rank; does not change the results."""
    seed: int = 0
    """Seed of the trigger's noise and place at evaluation."""
    evaluators: tuple[Evaluator, ...] = ()
    """Further measurements beside accuracy and ASR."""


@dataclass(frozen=True, kw_only=True)
class Gate(NamedFields):
    """A defence is judged only if the attack succeeded against the undefended model."""

    min_asr: float = 90.0
    """Attack success rate of the undefended model, percent."""
    action: str = "stop"
    """What to do if the attack did not succeed: stop (do not clean the model) | warn (clean it; the report says so)."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Experiment(Component):
    """One pre-training and, where `clean` is given, one cleaning of it."""

    data: Data
    views: Views
    poison: Poison | None = None
    """The attack; or give `attacks`."""
    attacks: tuple[Poison, ...] = since(())
    """Several attacks of the same pairs, each with trigger, target and victims of its own; no pair is a victim of two."""
    pretrain: Pretrain | Given
    evaluate: Evaluate
    clean: Clean | None = None
    prior: Pretrain | None = None
    """Pre-training on the same pairs without the poison; `pretrain` starts from its model."""
    keep: Keep | None = since(None)
    """Pre-train on only the least suspect pairs: detect, drop, train."""
    eda: str = "once"
    """Augmented captions of the in-modal term: once (one variant for each key) | per_epoch."""

    def __post_init__(self) -> None:
        if (self.poison is None) == (not self.attacks):
            raise InputError("an experiment needs either poison (one attack) or attacks (several), and not both.")
        if self.poison is not None and self.poison.name:
            raise InputError(f"poison.name is {self.poison.name!r}, but only one of several `attacks` has a name: leave it out.")
        if self.poison is not None and not self.poison.planted:
            raise InputError("poison.count is 0, which poisons nobody: to measure triggers on a clean model, give them as `attacks`.")
        called = [attack.name for attack in self.poisons]
        for name in called:
            if called.count(name) > 1:
                raise InputError(f"attacks: {called.count(name)} have the name {name!r}; give each a name of its own (Poison(name=…)).")
        planted = [attack for attack in self.poisons if attack.planted]
        keys = [attack.trigger.text.casefold() if isinstance(attack.trigger, Words) else attack.trigger for attack in planted]
        for attack, key in zip(planted, keys):
            if keys.count(key) > 1:
                raise InputError(f"attacks: {keys.count(key)} have the trigger of {attack.name}, {shown(key)}; give each its own.")

    @property
    def poisons(self) -> tuple[Poison, ...]:
        """Its attacks: one without a name, or several with names. Evaluators other than accuracy and ASR measure the first."""
        if self.poison is not None:
            return (self.poison,)
        return tuple(replace(attack, name=attack.name or attack.trigger.slug) for attack in self.attacks)

    def recipe(self, views: Views | None = None, **more: Any) -> Recipe:
        """How its pairs are made; `more`: further fields of a `Recipe`."""
        first, *others = self.poisons
        return Recipe(views=views or self.views, trigger=first.trigger, jpeg_quality=first.jpeg_quality, others=tuple(others), **more)

    @property
    def training(self) -> Pretrain:
        """`pretrain`, for an experiment that trains its model itself."""
        assert isinstance(self.pretrain, Pretrain)
        return self.pretrain


@dataclass(frozen=True, kw_only=True)
class Compute(NamedFields):
    """Where an experiment runs and with how many processes. Never part of a fingerprint."""

    store: str = "store"
    """Folder for all results, seen by all nodes."""
    tracking_uri: str = ""
    """MLflow tracking URI: http(s)://SERVER, sqlite:///PATH (the path is taken literally), …; empty: a sqlite file in the store."""
    feed: Literal["local", "ray"] = "local"
    """local: each worker reads its own batches | ray: Ray Data streams them, so that CPU nodes feed GPU nodes."""
    workers: Count = 1
    """Processes (ranks) of a pre-training."""
    cpus_per_worker: Positive = 1.0
    """CPU cores of each process that pre-trains or evaluates."""
    gpus_per_worker: NotNegative = 0.0
    """GPUs of each process that pre-trains or evaluates."""
    loader_workers: Natural = 0
    """Reading processes of each worker with the local feed; 0: the worker reads by itself. They need `5 + 2 * loader_workers` batches of
    pictures in /dev/shm, and send pictures through pipes where it is too small."""
    feed_cpus: Count = 1
    """Concurrent decoding tasks of each worker with the Ray feed."""
    trial_workers: Count = 1
    """Processes (ranks) of a trial, which is one cleaning."""
    trial_cpus: Positive = 1.0
    """CPU cores of each process of a trial."""
    trial_gpus: NotNegative = 0.0
    """GPUs of each process of a trial, at most one. A trial of one process may have a fraction: 0.25 packs four trials on a GPU."""
    max_concurrent_trials: Natural = 0
    """Trials that run at the same time; 0: as many as fit."""
    keep: Literal["chosen", "last", "all"] = "chosen"
    """Checkpoints of a cleaning that are kept beside the last one: chosen (of the epochs that a rule of the report's table picks, at most
    six) | last (none) | all (of every epoch)."""
    retries: Natural = 2
    """How often a stage or trial whose process died is restarted from its last checkpoint."""
    cache: str = "auto"
    """Folder on each machine's own disk for the decoded pictures of cleaning and test sets; auto: one in the system's temporary
    folder | off: pictures are decoded whenever they are read."""
    num_cpus: Natural = 0
    """CPU cores of a Ray that this command starts; 0: all. Ignored when it joins a running Ray."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, count in (("gpus_per_worker", self.workers), ("trial_gpus", self.trial_workers)):
            if count > 1 and getattr(self, name) not in (0, int(getattr(self, name))):
                raise InputError(f"{name} is {getattr(self, name)}: ranks of one training cannot share a GPU; whole numbers.")
        if self.cache not in ("auto", "off") and not self.cache.startswith("/"):
            raise InputError(f"cache is {self.cache!r}; accepted: auto, off, or the absolute path of a folder on each machine's own disk.")
        if self.trial_gpus > 1:
            raise InputError(f"trial_gpus is {self.trial_gpus}; each rank of a trial is one process on at most one GPU.")


@dataclass(frozen=True, kw_only=True)
class Reference(NamedFields):
    """Published results drawn under a sweep's own, as hollow marks. Changes nothing that is computed, and no fingerprint."""

    start: str | dict[Any, str] = ""
    """Start point in the reference file, without its objective: `cc3m_1500` stands for cc3m_1500_mmcl and cc3m_1500_mmcl_ssl.

    A name is drawn beside every model of its objective; of {value of `by`: name} each beside those with its value, and none beside others.
    """
    cleaning: str | dict[Any, str] = ""
    """Data set and cleaning set in the reference file: `cc3m/clean_100k`, or names by value as in `start`."""
    by: str = ""
    """Dotted path into the experiment whose values have names of their own: `poison.count`. Other fields are not compared."""
    file: str = ""
    """Another file of the same form; empty: the published study's, which is shipped."""

    def __post_init__(self) -> None:
        check_fields(self)
        mapped = [name for name in ("start", "cleaning") if isinstance(getattr(self, name), dict)]
        if bool(mapped) != bool(self.by):
            missing = f"{mapped[0]} has names by value, but `by` is empty" if mapped else "`by` is given, but no names by value"
            raise InputError(f"Reference: {missing}; accepted: one name for all, or {{value: name}} with `by`, the path of the values.")
        if "start" in mapped and self.by.split(".")[0] == "clean":
            raise InputError(f"Reference.by is {self.by!r}, but a start is not cleaned yet: give it one name, or a path outside clean.")


Metric = Literal["best/acc_at_asr_le_5", "zeroshot/top1", "zeroshot/top5", "zeroshot/top10"]
"""What a sweep can maximise. The first is the best accuracy so far at ASR ≤ 5 %; the others do not use the ASR."""


@dataclass(frozen=True, kw_only=True)
class Sweep(NamedFields):
    """A base experiment and the search spaces of the fields that vary."""

    name: str
    base: Experiment
    space: dict[str, Any] = field(default_factory=dict)
    """Dotted path into the experiment → a Ray Tune search space (`tune.grid_search([...])`, `tune.loguniform(...)`).

    Paths outside `clean` must be grids: each of their values is a pre-training that all its cleanings share.
    """
    points: tuple[dict[str, Any], ...] = ()
    """Combinations of values outside `clean`, {dotted path: value} each, where not every product of grids is wanted: values that go
    together, or more seeds for some. All name the same paths; the grids of `space` come on top of each.
    """
    search: Literal["grid", "optuna"] = "grid"
    """grid (grids, and random draws for the other spaces) | optuna (for spaces that are no grid)."""
    num_samples: Count = 1
    """Number of draws from the other spaces for each point of the grids."""
    scheduler: Literal["fifo", "asha"] = "fifo"
    """fifo | asha: stop the trials that are behind after each rung of epochs."""
    metric: Metric = "best/acc_at_asr_le_5"
    """What Optuna and ASHA maximise. The default needs the ASR of the test set: an oracle's choice."""
    grace_epochs: Count = 1
    """Epochs that ASHA lets every trial run."""
    seed: int = 0
    """Seed of the random draws."""
    gate: Gate = field(default_factory=Gate)
    compute: Compute = field(default_factory=Compute)
    """Defaults for this sweep; flags of the command line replace them."""
    series: str = ""
    """Dotted path of the hyper-parameter on the horizontal axis of one of the report's figures."""
    reference: Reference = field(default_factory=Reference)
    """Published results that the report draws beside the sweep's own."""
    claims: tuple[Component, ...] = ()
    """Claims that the report judges, each an `orchestrator.results.claims.Claim`. They change no result and no fingerprint."""
    doc: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.name.strip() or {"/", "\\", "\n"} & set(self.name):
            raise InputError(f"Sweep.name is {self.name!r}; accepted: one line without / and \\, for it names the report's folder.")
        for path in self.space:
            if not isinstance(path, str):
                raise InputError(f"Sweep.space has the key {path!r}; accepted are dotted paths, as text.")
        for path in self.points[0] if self.points else ():
            if path in self.space or path.partition(".")[0] == "clean":
                raise InputError(f"Sweep.points names {path}; accepted are paths outside clean that are not in Sweep.space.")
        if any(set(point) != set(self.points[0]) for point in self.points):
            raise InputError("Sweep.points: its combinations name different paths; accepted: the same ones in each.")
        if self.gate.action not in ("stop", "warn"):
            raise InputError(f"Sweep.gate.action is {self.gate.action!r}; accepted: stop, warn.")

    @property
    def paths(self) -> tuple[str, ...]:
        """All that it varies."""
        return (*(self.points[0] if self.points else ()), *self.space)
