"""Names and numbers as a reader sees them: objectives, cleaning methods, hyper-parameters, values."""

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any

from datasets.component import Component
from orchestrator.experiment.fingerprint import ID, LABEL, described, encode
from orchestrator.results import kinds
from orchestrator.results.once import once
from orchestrator.results.outcome import StageResult, TrialResult


def objective_of(stage: StageResult) -> str:
    """The pre-training objective by its label: MMCL, MMCL+SSL, SSL, or another class's label."""
    return kinds.names([stage])[stage.fingerprint]


def method_of(trial: TrialResult) -> str:
    """The cleaning method by its label: CleanCLIP, MMCL, SSL, "shrink-perturb + CleanCLIP", or another class's label."""
    return kinds.names([trial])[trial.fingerprint]


def called(stage: StageResult) -> str:
    """A stage by its objective or method and the start of its fingerprint: "MMCL+SSL (3fa1c2)"."""
    name = method_of(stage) if isinstance(stage, TrialResult) else objective_of(stage)
    return f"{name} ({stage.fingerprint[:6]})"


@once
def hyperparameters(trial: TrialResult) -> dict[str, Any]:
    """Dotted path → value of each hyper-parameter of this trial; the fields of a component have a path each."""
    result: dict[str, Any] = {}
    for path, value in trial.overrides.items():
        result[path] = _scalar(value)
        inner = encode(value, path) if isinstance(value, Component) else value
        if isinstance(inner, dict):
            result |= {p: _scalar(v) for p, v in flatten(inner, path) if p.rpartition(".")[2] not in ("class", ID, LABEL)}
    return result


def is_seed(path: str) -> bool:
    """Whether a dotted path is a seed rather than a hyper-parameter."""
    return path.rsplit(".", 1)[-1] == "seed"


def short_paths(paths: list[str]) -> dict[str, str]:
    """Each dotted path → its shortest ending that no other path has."""
    short = {}
    for path in paths:
        parts = path.split(".")
        endings = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        clash = [other for other in paths if other != path]
        short[path] = next((e for e in endings if not any(o == e or o.endswith(f".{e}") for o in clash)), path)
    return short


def value_at(stage: StageResult, path: str) -> Any:
    """The value at a dotted path of the experiment that a stage belongs to; None where there is none."""
    if isinstance(stage, TrialResult) and path in (tried := hyperparameters(stage)):
        return tried[path]
    value: Any = stage.config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return _scalar(value)


