"""A matrix: attacks × defences × seeds. It is a list of ordinary sweeps, one a defence, over the same store.

So pre-trainings are shared, an interrupted matrix is continued, and each of its sweeps has its report and its runs in MLflow.
"""

import itertools
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from datasets.attack.poison import Poison
from datasets.component import NamedFields, check_fields
from datasets.errors import InputError, its_type
from orchestrator.experiment.override import override_all
from orchestrator.experiment.spec import Compute, Experiment, Gate, Pretrain, Sweep
from trainers.evaluate.choice import RULE

NONE = "none"
"""The column of the undefended models; always there, and the first."""
SEED = "pretrain.seed"
LONGEST = 80
"""Characters of a row's or column's name, as in the schema of result files."""
SAME = ("poison", "attacks", "data", "evaluate.data", "evaluate.seed", SEED)
"""What no defence may change, with all that is below it."""
BELOW = tuple(f"{path}." for path in SAME)
UNJUDGED = Gate(min_asr=0.0, action="warn")
"""Of a defence that is a pre-training: where it works the attack does not take, which is no reason to stop."""
Model = tuple[str, int]
"""One of the matrix's undefended models: the row and the seed."""


@dataclass(frozen=True, kw_only=True)
class Defence(NamedFields):
    """A column: what a defence changes in the experiment, and what it is tuned by."""

    changes: dict[str, Any] = field(default_factory=dict)
    """Dotted path into the base experiment → value: {"clean.method": CleanCLIP()}, {"pretrain.objective": SafeCLIP()}, …"""
    space: dict[str, Any] = field(default_factory=dict)
    """Dotted path → the values to try, a list or `tune.grid_search([...])`. Every combination is a trial on every model."""

    def __post_init__(self) -> None:
        check_fields(self)
        for path, values in self.space.items():
            values = values.get("grid_search") if isinstance(values, dict) else values
            if not isinstance(values, (list, tuple)) or not values:
                raise InputError(f"Defence.space: {path} has {values!r}; accepted: a list of values, for the trials are counted.")

    @property
    def grids(self) -> dict[str, list[Any]]:
        return {path: list(values["grid_search"] if isinstance(values, dict) else values) for path, values in self.space.items()}

    @property
    def trials(self) -> int:
        """Settings that are tried on each model."""
        return math.prod(map(len, self.grids.values()))

    @property
    def cleans(self) -> bool:
        """Whether it cleans a trained model; else it is a way to pre-train."""
        return any(path.partition(".")[0] == "clean" for path in (*self.changes, *self.space))

    @property
    def trains(self) -> bool:
        """Whether its models are pre-trained in another way than the undefended ones."""
        return any(path.partition(".")[0] not in ("clean", "evaluate") for path in (*self.changes, *self.space))


