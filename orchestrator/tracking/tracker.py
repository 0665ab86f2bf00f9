"""MLflow, written by the driver alone: one experiment per study, a parent run per sweep, a child run per stage or trial.

Everything is read from `Study` and its results, so whatever could not be logged is logged later by the same command. Runs are found by the
tag `cleansweep.fingerprint`: a restart continues them and repeats no epoch.
"""

import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from orchestrator.results.kinds import attack_text, component_of
from orchestrator.results.names import flatten, hyperparameters, method_of, objective_of, settings
from orchestrator.results.outcome import StageResult, Study, TrialResult
from orchestrator.results.points import Point, points_of, start_of, uncleaned
from orchestrator.results.selection import best_metrics, best_of
from orchestrator.tracking.file import making, mlflow_uri, relocate, why
from orchestrator.tracking.runs import (
    COMPLETE,
    FINGERPRINT,
    MAX_KEY,
    MAX_TAG,
    SENTINEL,
    STUDY,
    Held,
    Line,
    create_run,
    end_run,
    find_experiment,
    find_run,
    key_of,
    one_of,
    runs_of,
    search_runs,
)
from orchestrator.tracking.server import VIEW, absolute_uri, artifact_location, patience, quiet, redacted, telling, why_unusable
from orchestrator.tracking.view import saved_view

PARENT, DRIVER, ERROR, NONFINITE = "mlflow.parentRunId", "cleansweep.driver", "cleansweep.error", "cleansweep.nonfinite"
STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "running": "RUNNING"}


class TrackingError(RuntimeError):
    """The tracking server could not be written to. The results themselves are in the store."""


