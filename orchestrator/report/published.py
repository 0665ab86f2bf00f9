"""Published results that a report draws beside its own: read from a file of facts, checked, and picked by `Sweep.reference`."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from datasets.errors import InputError
from orchestrator.spec import Reference

SHIPPED = Path(__file__).parent / "data" / "published.json"

OBJECTIVES = {"mmcl": "MMCL", "mmcl_ssl": "MMCL+SSL"}
"""Pre-training objective in the file → what the report calls it."""
METHODS = {"mmcl": "MMCL", "ssl": "SSL", "mmcl_ssl": "CleanCLIP"}
"""Cleaning loss in the file → what the report calls the method."""
SERIES = {"clean.poisons": r"poisoned_100k_with_(\d+)_poisons", "clean.pairs": r"clean_(\d+)k"}
"""Dotted path of a sweep's series → names of the cleaning sets in the file, with the value in them."""
LIMITS = (5, 10)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One published model, percent."""

    accuracy: float
    asr: float


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """One published series of cleanings: what its best points were."""

    best: Mapping[int, Mark | None]
    """Limit on the ASR, percent → the most accurate model below it; None where there was none."""
    lowest: Mark | None
    """Lowest ASR at ≤ 1 point of accuracy lost."""
    front: tuple[Mark, ...]
    """Models that no other of the series beats in both."""
    points: int


@dataclass(frozen=True, kw_only=True)
class Published:
    """The part of a reference file that one report shows. Keys `MMCL` and `MMCL+SSL` are pre-training objectives."""

    name: str
    """Data set and start point, as the file calls them."""
    source: str
    starts: Mapping[str, Mark] = field(default_factory=dict)
    first_epochs: Mapping[str, Mark] = field(default_factory=dict)
    """After the first epoch of pre-training."""
    kept_epochs: Mapping[str, int] = field(default_factory=dict)
    """Epoch of pre-training whose model was cleaned."""
    cleanings: Mapping[str, Mapping[str, Cleaned]] = field(default_factory=dict)
    """Objective → cleaning method → results."""
    series: Mapping[str, Mapping[float, Cleaned | Mark]] = field(default_factory=dict)
    """Objective → value of the sweep's series → CleanCLIP's results there, or the start point of a series of pre-trainings."""


def load_published(reference: Reference, series: str = "") -> Published | None:
    """What the reference names; None where it names nothing. `series` is the sweep's.

    Raises:
        InputError: no such file, a key is missing or of another type (with its path), or a name is not in the file.
    """
    if not (reference.start or reference.cleaning):
        if reference.file:
            raise InputError("Sweep.reference names a file, but neither start nor cleaning: give at least one of them.")
        return None
    path = Path(reference.file).expanduser() if reference.file else SHIPPED
    facts = _Node(_read(path), path, ())
    starts = {name: _mark(node, "acc", "asr") for name, node in facts.at("start_points_pct").items()}
    first = {name: _mark(node, "acc", "asr") for name, node in facts.items("pretrain_dynamics_epoch1_pct")}
    kept = {name: int(node.number(least=0)) for name, node in facts.items("selected_checkpoint_epoch")}
    cleanings = {
        (f"{data}/{cleaning}", OBJECTIVES[objective], METHODS[method]): _cleaned(entry)
        for data, objectives in facts.at("cleaning").items()
        for objective, sets in objectives.items(only=OBJECTIVES)
        for cleaning, methods in sets.items()
        for method, entry in methods.items(only=METHODS)
        if entry.value is not None
    }
    _known("start", reference.start, {_stem(name) for name in starts}, path)
    _known("cleaning", reference.cleaning, {name for name, _, _ in cleanings}, path)
    chosen: dict[str, dict[str, Cleaned]] = {}
    for (name, objective, method), cleaned in cleanings.items():
        if name == reference.cleaning:
            chosen.setdefault(objective, {})[method] = cleaned
    mine = {label: f"{reference.start}_{suffix}" for suffix, label in OBJECTIVES.items()}
    return Published(
        name=", ".join(name for name in (reference.start, reference.cleaning) if name),
        source=str(facts.value.get("source") or path.name),
        starts={label: starts[name] for label, name in mine.items() if name in starts},
        first_epochs={label: first[name] for label, name in mine.items() if name in first},
        kept_epochs={label: kept[name] for label, name in mine.items() if name in kept},
        cleanings=chosen,
        series=_series(series, reference, starts, cleanings),
    )


def _series(
    path: str, reference: Reference, starts: dict[str, Mark], cleanings: dict[tuple[str, str, str], Cleaned]
) -> dict[str, dict[float, Cleaned | Mark]]:
    found: dict[str, dict[float, Cleaned | Mark]] = {}
    if path == "poison.count":
        family = re.sub(r"_\d+$", "", reference.start)
        for name, mark in starts.items():
            if match := re.fullmatch(rf"{re.escape(family)}_(\d+)_(mmcl|mmcl_ssl)", name):
                found.setdefault(OBJECTIVES[match[2]], {})[float(match[1])] = mark
    elif path in SERIES and reference.cleaning:
        data = reference.cleaning.split("/")[0]
        for (name, objective, method), cleaned in cleanings.items():
            home, _, cleaning = name.partition("/")
            if home != data or method != "CleanCLIP":
                continue
            if match := re.fullmatch(SERIES[path], cleaning):
                value = float(match[1]) * (1000 if path == "clean.pairs" else 1)
                found.setdefault(objective, {})[value] = cleaned
            elif path == "clean.poisons" and cleaning == "clean_100k":
                found.setdefault(objective, {})[0.0] = cleaned
    return {objective: dict(sorted(values.items())) for objective, values in found.items()}


def _known(what: str, name: str, known: set[str], path: Path) -> None:
    if name and name not in known:
        raise InputError(f"Sweep.reference.{what} is {name!r}, which {path} does not have. Accepted: {', '.join(sorted(known))}.")


def _stem(name: str) -> str:
    return name.removesuffix("_mmcl_ssl").removesuffix("_mmcl")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"reference file {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise InputError(f"reference file {path} is not JSON: {error}.") from error


@dataclass(frozen=True)
class _Node:
    """A value in the file that knows where it stands, so that a mistake is named with its place."""

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
        """The entries below, or those of an optional `key`; names that are not in `only` are refused."""
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
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            self.refuse(f"a number from {least:g} to {most:g}" if math.isfinite(most) else f"a number of at least {least:g}")
        return float(value)

    def refuse(self, expected: str) -> NoReturn:
        text = json.dumps(self.value, default=str)
        shown = text if len(text) <= 60 else text[:57] + "…"
        raise InputError(f"reference file {self.file}: {'.'.join(self.keys) or 'the whole'} is {shown}; expected: {expected}.")


def _mark(node: _Node, accuracy: str = "acc_pct", asr: str = "asr_pct") -> Mark:
    return Mark(accuracy=node.at(accuracy).number(0, 100), asr=node.at(asr).number(0, 100))


def _maybe(node: _Node) -> Mark | None:
    return None if node.value is None else _mark(node)


def _cleaned(node: _Node) -> Cleaned:
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
        best={limit: _maybe(best.at(str(limit))) for limit in LIMITS},
        lowest=_maybe(lowest.at("1")),
        front=tuple(marks),
        points=int(node.at("n_points").number()),
    )
