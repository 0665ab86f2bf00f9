"""A stage: a value that knows what it is made from and how. `ensure` finds its artefact in the store or makes it."""

from __future__ import annotations

import itertools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from datasets.component import Component
from datasets.errors import InputError
from orchestrator import manifest
from orchestrator.console.log import log, making
from orchestrator.experiment.fingerprint import fingerprint
from orchestrator.experiment.source_code import code_of
from orchestrator.experiment.spec import Compute, Experiment
from orchestrator.store import FAILED, Artefact, Store, require_files

if TYPE_CHECKING:
    from orchestrator.stages.trained import Trained

KINDS: dict[str, type[Stage]] = {}
"""Kind → its class. Defining a subclass of `Stage` adds it."""
SERVING: dict[type[Component], type[Stage]] = {}
"""Class of a need → the class of the stage that makes it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage(ABC):
    """One thing to make. A new kind is a frozen dataclass, derived from this class, in its own file.

    Two stages are equal when their fingerprints are: the hash of kind, version, `config` and the fingerprints of `inputs`.
    """

    kind: ClassVar[str]
    """Folder of the store that holds its artefacts."""
    version: ClassVar[int] = 1
    """Increased when a change of the code changes what the stage makes, so that older artefacts are not used."""
    not_kept: ClassVar[str] = ""
    """Pattern of the files that are needed only to continue an unfinished stage; they are removed when it is finished."""
    wait_s: ClassVar[float] = 120
    """How many seconds to wait for another process that is making it."""
    followed: ClassVar[bool] = False
    """Whether a run watches its folder while it is made and reports its metrics."""
    role: ClassVar[str] = ""
    """Its name among the inputs of other stages; empty: its kind."""
    apart: ClassVar[bool] = False
    """Whether it is made in a process of its own with the cores and GPUs of a trial; else in the process that asks for it."""
    trial: ClassVar[bool] = False
    """Whether it belongs to a trial. If Optuna draws the trials, such a stage is not known before the run."""
    serves: ClassVar[tuple[type[Component], ...]] = ()
    """Classes of needs (`Component.needs`) that this kind of stage makes, by `serve`."""

    def __init_subclass__(cls) -> None:
        register(cls)

    @classmethod
    def serve(cls, need: Any, around: Around) -> Stage:
        """The stage that makes what a component needs."""
        raise NotImplementedError(f"{cls.__name__} serves {type(need).__name__} and does not say how")

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of its folder, before the fingerprint."""

    @property
    @abstractmethod
    def config(self) -> Any:
        """What determines the result, apart from the inputs, as plain JSON. In a sweep file write a plain property: a cached one holds a
        lock, which cannot be sent to another process."""

    @property
    def inputs(self) -> dict[str, Stage]:
        """Role → the stages that it is made from."""
        return {}

    @property
    def needs(self) -> tuple[Stage, ...]:
        """The stages that must be made before it: its inputs, and whatever else it reads."""
        return tuple(self.inputs.values())

    @property
    def shown(self) -> Any:
        """The configuration for the manifest: with the labels of its components."""
        return self.config

    @property
    def components(self) -> Any:
        """The components that it runs. The manifest holds a hash of the source of those that are the user's own."""
        return ()

    @property
    def pretrained(self) -> Trained | None:
        """The pre-training behind its checkpoints, or itself. Its evaluators measure them. None for a stage without checkpoints."""
        return None

    @property
    def trained_by(self) -> Component | None:
        """The loss or method that it trains by; None for a stage that trains nothing."""
        return None

    def pairs(self, store: Store) -> int | None:
        """How many pairs it trains on, over all epochs; None until that is known."""
        return 0

    def check(self, compute: Compute) -> None:
        """Raise InputError if these machines cannot make it; called before anything is made."""
        return

    def look_ahead(self, at: At) -> None:
        """Raise InputError if the stored stages that it needs already show that it cannot be made. Called when all of them are finished."""
        return

    @abstractmethod
    def make(self, at: At) -> None:
        """Write the artefact's files into `at.folder`, which may hold files of an earlier attempt."""

    def seconds(self, folder: Path, since: float) -> float:
        """Seconds that it took to make; `since`: the seconds of this attempt."""
        return since

    def accept(self, found: Artefact, at: At) -> None:
        """Raise InputError if this experiment must not use the finished artefact, found or new."""
        return

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits."""
        inputs = {role: stage.fingerprint for role, stage in self.inputs.items()}
        return fingerprint({"stage": self.kind, "version": self.version, "config": self.config, "inputs": inputs})

    @cached_property
    def code(self) -> tuple[tuple[str, str], ...]:
        """(class, hash of its source) of the components that do not come with the project."""
        return code_of(self.components)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}-{self.fingerprint[:12]}"


def place(stage: Stage) -> float:
    """Where a stage stands in a list: by its kind in `manifest.OURS`; a user's own kind stands right after what it needs."""
    if stage.kind in manifest.OURS:
        return manifest.OURS.index(stage.kind)
    return max((place(before) for before in stage.needs), default=-1.0) + 0.5