def seeds_of(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted path → value of every seed in a configuration."""
    return {path: value for path, value in flatten(config) if is_seed(path) and value is not None}


BARE = ("mode", "pattern", "name", "path")
"""Fields whose values are shown without the field's name."""
USUAL = {"mode": "dirty_label"}
"""Values that are not shown."""
FIRST = ("poison", "evaluate", "data", "prior", "pretrain")
"""Fields to name first where configurations differ in several places."""


def tell_apart(configs: list[dict[str, Any]]) -> list[str]:
    """For each configuration a few words that tell it from the others: "warped", "count 400", "patch, label-consistent"."""
    parts = _differences(list(configs), "")
    rank = {name: number for number, name in enumerate(FIRST)}
    parts.sort(key=lambda part: rank.get(part[0].split(".")[0], len(rank)))
    so_far, distinct = [""] * len(configs), 1
    for _, texts in parts:
        longer = [", ".join(filter(None, pair)) for pair in zip(so_far, texts)]
        if len(set(longer)) > distinct:
            so_far, distinct = longer, len(set(longer))
    return so_far


def _differences(values: list[Any], path: str) -> list[tuple[str, list[str]]]:
    """(path, a text for each value) where nested configurations differ; a component is named by its class."""
    if len({json.dumps(value, sort_keys=True, default=str) for value in values}) <= 1:
        return []
    if not all(isinstance(value, dict) for value in values):
        return [(path, [_told(value, path) for value in values])]
    if len({value.get("class") for value in values}) == 1:
        distinct = dict.fromkeys(key for value in values for key in value)
        keys = sorted(distinct, key=lambda key: key == LABEL)  # the label follows from the others
        return [difference for key in keys for difference in _differences([v.get(key) for v in values], f"{path}.{key}" if path else key)]
    classes = {str(value.get("class")) for value in values}
    texts = [_spoken(value) for value in values]
    texts = [
        kinds.ending(value["class"], classes) if "class" in value and _shared(texts, values, text) else text
        for value, text in zip(values, texts)
    ]
    for name in set(texts):
        same = [number for number, text in enumerate(texts) if text == name]
        for number, inner in zip(same, tell_apart([values[number] for number in same])):
            texts[number] = f"{name} {inner}".strip()
    return [(path, texts)]


def _shared(texts: list[str], values: list[dict[str, Any]], text: str) -> bool:
    """Whether components of more than one class have this text."""
    return len({value.get("class") for value, other in zip(values, texts) if other == text}) > 1


def _told(value: Any, path: str) -> str:
    name = path.rsplit(".", 1)[-1]
    if value is None or USUAL.get(name) == value:
        return ""
    if isinstance(value, dict):
        return _spoken(value)
    if isinstance(value, list):
        return f"{name} {json.dumps(value, default=str)}"[:40]
    if isinstance(value, str):
        value = value.rstrip("/").rsplit("/", 1)[-1].replace("_", "-")
        return value if name in BARE else f"{name} {value}"
    return f"{name} {value_text(value)}"


def settings(trial: TrialResult, among: list[TrialResult], seeds: bool = True) -> str:
    """The hyper-parameters of a trial that differ among the given trials, as "lr 0.001, inmodal_weight 2".

    Trials of several sweeps are compared by all their values, whether their own sweep varied them or not. If a trial is the only one of its
    method, all its numbers are named.
    """
    return settings_among(among, seeds)(trial)


def settings_among(among: list[TrialResult], seeds: bool = True) -> Callable[[TrialResult], str]:
    """`settings` of any trial among these."""

    @cache
    def varies(path: str) -> bool:
        return len({str(value_at(other, path)) for other in among}) > 1

    def told(trial: TrialResult) -> str:
        mine = hyperparameters(trial)
        names = _shortened(tuple(mine))
        if len(among) > 1:
            shown = [path for path in mine if path != "clean" and varies(path)]
        else:
            shown = [p for p, v in trial.overrides.items() if isinstance(v, (bool, int, float, str))]
        return ", ".join(f"{names[path]} {value_text(mine[path])}" for path in shown if seeds or not is_seed(path))

    return told


@lru_cache(maxsize=256)
def _shortened(paths: tuple[str, ...]) -> dict[str, str]:
    return short_paths(list(paths))


def value_text(value: Any) -> str:
    """A hyper-parameter's value, short: 0.001, 5e-05, True, CleanCLIP."""
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """`98.7 %`, or an en dash where there is no value."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f} %"


def signed(value: float | None, unit: str = "points") -> str:
    """A change with its sign: −0.3 points."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) < 0.05:
        return f"±0.0 {unit}"
    return f"{'+' if value > 0 else '−'}{abs(value):.1f} {unit}"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 05 s`, `2 h 14 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dictionaries as (dotted path, leaf); lists are leaves."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _spoken(component: dict[str, Any]) -> str:
    """A component's name in a sentence: its own label, or its class's name in words."""
    label, path = kinds.label_of(component), str(component.get("class", ""))
    return _words(label) if label == path.rpartition(".")[2] and path not in kinds.own() else label


def _words(name: str) -> str:
    """ShrinkPerturb → shrink-perturb, TinyCLIP → tiny-CLIP."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).split("-")
    return "-".join(part if len(part) > 1 and part.isupper() else part.lower() for part in parts)


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Component):
        value = described(value)
    if isinstance(value, dict) and "class" in value:
        return kinds.name_of(value)
    return json.dumps(value, default=str)


def is_number(value: Any) -> bool:
    """Whether a value is a number, and not text or a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number_of(count: int, what: str) -> str:
    """"1 seed", "3 seeds"."""
    return f"{count} {what}{'' if count == 1 else 's'}"
