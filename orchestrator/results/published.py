"""Published results that a report draws beside its own: read from a reference file, checked, and selected by `Sweep.reference`."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from datasets.errors import InputError
from datasets.text import parse_json
from orchestrator.experiment.fingerprint import encode
from orchestrator.experiment.spec import Reference

SHIPPED = Path(__file__).parent / "data" / "published.json"

OBJECTIVES = {"mmcl": "MMCL", "mmcl_ssl": "MMCL+SSL"}
"""Pre-training objective in the file → its name in the report."""
METHODS = {"mmcl": "MMCL", "ssl": "SSL", "mmcl_ssl": "CleanCLIP"}
"""Cleaning loss in the file → the method's name in the report."""
LIMITS = (5, 10)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One published model, percent."""

    accuracy: float
    asr: float


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A published result, and which models of a sweep it belongs to."""

    name: str
    """Its name in the file, without the objective: `cc6m_400`, `cc6m/clean_100k`."""
    objective: str
    """The objective of the pre-training, a value of OBJECTIVES."""
    by: str = ""
    values: tuple[Any, ...] | None = None
    """It belongs to stages with one of these encoded values at the path `by`; None: all values."""

    @property
    def of_cleaning(self) -> bool:
        """Whether `by` is a path of the cleaning rather than of an earlier stage."""
        return self.by.split(".")[0] == "clean"

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether it belongs to a stage with this configuration, by the value at `by`."""
        value: Any = config
        for key in self.by.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return self.values is None or value in self.values


@dataclass(frozen=True, kw_only=True)
class Start(Entry):
    """A published model before its cleaning."""

    mark: Mark
    first: Mark | None = None
    """The model after the first epoch of its pre-training."""
    kept: int | None = None
    """The epoch of its pre-training whose model was cleaned."""


@dataclass(frozen=True, kw_only=True)
class Cleaned(Entry):
    """The best points of one published series of cleanings."""

    method: str
    """A value of METHODS."""
    best: Mapping[int, Mark | None]
    """Limit on the ASR, percent → the most accurate model below it; None if there was none."""
    lowest: Mark | None
    """Lowest ASR at ≤ 1 point of accuracy lost."""
    front: tuple[Mark, ...]
    """The Pareto front of the series."""
    points: int


@dataclass(frozen=True, kw_only=True)
class Published:
    """The part of a reference file that a sweep names."""

    source: str
    starts: tuple[Start, ...] = ()
    cleanings: tuple[Cleaned, ...] = ()

    def along(self, path: str) -> tuple[Start, ...] | tuple[Cleaned, ...]:
        """The results for values at the path: starts or, below `clean`, the cleanings by CleanCLIP."""
        if path.startswith("clean."):
            return tuple(entry for entry in self.cleanings if entry.by == path and entry.method == "CleanCLIP")
        return tuple(entry for entry in self.starts if entry.by == path)


def load_published(reference: Reference) -> Published | None:
    """The published results that the reference selects; None if it selects nothing.

    Raises:
        InputError: no such file, a key is missing or of another type (with its path), or a name is not in the file.
    """
    if not (reference.start or reference.cleaning):
        if reference.file:
            raise InputError("Sweep.reference names a file, but neither start nor cleaning: give at least one of them.")
        return None
    path = Path(os.path.expanduser(reference.file)) if reference.file else SHIPPED
    facts = _Node(_read(path), path, ())
    starts = {name: _mark(node, "acc", "asr") for name, node in facts.at("start_points_pct").items()}
    first = {name: _mark(node, "acc", "asr") for name, node in facts.items("pretrain_dynamics_epoch1_pct")}
    kept = {name: node.whole() for name, node in facts.items("selected_checkpoint_epoch")}
    cleanings = [
        _cleaned(entry, f"{data}/{cleaning}", OBJECTIVES[objective], METHODS[method])
        for data, objectives in facts.at("cleaning").items()
        for objective, sets in objectives.items(only=OBJECTIVES)
        for cleaning, methods in sets.items()
        for method, entry in methods.items(only=METHODS)
        if entry.value is not None
    ]
    wanted = {what: _by_name(getattr(reference, what)) for what in ("start", "cleaning")}
    for what, known in (("start", {_stem(name) for name in starts}), ("cleaning", {cleaned.name for cleaned in cleanings})):
        for name in wanted[what]:
            if name not in known:
                accepted = ", ".join(sorted(known))
                raise InputError(f"Sweep.reference.{what} is {name!r}, which {path} does not have. Accepted: {accepted}.")
    return Published(
        source=_text(facts, "source") or path.name,
        starts=tuple(
            Start(
                name=name, objective=objective, by=reference.by, values=values,
                mark=starts[full], first=first.get(full), kept=kept.get(full),
            )
            for name, values in wanted["start"].items()
            for suffix, objective in OBJECTIVES.items()
            if (full := f"{name}_{suffix}") in starts
        ),
        cleanings=tuple(
            replace(cleaned, by=reference.by, values=values)
            for name, values in wanted["cleaning"].items()
            for cleaned in cleanings
            if cleaned.name == name
        ),
    )  # fmt: skip


def _by_name(given: str | dict[Any, str]) -> dict[str, tuple[Any, ...] | None]:
    """Name → the encoded values that it belongs to; None: all values."""
    if isinstance(given, str):
        return {given: None} if given else {}
    result: dict[str, tuple[Any, ...] | None] = {}
    for value, name in given.items():
        result[name] = (*(result.get(name) or ()), encode(value, "a value in Sweep.reference"))
    return result


def _stem(name: str) -> str:
    return name.removesuffix("_mmcl_ssl").removesuffix("_mmcl")


def _read(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"reference file {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    return parse_json(data, f"reference file {path}")


@dataclass(frozen=True)
class _Node:
    """A value in the file together with its path there, so that an error can name it."""

    value: Any
    file: Path
    keys: tuple[str, ...]

    def at(self, key: str) -> "_Node":
        if key not in self.mapping():
            there = ", ".join(map(str, list(self.value)[:8])) or "nothing"
            place = f"{'.'.join(self.keys)} has no key {key!r}" if self.keys else f"there is no key {key!r}"
            raise InputError(f"reference file {self.file}: {place}; found there: {there}.")
        return _Node(self.value[key], self.file, (*self.keys, key))

    def mapping(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            self.refuse("an object")
        return self.value

    def items(self, key: str = "", only: Mapping[str, Any] | None = None) -> list[tuple[str, "_Node"]]:
        """The entries below this value, or below its optional `key`. Names that are not in `only` raise an error."""
        if key:
            return self.at(key).items() if key in self.mapping() else []
        for name in self.mapping():
            if only is not None and name not in only:
                raise InputError(
                    f"reference file {self.file}: {'.'.join(self.keys)} has a key {name!r}; expected: {', '.join(only)}."
                )
        return [(name, self.at(name)) for name in self.value]

    def number(self, least: float = 0, most: float = math.inf) -> float:
        value = self.value
        plain = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1 << 53
        if not (plain and least <= value <= most):
            self.refuse(f"a number from {least:g} to {most:g}" if math.isfinite(most) else f"a number of at least {least:g}")
        return float(value)

    def whole(self) -> int:
        if not self.number().is_integer():
            self.refuse("a whole number")
        return int(self.value)

    def refuse(self, expected: str) -> NoReturn:
        try:
            text = json.dumps(self.value, default=str)
        except RecursionError:
            text = "nested too deep to show"
        shown = text if len(text) <= 60 else text[:57] + "…"
        raise InputError(f"reference file {self.file}: {'.'.join(self.keys) or 'the whole'} is {shown}; expected: {expected}.")


def _text(node: _Node, key: str) -> str:
    """The text below this key; empty if it is missing."""
    if key in node.mapping() and not isinstance(node.value[key], (str, type(None))):
        node.at(key).refuse("text")
    return node.value.get(key) or ""


def _mark(node: _Node, accuracy: str = "acc_pct", asr: str = "asr_pct") -> Mark:
    return Mark(accuracy=node.at(accuracy).number(0, 100), asr=node.at(asr).number(0, 100))


def _maybe(node: _Node) -> Mark | None:
    return None if node.value is None else _mark(node)


def _cleaned(node: _Node, name: str, objective: str, method: str) -> Cleaned:
    best, lowest, front = node.at("best_acc_at_asr_le"), node.at("min_asr_at_drop_abs_le_pp"), node.at("pareto_asr_acc_pct")
    if not isinstance(front.value, list):
        front.refuse("a list of [ASR, accuracy]")
    marks = []
    for number, pair in enumerate(front.value):
        place = _Node(pair, front.file, (*front.keys, str(number)))
        if not isinstance(pair, list) or len(pair) != 2:
            place.refuse("[ASR, accuracy]")
        asr, accuracy = (_Node(value, front.file, place.keys).number(0, 100) for value in pair)
        marks.append(Mark(accuracy=accuracy, asr=asr))
    return Cleaned(
        name=name,
        objective=objective,
        method=method,
        best={limit: _maybe(best.at(str(limit))) for limit in LIMITS},
        lowest=_maybe(lowest.at("1")),
        front=tuple(marks),
        points=node.at("n_points").whole(),
    )