def register(cls: type[Stage]) -> None:
    """Make a kind known in this process. A class of a sweep file arrives in a worker by value, so it is never defined there."""
    if "kind" in cls.__dict__:
        known = KINDS.get(cls.kind, cls)
        assert known.__qualname__ == cls.__qualname__, f"{known} and {cls} are both stages of the kind {cls.kind!r}"
        KINDS[cls.kind] = cls
        if cls.kind not in manifest.KINDS:
            manifest.KINDS.append(cls.kind)
    for need in cls.__dict__.get("serves", ()):
        SERVING[need] = cls


class Roles(dict[str, Stage]):
    """Stages by their role; InputError for a role that no stage has yet."""

    def __missing__(self, role: str) -> Stage:
        raise InputError(
            f"a stage is asked for the one with the role {role!r}, which is not made before it; before it are {', '.join(self)}. What "
            "evaluators need is made before the cleaning set and the cleaning."
        )


@dataclass(kw_only=True)
class Around:
    """The experiment that a stage is made for, and the stages of it that are known so far."""

    experiment: Experiment
    made: dict[str, Stage] = field(default_factory=lambda: Roles())
    """Role → stage, in the order in which they are made."""
    served: dict[Component, Stage] = field(default_factory=dict)
    """Need → the stage that makes it."""

    def ask(self, need: Component, role: str = "") -> Stage:
        """The stage that makes what a component needs, the same for all that need it. Its role is `role`, or else that of its kind."""
        kind = next((SERVING[cls] for cls in type(need).__mro__ if cls in SERVING), None)
        if kind is None:
            raise InputError(f"{type(need).__name__} is needed, but no kind of stage makes it: give one that `serves` it.")
        if need not in self.served:
            self.served[need] = kind.serve(need, self)
        enter(self.made, role or kind.role or kind.kind, self.served[need])
        return self.served[need]


def enter(made: dict[str, Stage], role: str, stage: Stage) -> None:
    """Add a stage under its role. If another stage has that role, it is added as `role_1` and so on; `set_` is always numbered."""
    numbered = (f"{role.rstrip('_')}_{number}" for number in itertools.count(0 if role.endswith("_") else 1))
    names = itertools.chain([] if role.endswith("_") else [role], numbered)
    made[next(name for name in names if made.get(name, stage) == stage)] = stage


def by_role(stages: Iterable[Stage]) -> dict[str, Stage]:
    """The stages that serve a component's needs, by their roles."""
    made: dict[str, Stage] = {}
    for stage in stages:
        enter(made, stage.role or stage.kind, stage)
    return made


@dataclass(kw_only=True)
class At:
    """Where stages are made: the store, the machines, and a callback for metrics."""

    store: Store
    compute: Compute = field(default_factory=Compute)
    report: Callable[[dict[str, Any]], None] | None = None
    """Called with each line of metrics of the stage that is being made."""
    folder: Path = Path()
    """The stage's working folder."""
    known: dict[str, Any] = field(default_factory=dict)
    """Fingerprint → what the driver has read of a stage, so that trials do not read it again."""

    def find(self, stage: Stage) -> Artefact | None:
        """The finished artefact of a stage."""
        return self.store.find(stage.kind, stage.fingerprint)

    def of(self, stage: Stage) -> Artefact:
        """The finished artefact of a stage that was made before."""
        found = self.find(stage)
        assert found is not None, f"{stage} is made before it is read"
        return found


def ensure(stage: Stage, at: At) -> Artefact:
    """The stage's artefact. If the store lacks it, make what it needs, then make it in its working folder and seal it.

    InputError where a file of it was lost, or where another process holds it for longer than the stage waits.
    """
    register(type(stage))
    found = at.find(stage)
    if found is None:
        for needed in stage.needs:
            ensure(needed, at)
        with at.store.working(stage.kind, stage.fingerprint, stage.wait_s) as folder:
            found = at.find(stage)  # another process may have finished it meanwhile
            if found is None:
                (folder / FAILED).unlink(missing_ok=True)
                start = time.monotonic()
                with making(str(stage)):
                    stage.make(At(**{**vars(at), "folder": folder}))
                    found = seal(stage, at.store, stage.seconds(folder, time.monotonic() - start))
                    log.log(logging.DEBUG if stage.followed else logging.INFO, f"{stage}: made in {time.monotonic() - start:.1f} s")
            else:
                at.store.discard(stage.kind, stage.fingerprint)
    stage.accept(require_files(found), at)
    return found


def seal(stage: Stage, store: Store, seconds: float) -> Artefact:
    """Seal the stage's working folder under its identity."""
    return store.seal(
        stage.kind,
        stage.name,
        stage.fingerprint,
        config=stage.shown,
        inputs={role: one.fingerprint for role, one in stage.inputs.items()},
        seconds=seconds,
        spent=stage.not_kept,
        code=dict(stage.code),
    )


def walk(*stages: Stage) -> Iterator[Stage]:
    """The stages and everything that they need, each once, in the order in which they are made."""
    seen: set[str] = set()

    def visit(stage: Stage) -> Iterator[Stage]:
        if stage.fingerprint not in seen:
            seen.add(stage.fingerprint)
            for needed in stage.needs:
                yield from visit(needed)
            yield stage

    for stage in stages:
        yield from visit(stage)
