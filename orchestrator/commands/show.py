"""`plan` and `show`: plans and stores as text and rows."""

import json
import os
from typing import Any

import pyarrow.ipc as ipc

from datasets.errors import InputError
from orchestrator.experiment.fingerprint import ID, canonical, encode
from orchestrator.experiment.spec import Compute
from orchestrator.results.names import number_of
from orchestrator.results.outcome import StageResult, TrialResult
from orchestrator.stages.base import KINDS, At, Stage, place, walk
from orchestrator.stages.graph import cleaned_by, trained_by
from orchestrator.stages.kept import Kept, told_of
from orchestrator.stages.measured import afterwards
from orchestrator.stages.swept import grid_values
from orchestrator.store import MANIFEST, METRICS, Artefact, Store, checked, metrics_of, missing, part, verify
from orchestrator.sweep.plan import Plan, check_measurements
from orchestrator.sweep.titles import plan_titles, titles


def plan_rows(plan: Plan, compute: Compute, rate: float | None, store: Store | None = None) -> list[dict[str, Any]]:
    """One row for each stage: kind, name, fingerprint, whether it is stored, pairs to train on, hours if a rate is known, and the reason if
    `run` would refuse to make it. `store`: that of `compute`, if it was listed already.
    """
    check_measurements(plan)
    store = store or Store(compute.store).listed()
    rates = Rates(store, rate)
    named = plan_titles(plan)
    rows: list[tuple[float, dict[str, Any]]] = []
    for stage in plan.known().values():
        row = _row(stage, store, rates)
        rows.append((place(stage), {**row, "name": named.get(stage.fingerprint, stage.name)}))
        rows += [(place(later), _row(later, store, rates)) for later in afterwards(store, stage)]
    if plan.grid is None and plan.sweep.base.clean is not None:
        draws, stage = _draws(plan), cleaned_by(plan.sweep.base)
        row = {
            "stage": stage.kind, "name": f"{draws} drawn trials", "fingerprint": "", "stored": False,
            "pairs": draws * stage.pairs(store), "hours": None, "rate_from": "", "refused": "",
        }  # fmt: skip
        rows.append((place(stage), row))
    return [row for _, row in sorted(rows, key=lambda one: one[0])]


def _draws(plan: Plan) -> int:
    return plan.sweep.num_samples * max(1, len(plan.upstream))


def _row(stage: Stage, store: Store, rates: "Rates") -> dict[str, Any]:
    done = store.find(stage.kind, stage.fingerprint) is not None
    pairs = stage.pairs(store)
    speed, source = rates.of(stage) if pairs and not done else (None, "")
    hours = pairs / speed / 3600 if pairs and speed and not done else None
    return {
        "stage": stage.kind, "name": stage.name, "fingerprint": stage.fingerprint, "stored": done,
        "pairs": pairs, "hours": hours, "rate_from": source if hours is not None else "",
        "refused": "" if done else _refused(stage, At(store=store)),
    }  # fmt: skip


def _refused(stage: Stage, at: At) -> str:
    """The reason why a stage cannot be made, if the stored stages that it needs show one; else empty."""
    if all(at.find(needed) for needed in walk(*stage.needs)):
        try:
            stage.look_ahead(at)
        except InputError as error:
            return str(error)
    return ""


class Rates:
    """Samples a second of trainings: the given number or, for each kind, name and model, that of the newest stored stage."""

    def __init__(self, store: Store, given: float | None):
        self._store, self._given = store, given
        self._stored: dict[tuple[str, str], list[Artefact]] | None = None
        """Kind and name → the artefacts, the newest first."""
        self._known: dict[tuple[str, str, str], tuple[float | None, str]] = {}

    def of(self, stage: Stage) -> tuple[float | None, str]:
        """The rate, and where it comes from; None without one."""
        if self._given:
            return self._given, "given"
        key = stage.kind, stage.name, _model(stage.config)
        if key not in self._known:
            self._known[key] = self._measured(*key)
        return self._known[key]

    def _measured(self, kind: str, name: str, model: str) -> tuple[float | None, str]:
        if self._stored is None:
            self._stored = {}
            for artefact in reversed(self._store.all()):
                self._stored.setdefault((artefact.manifest["stage"], artefact.manifest["name"]), []).append(artefact)
        for artefact in self._stored.get((kind, name), ()):
            if _model(artefact.manifest["config"]) == model:
                rates = [line["metrics"].get("train/samples_per_second") for line in _metrics(artefact)[1:]]
                if rates and rates[-1]:
                    return rates[-1], f"{artefact.folder.name}"
        return None, ""