@dataclass(frozen=True, kw_only=True)
class Core(NamedFields):
    """The cells with more seeds."""

    attacks: tuple[str, ...]
    """Rows, by name."""
    defences: tuple[str, ...]
    """Columns, by name."""
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Matrix(NamedFields):
    """Attacks × defences × seeds over one base experiment."""

    name: str
    base: Experiment
    """What is the same everywhere. Its `clean` is what a defence changes that names a path under `clean`; other defences do not clean."""
    attacks: dict[str, Poison | None]
    """Name of a row → its attack. None: the clean model, which nobody poisoned; the triggers of all other rows are measured on it."""
    defences: dict[str, Defence]
    """Name of a column → its defence. The undefended models are a column of their own, `none`, which is always the first."""
    seeds: tuple[int, ...] = (0,)
    """Of the pre-trainings, in every cell."""
    core: Core | None = None
    """Cells with further seeds."""
    oracle: str = "asr_at_10pct_loss"
    """The rule that chooses a model with the ASR at hand."""
    blind: str = "blind"
    """The rule that chooses by accuracy alone, as a defender must."""
    data: str = ""
    """What the data are called in result files; empty: by the source."""
    gate: Gate = field(default_factory=Gate)
    """Of the undefended models. stop: a model whose attack did not take is not defended, and its cell says so."""
    compute: Compute = field(default_factory=Compute)
    doc: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.name.strip() or {"/", "\\", "\n"} & set(self.name):
            raise InputError(f"Matrix.name is {self.name!r}; accepted: one line without / and \\, for it names a folder.")
        if not isinstance(self.base.pretrain, Pretrain):
            raise InputError("Matrix.base.pretrain is a given model; accepted: a Pretrain, for each row trains a model of its own.")
        for key, (wanted, oracle) in {"oracle": (self.oracle, True), "blind": (self.blind, False)}.items():
            accepted = [rule.key for rule in RULE.values() if rule.oracle is oracle]
            if wanted not in accepted:
                raise InputError(f"Matrix.{key} is {wanted!r}; accepted: {', '.join(accepted)}.")
        self._check_rows()
        self._check_columns()
        for where, seeds in (("seeds", self.seeds), ("core.seeds", self.core.seeds if self.core else (0,))):
            if not seeds or len(set(seeds)) < len(seeds):
                raise InputError(f"Matrix.{where} is {seeds}; accepted: at least one whole number, each once.")

    def _check_rows(self) -> None:
        if not any(self.attacks.values()):
            raise InputError("Matrix.attacks has no attack; give at least one Poison.")
        for name, attack in self.attacks.items():
            if not isinstance(attack, (Poison, type(None))):
                raise InputError(f"Matrix.attacks[{name!r}] is {its_type(attack)}; accepted: a Poison, or None for the clean model.")
            if attack is not None and (attack.name or not attack.planted):
                raise InputError(f"Matrix.attacks[{name!r}] has a name or no victims; the row names it, and None is the clean model.")
        if list(self.attacks.values()).count(None) > 1:
            raise InputError("Matrix.attacks has more than one None; there is one clean model.")
        for names, where in ((list(self.attacks), "attacks"), (list(self.defences), "defences")):
            if bad := [name for name in names if not isinstance(name, str) or not name.strip() or "\n" in name or len(name) > LONGEST]:
                raise InputError(f"Matrix.{where} has the name {bad[0]!r}; accepted: one line of up to {LONGEST} characters.")
        metrics = [metric_name(name) for name, attack in self.attacks.items() if attack]
        if twice := next((name for name in metrics if metrics.count(name) > 1), ""):
            raise InputError(f"Matrix.attacks: two rows are called {twice!r} in metrics; give them names that differ in letters or digits.")

    def _check_columns(self) -> None:
        if NONE in self.defences:
            raise InputError(f"Matrix.defences has {NONE!r}, which is the column of the undefended models; leave it out.")
        for name, defence in self.defences.items():
            if not isinstance(defence, Defence):
                raise InputError(f"Matrix.defences[{name!r}] is {its_type(defence)}; accepted: a Defence.")
            if not (defence.changes or defence.space):
                raise InputError(f"Matrix.defences[{name!r}] changes nothing; give it changes or a space.")
            if fixed := [path for path in (*defence.changes, *defence.space) if path == "evaluate" or f"{path}.".startswith(BELOW)]:
                raise InputError(f"Matrix.defences[{name!r}] changes {fixed[0]}, which is the same for all defences.")
        for where, names, known in (
            ("attacks", self.core.attacks if self.core else (), self.attacks),
            ("defences", self.core.defences if self.core else (), self.defences),
        ):
            if unknown := [name for name in names if name not in known and name != NONE]:
                raise InputError(f"Matrix.core.{where} has {unknown[0]!r}; the matrix has {', '.join(known)}.")

    @cached_property
    def columns(self) -> dict[str, Defence]:
        """The defences, the undefended models first."""
        return {NONE: Defence(), **self.defences}

    def seeds_of(self, row: str, defence: str) -> tuple[int, ...]:
        """The seeds of a cell. The undefended models and the clean ones have every seed that some defence in their row has."""
        core = self.core
        inside = core is not None and (
            (defence == NONE or defence in core.defences) and (self.attacks[row] is None or row in core.attacks)
        )
        return tuple(dict.fromkeys((*self.seeds, *(core.seeds if core and inside else ()))))

    def models(self, defence: str) -> list[Model]:
        """The (row, seed) pairs of a column."""
        return [(row, seed) for row in self.attacks for seed in self.seeds_of(row, defence)]

    def sweep(self, defence: str, models: Iterable[Model] | None = None) -> Sweep:
        """The sweep of a column, on all its models or on these. InputError names the defence whose changes do not fit."""
        column = self.columns[defence]
        wanted = self.models(defence) if models is None else list(models)
        try:
            base = override_all(self._base(wanted[0], column), column.changes)
        except InputError as error:
            raise InputError(f"Matrix.defences[{defence!r}]: {error}") from error
        return Sweep(
            name=f"{self.name} {defence}".replace("/", "-").replace("\\", "-"),
            base=base,
            points=tuple({**self._attack(row), SEED: seed} for row, seed in wanted),
            space={path: {"grid_search": values} for path, values in column.grids.items()},
            gate=UNJUDGED if column.trains else replace(self.gate, action="warn"),
            compute=self.compute,
            doc=f"The column {defence} of the matrix {self.name}. {self.doc}".strip(),
        )

    def _base(self, model: Model, column: Defence) -> Experiment:
        base = replace(self.base, clean=self.base.clean if column.cleans else None)
        if column.cleans and base.clean is None and "clean" not in column.changes:
            raise InputError("it changes the cleaning, but Matrix.base.clean is not set; set it, or give {'clean': Clean(…)}.")
        return override_all(base, {**self._attack(model[0]), SEED: model[1]})

    def _attack(self, row: str) -> dict[str, Any]:
        """The row's values of `poison` and `attacks`."""
        attack = self.attacks[row]
        return {"poison": attack, "attacks": ()} if attack else {"poison": None, "attacks": self.measured}

    @cached_property
    def measured(self) -> tuple[Poison, ...]:
        """The triggers of all rows, without victims; one that marks pictures comes first, for some evaluators look at the first alone."""
        found = [replace(attack, count=0, rate=None, name=metric_name(row)) for row, attack in self.attacks.items() if attack]
        return tuple(sorted(found, key=lambda attack: not attack.trigger.marks))

    @property
    def clean_row(self) -> str:
        """The row of the clean model; empty where there is none."""
        return next((row for row, attack in self.attacks.items() if attack is None), "")

    def settings(self, defence: str) -> list[dict[str, Any]]:
        """What is tried on each model: every combination of the column's grids."""
        grids = self.columns[defence].grids
        return [dict(zip(grids, values)) for values in itertools.product(*grids.values())]

    def experiments(self, defence: str, model: Model) -> list[Experiment]:
        """Those of one cell and seed, one a setting."""
        sweep = self.sweep(defence, [model])
        return [override_all(sweep.base, {**sweep.points[0], **values}) for values in self.settings(defence)]

    def narrowed(self, defence: str, took: Collection[Model]) -> list[Model]:
        """The models of a column that are defended: with the gate's action stop those whose attack took, and the clean ones."""
        every = self.gate.action == "warn"
        return [model for model in self.models(defence) if every or model in took or model[0] == self.clean_row]


def metric_name(row: str) -> str:
    """A row's name as the name of an attack, which is part of the names of metrics."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", row).strip("-_.+")[:40] or "attack"