class Tracker:
    """The one writer of a study's runs.

    `uri` is any MLflow tracking URI; `study` names the experiment. `artifacts` is a folder for files if the URI is a database; without it
    they lie beside the sqlite file. A server keeps files where it was configured to.
    """

    def __init__(self, uri: str, study: str, artifacts: str | Path | None = None):
        self.uri = absolute_uri(uri)
        self.study = study
        self.artifacts = artifact_location(self.uri, artifacts)
        self.runs: dict[tuple[str, str], str] = {}
        """(fingerprint of the study, of the stage) → run id."""
        self._by_stage: dict[str, str] = {}
        self._complete: dict[str, str] = {}
        """Run id → the result that it holds completely (`_whole`)."""
        self._held: dict[str, Held] = {}
        """By run id."""
        self._found: dict[str, dict[str, list[Any]]] = {}
        """Fingerprint of a study → of a stage → its runs, when the study was first asked for."""
        self._sources: dict[str, list[Point]] = {}
        """Fingerprint of a pre-training → its points."""
        self._objectives: dict[str, str] = {}
        self._client: Any = None
        self._experiment = ""

    def check(self) -> None:
        """Reach the server and create database and experiment; InputError naming the URI within about ten seconds."""
        quiet()
        if problem := why_unusable(self.uri):
            raise InputError(f"tracking URI {redacted(self.uri)} cannot be used: {problem}.")
        try:
            with patience(timeout_s=4, retries=1), self._guard("the experiment"):
                pass
        except TrackingError as error:
            raise InputError(f"tracking URI {redacted(self.uri)} cannot be used: {why(error.__cause__ or error)}.") from error

    def sweep_run(self, study: Study) -> str:
        """Find or create the sweep's parent run."""
        with self._guard("the sweep's run"):
            run_id = self._run(
                fingerprint=study.fingerprint,
                name=study.name,
                tags={
                    "role": "sweep", STUDY: study.fingerprint, "mlflow.note.content": study.doc,
                    "cleansweep.commit": study.commit, "cleansweep.data": study.data_hash,
                },
            )  # fmt: skip
            self._hold(run_id).log_params({"study": study.name, **_flat(study.config), **_flat({"poison": study.poison})})
            self._json(run_id, study.config, "config.json")
            if study.poison:
                self._json(run_id, study.poison, "poison.json")
            for pretrain in study.pretrains:
                self._objectives[pretrain.fingerprint] = objective_of(pretrain)
                self._sources[pretrain.fingerprint] = points_of(pretrain)
            return run_id

    def stage_run(
        self, result: StageResult, parent_run_id: str, role: str, tags: Mapping[str, str] | None = None, title: str = ""
    ) -> str:
        """Find or create the run of a stage or trial below `parent_run_id`, with its configuration and tags. `title`: a text that tells it
        from the others of its sweep, if that is known."""
        with self._guard(f"the run of {result.stage} {result.fingerprint[:12]}"):
            parent = self._hold(parent_run_id).tags
            stage_tags = {
                "role": role,
                "cleansweep.stage": result.stage,
                "cleansweep.commit": result.commit,
                "cleansweep.data": parent.get("cleansweep.data", ""),
                STUDY: parent.get(STUDY, ""),
                PARENT: parent_run_id,
            }
            stage_tags["cleansweep.class"] = str(component_of(result).get("class", ""))
            name = f"{result.stage} {title or result.name}"
            if isinstance(result, TrialResult):
                source = self._objectives.get(result.pretrain, result.pretrain[:6])
                stage_tags |= {"method": method_of(result), "pretrain": source, "cleansweep.pretrain": result.pretrain}
                name = title or " ".join(filter(None, (method_of(result), settings(result, [result]), f"on {source}")))
            else:
                self._objectives[result.fingerprint] = objective_of(result)
                if attack := attack_text(result):
                    stage_tags["attack"] = attack[:MAX_TAG]
            run_id = self._run(
                fingerprint=result.fingerprint,
                complete=_whole(result),
                name=name[:MAX_KEY],
                tags={**stage_tags, **(tags or {})},
            )
            self._by_stage[result.fingerprint] = run_id
            if self._complete.get(run_id) == _whole(result):
                return run_id
            tried = hyperparameters(result) if isinstance(result, TrialResult) else {}
            self._hold(run_id).log_params({**_flat(result.config), **tried})
            self._json(run_id, result.config, "config.json")
            return run_id

    def sync(self, result: StageResult) -> None:
        """Log the epochs that the run does not hold yet, as many in a request as fit, step = epoch."""
        run_id = self._by_stage[result.fingerprint]
        if self._complete.get(run_id) != _whole(result):
            with self._guard(f"metrics of {result.stage} {result.fingerprint[:12]}"):
                held = self._hold(run_id)
                lines, tags = self._fresh(held, result)
                held.log(lines, tags)
                held.epochs |= {epoch for epoch, _ in lines}

    def _fresh(self, held: Held, result: StageResult) -> tuple[list[Line], dict[str, str]]:
        """The epochs that the run does not hold yet, and the tag about values that are not finite. Logs metrics that were measured after
        their epochs were logged.
        """
        lines, lost = list[Line](), list[str]()
        self._add_later_ones(held, result)
        points, before = points_of(result), self._uncleaned(result) if isinstance(result, TrialResult) else None
        known = set(held.epochs)
        for line in result.metrics:
            epoch, told = int(line["epoch"]), {"seconds": line.get("seconds"), **line.get("metrics", {})}
            lost += [f"{k} = {v} at epoch {epoch}" for k, v in sorted(told.items()) if isinstance(v, float) and not math.isfinite(v)]
            if epoch in known:
                continue
            known.add(epoch)
            values = {SENTINEL: epoch, **told}
            if isinstance(result, TrialResult):
                values |= best_of([point for point in points if point.epoch <= epoch], before)
            values = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
            finite = {k: float(v) for k, v in values.items() if math.isfinite(v)}
            lines.append((epoch, finite))
        text = "; ".join(lost)[:MAX_TAG]
        return lines, {NONFINITE: text} if text and held.tags.get(NONFINITE) != text else {}

    def _add_later_ones(self, held: Held, result: StageResult) -> None:
        """Log metrics that were measured after their epochs were logged: all epochs of a metric in one request."""
        later: dict[str, list[Line]] = {}
        for line in result.metrics if held.epochs else ():
            for name, value in line.get("metrics", {}).items() if int(line["epoch"]) in held.epochs else ():
                if key_of(name) not in held.metrics and isinstance(value, (int, float)) and math.isfinite(value):
                    later.setdefault(key_of(name), []).append((int(line["epoch"]), {name: float(value)}))
        for values in later.values():
            held.log(values)

    def finish(self, result: StageResult, status: str | None = None) -> None:
        """Log everything that is still missing, `best/…` and `final/…`, the checkpoint's place, and end the run.

        `status` is MLflow's (FINISHED, FAILED, KILLED); None takes it from the result.
        """
        run_id = self._by_stage[result.fingerprint]
        if points_of(result) and not isinstance(result, TrialResult):
            self._sources[result.fingerprint] = points_of(result)
        if self._complete.get(run_id) == _whole(result):
            return
        status = status or STATUS[result.status]
        with self._guard(f"the end of {result.stage} {result.fingerprint[:12]}"):
            held, points = self._hold(run_id), points_of(result)
            lines, tags = self._fresh(held, result)
            last: dict[str, float] = {}
            if points and result.status in ("finished", "stopped"):  # a failed stage may be continued and then end differently
                last |= {"final/accuracy": points[-1].accuracy, "final/asr": points[-1].asr}
            if isinstance(result, TrialResult):
                last |= best_metrics(result.metrics, self._uncleaned(result))
                if points and "best/acc_at_asr_le_5" not in last:
                    tags["best/acc_at_asr_le_5"] = "none: no epoch reached ASR ≤ 5 %"
            if result.error:
                tags[ERROR] = result.error[:MAX_TAG]
            elif ERROR in held.tags:
                self._client.delete_tag(run_id, ERROR)
                del held.tags[ERROR]
            if result.status == "stopped":
                tags["cleansweep.stopped"] = "early, by the scheduler"
            self._json(run_id, _checkpoint(result), "checkpoint.json")
            self._portrait(run_id, result)
            complete = {} if status == "RUNNING" else {COMPLETE: _whole(result)}  # counts once the run has ended
            held.log([*lines, (points[-1].epoch if points else 0, held.unlike(last, lines))], tags | complete)
            held.epochs |= {epoch for epoch, _ in lines}
            held.set_status(status)
            if complete:
                self._complete[run_id] = _whole(result)
                self._held.pop(run_id, None)  # the driver goes on with hundreds of others; it is read again if more is measured

    def _uncleaned(self, trial: TrialResult) -> float | None:
        """The accuracy of the model that the trial cleans, in percent."""
        start = uncleaned(self._sources.get(trial.pretrain, []), trial)
        return start.accuracy if start else None

    def finish_sweep(self, run_id: str, study: Study, files: list[Path] | None = None, status: str = "FINISHED") -> None:
        """Log the sweep's best values and files (report, figures, table), and end its run."""
        with self._guard("the end of the sweep"):
            best: dict[str, float] = {}
            for trial in study.trials:
                start = start_of(study, trial.pretrain, trial)
                for key, value in best_metrics(trial.metrics, start.accuracy if start else None).items():
                    better = min if key.startswith("best/asr") else max
                    best[key] = better(value, best.get(key, value))
            held = self._hold(run_id)
            held.log([(0, held.unlike(best))])
            for path in files or []:
                self._client.log_artifact(run_id, str(path))
            held.set_status(status)

    def audited(self, study: str, stage: str, title: str, setting: str, values: Mapping[str, float], epoch: int) -> None:
        """Log what an audit found of a checkpoint to the run of its stage, if there is one; what the run holds already is not repeated.

        `setting` identifies the audit with all that its title does not tell (`Held.audit`)."""
        with self._guard(f"the audit of {stage[:12]}"):
            run = find_run(self._client, self._experiment, {STUDY: study, FINGERPRINT: stage})
            if run is not None:
                held = Held.of(self._client, run)
                under, tags = held.audit(title, setting)
                named = {f"{under}/{name}": value for name, value in values.items()}
                held.log([(epoch, {name: value for name, value in named.items() if held.at(name, epoch) != value})], tags)

    def close_stale(self, sweep_run_id: str) -> list[str]:
        """End the runs that nobody continues: those left running below this sweep, and those of dead drivers.

        Call it last. Returns the ids that were ended, with status KILLED.
        """
        with self._guard("runs left open"):
            closed = []
            for run in search_runs(self._client, self._experiment, "attributes.status = 'RUNNING'"):
                tags = run.data.tags
                known = self.runs.get((tags.get(STUDY, ""), tags.get(FINGERPRINT, "")), run.info.run_id)
                if known != run.info.run_id:  # the server's answer was lost, and another run was used
                    self._client.delete_run(run.info.run_id)
                    continue
                mine = sweep_run_id in (run.info.run_id, tags.get(PARENT))
                if mine or _dead(tags.get(DRIVER, "")):
                    self._client.set_tag(run.info.run_id, ERROR, "left open by a driver that was interrupted")
                    end_run(self._client, run.info.run_id, "KILLED", run.info.start_time)
                    closed.append(run.info.run_id)
            return closed

    def view(self, study: Study) -> str:
        """Save a view that opens the experiment's charts on accuracy against ASR; returns its path below the server.

        MLflow does not document saved views, so a failure here does not fail the run: the path of the plain experiment is returned instead.
        """
        with self._guard("the saved view"):
            path = saved_view(self._client, self._experiment, study, STUDY)
            self._client.set_experiment_tag(self._experiment, VIEW, path)
            return path

    def _open(self) -> None:
        """Connect once; creates the database and the experiment where they are missing."""
        if self._client is not None:
            return
        quiet()
        from mlflow import MlflowClient

        with making(self.uri):
            relocate(self.uri, self.artifacts)
            address = mlflow_uri(self.uri)
            client = MlflowClient(tracking_uri=address, registry_uri=address)
            self._experiment = find_experiment(client, self.study, self.artifacts)
        self._client = client

    def _run(self, *, fingerprint: str, name: str, tags: Mapping[str, str], complete: str = "") -> str:
        """The run of this fingerprint in its study; restored if it was deleted, and created if it does not exist."""
        key = (tags.get(STUDY, ""), fingerprint)
        tags = {k: str(v)[:MAX_TAG] for k, v in tags.items() if v} | {DRIVER: f"{socket.gethostname()}:{os.getpid()}"}
        if key in self.runs:
            return self.runs[key]
        from mlflow.entities import RunTag

        tags[FINGERPRINT] = fingerprint
        run = self._known(key)
        made = run is None
        if run is None:
            run = create_run(self._client, self._experiment, name, tags)
        run_id = run.info.run_id
        if run.info.lifecycle_stage == "deleted":
            self._client.restore_run(run_id)
        whole = bool(complete) and run.data.tags.get(COMPLETE) == complete and run.info.status not in ("RUNNING", "KILLED")
        if whole:
            self._complete[run_id] = complete
        else:
            self._held[run_id] = Held.of(self._client, run, made=made and not run.data.metrics)
            self._held[run_id].set_status("RUNNING")
        self.runs[key] = run_id
        late = {tag: value for tag, value in tags.items() if run.data.tags.get(tag) != value and (not whole or tag == PARENT)}
        if late:
            self._client.log_batch(run_id, tags=[RunTag(tag, value) for tag, value in late.items()])
        return run_id

    def _known(self, key: tuple[str, str]) -> Any:
        """The run of this study and fingerprint, if there was one when the study was first asked for; nobody else makes one meanwhile."""
        study, fingerprint = key
        if study not in self._found:
            self._found[study] = runs_of(self._client, self._experiment, study)
        return one_of(self._client, self._found[study].pop(fingerprint, []))

    def _hold(self, run_id: str) -> Held:
        """What the run holds."""
        if run_id not in self._held:
            self._held[run_id] = Held.of(self._client, self._client.get_run(run_id))
        return self._held[run_id]

    def _json(self, run_id: str, value: Any, name: str) -> None:
        text = json.dumps(value, indent=1, sort_keys=True, default=str, ensure_ascii=False)
        self._client.log_text(run_id, text, name)

    def _portrait(self, run_id: str, result: StageResult) -> None:
        """Log the figure of the stage's training pairs, if they were analysed."""
        from orchestrator.report.analysis import portrait

        figure = portrait(result, near=not isinstance(result, TrialResult))  # t-SNE takes seconds, and there are hundreds of trials
        if figure is not None:
            self._client.log_figure(run_id, figure, "analysis.png")

    @contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        """Connect, and turn any failure of MLflow, its database or the network into one TrackingError that names the URI."""
        try:
            with telling(lambda error: TrackingError(
                f"{what} could not be logged to {redacted(self.uri)}: {redacted(why(error))}. The results are safe in the store; "
                "the same command logs them later."
            )):  # fmt: skip
                self._open()
                yield
        except TrackingError:  # ask the server anew: a run may have been deleted, or an unanswered request carried out
            self._client = None
            for known in (self.runs, self._complete, self._held, self._found):
                known.clear()
            raise


def _flat(config: Any) -> dict[str, Any]:
    return {key: value for key, value in flatten(config) if value is not None and key}


def _whole(result: StageResult) -> str:
    """The value of the tag COMPLETE for a run that holds this whole result; empty while the stage runs."""
    return "" if result.status == "running" else f"{result.status}, {len(result.metrics)} epochs, {values(result)} values, {result.folder}"


def values(result: StageResult) -> int:
    """How many metric values the result has; later measurements add more."""
    return sum(len(line.get("metrics", {})) for line in result.metrics)


def _checkpoint(result: StageResult) -> dict[str, Any]:
    """The path of the weights, which stay in the store."""
    epochs = sorted(path.name for path in result.folder.glob("epoch_*") if path.is_dir())
    return {"folder": str(result.folder), "fingerprint": result.fingerprint, "checkpoints": epochs}


def _dead(driver: str) -> bool:
    """Whether the tag names a process of this machine that has ended."""
    host, _, pid = driver.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit() or int(pid) == os.getpid():
        return False
    return not Path(f"/proc/{pid}").exists() if Path("/proc/self").exists() else False