def _model(config: Any) -> str:
    """The model that a configuration names, as text; empty where it names none."""
    trained = config.get("pretrain") if isinstance(config, dict) else None
    return canonical(trained.get("model")) if isinstance(trained, dict) else ""


def plan_text(plan: Plan, compute: Compute, rows: list[dict[str, Any]], store: Store | None = None) -> str:
    """The plan as a table. `store`: as in `plan_rows`."""
    sweep = plan.sweep
    store = store or Store(compute.store)
    lines = [f"sweep {sweep.name}-{plan.fingerprint[:12]}  (store {store.root})", ""]
    wide = max(38, *(len(row["name"]) for row in rows))
    lines.append(f"{'stage':10} {'name':{wide}} {'fingerprint':13} {'state':8} {'pairs':>13} {'time':>9}")
    for row in rows:
        lines.append(
            f"{row['stage']:10} {row['name']:{wide}} {row['fingerprint'][:12]:13} {'stored' if row['stored'] else 'to do':8} "
            f"{_number(row['pairs']):>13} {_duration(row['hours']):>9}"
        )
    left = [row for row in rows if not row["stored"]]
    trained = {trained_by(experiment).fingerprint for _, experiment in plan.upstream}
    cleaned = {cleaned_by(experiment).fingerprint for _, experiment in plan.grid or ()}
    number = len(cleaned) if plan.grid is not None or sweep.base.clean is None else _draws(plan)
    lines += ["", f"{number_of(len(trained), 'pre-training')}, {number_of(number, 'cleaning')}."]
    if plan.grid is not None and len(plan.grid) > len(cleaned):
        lines[-1] += f" {len(plan.grid)} trials are drawn; those with the same values share a cleaning."
    lines.append(f"{len(rows)} stages, {len(rows) - len(left)} stored, {len(left)} to make.")
    pairs = sum(row["pairs"] or 0 for row in left)
    if pairs:
        known = [row["hours"] for row in left if row["hours"] is not None]
        about = f" About {_duration(sum(known))} of one process." if known else ""
        lines.append(f"Pairs to train on: {_number(pairs)}.{about}")
        if any(row["pairs"] and row["hours"] is None for row in left):
            lines.append("Stages without a time: none like them is stored yet; --samples-per-second gives a rate.")
    if any(row["pairs"] is None and not row["stored"] for row in rows):
        lines.append("The number of pairs is known once the shards are indexed.")
    lines += [f"WARNING `run` will stop at {row['stage']} {row['name']}: {row['refused']}" for row in rows if row["refused"]]
    lines += [f"NOTE another stage of the store is damaged: {wrong}" for _, wrong in store.damaged()]
    lines += ["", "fields (override with --path value):"]
    varied = {path: [encode(value, path, every=True) for value in grid_values(space) or []] for path, space in sweep.space.items()}
    varied |= {path: [encode(point[path], path, every=True) for point in sweep.points] for path in sweep.paths if path not in varied}
    lines += [f"  {line}" for line in _fields(encode(sweep.base, every=True), "", varied)]
    return "\n".join(lines)


VARIED = "(varied by the sweep)"


def _fields(node: Any, path: str, varied: dict[str, list[Any]]) -> list[str]:
    """A line for each field. Of a component that the sweep varies, the fields in which its values agree are shown."""
    if path in varied:
        node = _common(varied[path]) if varied[path] and all(isinstance(value, dict) for value in varied[path]) else VARIED
    if isinstance(node, dict):
        lines = [] if not path or "class" not in node else [f"{path}: {node['class'].rpartition('.')[2]}"]
        for name, value in node.items():
            if name not in ("class", ID):
                lines += _fields(value, f"{path}.{name}" if path else name, varied)
        return lines
    if isinstance(node, list) and node and all(isinstance(value, dict) for value in node):
        return [line for place, value in enumerate(node) for line in _fields(value, f"{path}.{place}", varied)]
    return [f"{path} = {VARIED if node is VARIED else json.dumps(node, ensure_ascii=False)}"]


def _common(values: list[Any]) -> Any:
    """Nested plain values merged into one: a value where all agree, VARIED elsewhere."""
    if all(value == values[0] for value in values):
        return values[0]
    if not all(isinstance(value, dict) for value in values):
        return VARIED
    keys = dict.fromkeys(key for value in values for key in value)
    return {key: _common([value[key] for value in values if key in value]) for key in keys}


