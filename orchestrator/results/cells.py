"""Cells of a matrix as files: what was measured of one defence against one attack, and what papers report of it.

A cell is plain JSON with fixed keys. `data/cell.schema.json` is their only description, and every cell that is read is checked against it.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from datasets.storage import write_whole
from datasets.text import decode_text
from orchestrator.results.outcome import StageResult, TrialResult
from orchestrator.results.points import Point, cleaned_points, interval_of, points_of
from trainers.evaluate.choice import ACCURACY, ASR, RULE, results

Cell = dict[str, Any]
"""One file, as the schema describes it."""
SCHEMA, VERSION = "cleansweep-cell", 1
KINDS: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None),
}  # fmt: skip
WORDS = {
    "object": "an object", "array": "a list", "string": "text", "integer": "a whole number", "number": "a number",
    "boolean": "true or false", "null": "null",
}  # fmt: skip


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a cell."""
    return json.loads((Path(__file__).parent / "data" / "cell.schema.json").read_text())


def read_cell(path: Path) -> Cell:
    """The cell in a file; InputError naming the file and the field that does not fit."""
    try:
        cell = json.loads(decode_text(path.read_bytes(), f"result file {path}"), parse_constant=_no_number)
        json.dumps(cell, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except OSError as error:
        raise InputError(f"result file {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"result file {path} is no JSON: {error}.") from error
    if not isinstance(cell, dict) or cell.get("schema") != SCHEMA or cell.get("version") != VERSION:
        header = {key: cell.get(key) for key in ("schema", "version")} if isinstance(cell, dict) else type(cell).__name__
        raise InputError(f"result file {path} has {_short(header)}; accepted: schema {SCHEMA!r}, version {VERSION}.")
    check_cell(cell, f"result file {path}")
    return cell


def check_cell(cell: Cell, where: str) -> None:
    """InputError naming the field where a cell does not fit the schema, or its lists do not fit its seeds."""
    _check(cell, schema(), where, "")
    choices = cell["measured"] or {}
    lists = {f"measured.{kind}.{key}.values": q["values"] for kind, c in choices.items() for key, q in c.items() if isinstance(q, dict)}
    lists |= {f"measured.{kind}.settings": choice["settings"] for kind, choice in choices.items()}
    lists |= {f"gate.{key}": cell["gate"][key] for key in ("asr", "took")} if cell["gate"] else {}
    for name, values in lists.items():
        if len(values) != len(cell["seeds"]):
            raise InputError(f"{where}: {name} has {len(values)} values; accepted: one for each of the {len(cell['seeds'])} seeds.")
    if not cell["measured"] and not cell["reported"] and not cell["gate"]:
        raise InputError(f"{where}: measured is null and reported is empty; accepted: at least one of them.")


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _check(value: Any, rule: dict[str, Any], where: str, path: str) -> None:
    """Check a value against the part of JSON Schema that our schema uses."""
    if "$ref" in rule:
        return _check(value, schema()["$defs"][rule["$ref"].rpartition("/")[2]], where, path)
    named = f"{where}: {path or 'the whole'}"
    if "const" in rule and value != rule["const"]:
        raise InputError(f"{named} is {_short(value)}; accepted: {rule['const']!r}.")
    kinds = [rule["type"]] if isinstance(rule.get("type"), str) else rule.get("type", [])
    if kinds and not any(isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds):
        raise InputError(f"{named} is {_short(value)}; accepted: {' or '.join(WORDS[kind] for kind in kinds)}.")
    if isinstance(value, (int, float)) and not rule.get("minimum", -math.inf) <= value <= rule.get("maximum", math.inf):
        bounds = f"from {rule.get('minimum', 'any'):g}" + (f" to {rule['maximum']:g}" if "maximum" in rule else " up")
        raise InputError(f"{named} is {_short(value)}; accepted: a number {bounds}.")
    if isinstance(value, str) and not rule.get("minLength", 0) <= len(value) <= rule.get("maxLength", math.inf):
        raise InputError(f"{named} has {len(value)} characters; accepted: {rule['minLength']} to {rule.get('maxLength', 'any number')}.")
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check(item, rule.get("items", {}), where, f"{path}[{number}]")
    if isinstance(value, dict) and "properties" in rule:
        known, inside = rule["properties"], f"{path}." if path else ""
        for key in rule["required"]:
            if key not in value:
                raise InputError(f"{where}: {inside}{key} is missing; its keys are {', '.join(known)}.")
        for key, item in value.items():
            if key not in known:
                raise InputError(f"{where}: {inside}{key} is no key of a cell; accepted: {', '.join(known)}.")
            _check(item, known[key], where, f"{inside}{key}")
    return None


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def read_cells(folder: Path) -> list[Cell]:
    """Every cell below a folder, in the order of the files' names. InputError if there is none, or if a file is no cell."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one that holds result files (*.json).")
    cells = [read_cell(path) for path in sorted(folder.rglob("*.json"))]
    if not cells:
        raise InputError(f"{folder} holds no result file (*.json).")
    return cells


def write_cell(cell: Cell, folder: Path, place: tuple[int, int]) -> Path:
    """Write a cell. The file's name begins with the numbers of its row and column, so that files are sorted as the matrix is."""
    check_cell(cell, f"cell {cell['attack']['name']}, {cell['defence']['name']}")
    names = [re.sub(r"[^A-Za-z0-9]+", "-", cell[key]["name"]).strip("-").lower() for key in ("attack", "defence")]
    path = folder / f"{place[0]:02d}-{names[0]}--{place[1]:02d}-{names[1]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    return write_whole(path, (json.dumps(cell, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """One seed of a cell: the undefended model, and the trials of the defence."""

    start: Point | None
    """The undefended model, with which the rules also compare."""
    trials: Sequence[StageResult] = ()
    """One per setting: cleanings, or pre-trainings with the defence. Empty for the undefended column itself."""
    told: Sequence[str] = ()
    """For each trial the text that tells it from the others."""
    undefended: bool = False

    def choose(self, rule: str) -> Point | None:
        """The model that the rule chooses among all trials and epochs; the undefended model in its own column."""
        if self.undefended or self.start is None:
            return self.start
        points = [point for trial in self.trials for point in results_of(trial)]
        return RULE[rule].choose(points, self.start) if points else None

    def settings(self, point: Point | None) -> str | None:
        if point is None:
            return None
        texts = [text for trial, text in zip(self.trials, self.told) if trial is point.stage and text]
        return ", ".join([*texts, f"epoch {point.epoch}"])


def results_of(trial: StageResult) -> list[Point]:
    """The models among which a rule chooses: the results of a cleaning, or the model after each epoch of a pre-training."""
    if isinstance(trial, TrialResult):
        return cleaned_points(trial)
    return results(points_of(trial)) if trial.status == "finished" else []


def choice_of(rule: str, runs: Sequence[Repetition], clean: Sequence[Repetition] = (), metric: str = ASR) -> dict[str, Any]:
    """The part `measured.oracle` or `measured.blind` of a cell. `clean`: the same seeds of the clean model, where there is one; `metric`:
    the ASR of this attack's trigger on it."""
    chosen, floors = [run.choose(rule) for run in runs], [run.choose(rule) for run in clean]
    starts = [run.start for run in runs]
    return {
        "rule": rule,
        "accuracy": quantity(chosen, ACCURACY),
        "asr": quantity(chosen, ASR),
        "start_accuracy": quantity(starts, ACCURACY),
        "start_asr": quantity(starts, ASR),
        "clean_accuracy": quantity(floors, ACCURACY) if clean else None,
        "clean_asr": quantity(floors, metric) if clean else None,
        "settings": [run.settings(point) for run, point in zip(runs, chosen)],
    }


def quantity(points: Sequence[Point | None], metric: str) -> dict[str, Any] | None:
    """Mean and 95 % interval over the seeds that have a model (over the test pictures if there is only one), and each seed's value."""
    there = [point for point in points if point is not None and metric in point.metrics]
    interval = interval_of([point.metrics[metric] for point in there], there, metric)
    if interval is None:
        return None
    low, high = ((min(max(bound, 0.0), 100.0) if math.isfinite(bound) else None) for bound in interval[1:])
    return {"mean": interval[0], "low": low, "high": high, "values": [p.metrics.get(metric) if p is not None else None for p in points]}


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything that a cell is made from: facts of the experiment, and its repetitions in the order of `seeds`."""

    facts: dict[str, Any]
    """The keys `matrix`, `attack`, `defence`, `model`, `data`."""
    seeds: tuple[int, ...]
    runs: Sequence[Repetition]
    gates: Sequence[dict[str, Any] | None] = ()
    """The verdict on each undefended model; none for a clean model."""
    clean: Sequence[Repetition] = ()
    clean_metric: str = ASR
    rules: tuple[str, str]
    cost: dict[str, Any] | None = None
    commit: str = ""
    date: str = ""
    reported: list[dict[str, Any]] = field(default_factory=list)


def cell_of(found: Found) -> Cell:
    """The cell as JSON; `measured` is null if none of its models has been measured."""
    there = any(run.choose(found.rules[1]) for run in found.runs)
    choices = [choice_of(rule, found.runs, found.clean, found.clean_metric) for rule in found.rules]
    last = next((run.start.metrics for run in found.runs if run.start), {})
    gates = list(found.gates)
    known = [gate for gate in gates if gate]
    return {
        "schema": SCHEMA,
        "version": VERSION,
        **found.facts,
        "seeds": list(found.seeds),
        "pictures": {key: int(last[name]) if name in last else None for key, name in (("accuracy", "zeroshot/n"), ("asr", "asr/n"))},
        "gate": {
            "threshold": known[0]["threshold"],
            "asr": [gate["asr"] if gate else None for gate in gates],
            "took": [gate["passed"] if gate else None for gate in gates],
        } if known else None,
        "measured": dict(zip(("oracle", "blind"), choices)) if there else None,
        "cost": found.cost,
        "reported": found.reported,
        "commit": found.commit,
        "date": found.date,
    }  # fmt: skip