def show(root: str, prefix: str | None, check: bool) -> int:
    """List a store, or print the artefact whose fingerprint starts with the prefix. Returns an exit code."""
    store = Store(root)
    if not store.root.is_dir():
        raise InputError(f"store {store.root} does not exist; give one with --store.")
    found, broken = store.all(), store.damaged()
    if prefix is not None:
        found = [a for a in found if a.fingerprint.startswith(prefix) or a.folder.name.endswith(prefix)]
        broken = [(folder, wrong) for folder, wrong in broken if folder.name.rpartition("-")[2].startswith(prefix[:12])]
        if len(found) + len(broken) != 1:
            raise InputError(
                f"{len(found) + len(broken) or 'no'} artefacts in {store.root} have a fingerprint that starts with {prefix!r}; give the "
                "first digits of one."
            )
    damaged = 0
    named = {} if prefix else _titles(found)
    for artefact in found:
        print(_artefact(artefact) if prefix else _artefact_line(artefact, named.get(artefact.fingerprint, "")))
        files = verify(artefact) if check else _lost(artefact)
        damaged += bool(files)
        for name in files:
            print(f"  DAMAGED {name}: missing, or its hash is not the manifest's")
    for folder, wrong in broken:
        damaged += 1
        print(f"{folder.parent.name:9} {folder.name:45} DAMAGED {MANIFEST}: {wrong}")
    if prefix is None:
        if not found:
            print(f"store {store.root} holds no finished artefact")
        for folder in filter(os.listdir, sorted(store.root.glob("*/.work-*"))):
            print(f"{folder.parent.name:9} unfinished {folder.name[6:]}  (the same command continues it)")
    return 1 if damaged else 0


def _titles(found: list[Artefact]) -> dict[str, str]:
    """Fingerprint of a training → its title among the store's trainings, from its manifest and those of its inputs."""
    manifests = {artefact.fingerprint: artefact.manifest for artefact in found}
    made: list[StageResult] = []
    for artefact in found:
        manifest, inputs = artefact.manifest, artefact.manifest["inputs"]
        kind = KINDS.get(manifest["stage"])
        if kind is None or not kind.followed:
            continue
        facts: dict[str, Any] = {"name": manifest["name"], "fingerprint": artefact.fingerprint, "folder": artefact.folder}
        before = {role: manifests[inputs[role]]["config"] for role in ("poison", "cleanset") if inputs.get(role) in manifests}
        facts |= {"stage": manifest["stage"], "config": {**manifest["config"], **before}}
        made.append(TrialResult(pretrain=inputs.get("pretrain", ""), **facts) if kind.trial else StageResult(**facts))
    return titles(made)


SHOWN = ("summary.json", "measured.json", "trials.json", METRICS)
"""Small files whose content `show` prints."""


def _lost(artefact: Artefact) -> list[str]:
    """Damage that is found without reading every file."""
    gone = missing(artefact)
    return gone + [name for name in SHOWN if name in artefact.manifest["files"] and name not in gone and not _whole(artefact, name)]


def _whole(artefact: Artefact, name: str) -> bool:
    try:
        return bool(part(artefact, name))
    except InputError:
        return False


def _metrics(artefact: Artefact) -> list[dict[str, Any]]:
    """The artefact's lines of metrics; empty if there are none, or the file is damaged."""
    try:
        return metrics_of(artefact) if METRICS in artefact.manifest["files"] else []
    except InputError:
        return []


def _artefact_line(artefact: Artefact, title: str) -> str:
    m = artefact.manifest
    lines = _metrics(artefact)
    told = ""
    if lines:
        metrics = lines[-1]["metrics"]
        told = f"  accuracy {metrics.get('zeroshot/top1', float('nan')):.1f} %  ASR {metrics.get('asr/top1', float('nan')):.1f} %"
    if m["stage"] == Kept.kind and _whole(artefact, "summary.json"):
        told = f"  {told_of(json.loads(part(artefact, 'summary.json')))}"
    line = f"{m['stage']:9} {artefact.folder.name:45} {m['created']}  {_duration(m['seconds'] / 3600):>8}{told}"
    return f"{line}  {title}" if title else line


def _artefact(artefact: Artefact) -> str:
    parts = [json.dumps({k: v for k, v in artefact.manifest.items() if k != "files"}, indent=1)]
    for name in SHOWN[:3]:
        if _whole(artefact, name):
            parts.append(f"{name}: {json.dumps(json.loads(part(artefact, name)), indent=1)}")
    parts += [json.dumps(line) for line in _metrics(artefact)]
    if "index.arrow" in artefact.manifest["files"]:
        try:
            with ipc.open_file(str(checked(artefact.folder / "index.arrow"))) as reader:
                parts.append(f"index.arrow: {reader.schema.names}")
        except InputError as error:
            parts.append(f"DAMAGED: {error}")
    parts.append(f"folder: {artefact.folder}")
    return "\n".join(parts)


def _number(value: int | None) -> str:
    return "" if not value else f"{value:,}".replace(",", " ")


def _duration(hours: float | None) -> str:
    if hours is None:
        return ""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"
