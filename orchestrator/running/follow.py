"""Following a run: send each new epoch to MLflow, and the progress of each training to the terminal. It only reads the store."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from orchestrator.console import live
from orchestrator.console.live import Progress
from orchestrator.console.log import log, say
from orchestrator.console.progress import clock, left, smoothed, tell
from orchestrator.failures import CERTAIN
from orchestrator.results.outcome import StageResult, Study, TrialResult
from orchestrator.stages.cleaned import Cleaned
from orchestrator.stages.graph import cleaned_by, stages
from orchestrator.store import FAILED, NOTES, Listed, Store, read_failure
from orchestrator.sweep.plan import Plan
from orchestrator.sweep.records import Records
from orchestrator.sweep.stored import Reader
from orchestrator.sweep.titles import plan_titles, titles
from orchestrator.tracking.tracker import Tracker, TrackingError, values

POLL_S = 2.0
"""Seconds between two reads of the store."""
PROGRESS = "progress.json"


class Mirror:
    """Keeps a study's runs in MLflow equal to the store: a parent run for the sweep, a child run for each stage and trial."""

    def __init__(self, tracker: Tracker, titles: Mapping[str, str] | None = None):
        """`titles`: fingerprint → what tells a stage from the sweep's others; its run is called so."""
        self._tracker, self._titles = tracker, titles or {}
        self._sweep: str | None = None
        self._known: set[str] = set()
        self._finished: dict[str, int] = {}
        """Fingerprint → how many metric values the finished run holds."""

    def sync(self, study: Study) -> None:
        """Log what is new. Raises TrackingError if the server cannot be written to."""
        if self._sweep is None and study.poison:
            self._sweep = self._tracker.sweep_run(study)
        if self._sweep is None:
            return
        for result in followed(study):
            if self._finished.get(result.fingerprint) == values(result):
                continue
            if result.fingerprint not in self._known:
                role, title = "prior" if result in study.priors else result.stage, self._titles.get(result.fingerprint, "")
                self._tracker.stage_run(result, self._sweep, role, title=title)
                self._known.add(result.fingerprint)
            if result.status == "running":
                self._tracker.sync(result)
            else:
                self._tracker.finish(result)
                self._finished[result.fingerprint] = values(result)

    def finish(self, study: Study, report: Path, *, failed: bool) -> None:
        """End every run."""
        for result in followed(study):
            if result.status == "running":
                result.status, result.error = "failed", "it did not finish"
        self._sweep = self._tracker.sweep_run(study)
        self.sync(study)
        files = sorted(path for path in report.parent.iterdir() if path.is_file() and not path.name.startswith("."))
        self._tracker.finish_sweep(self._sweep, study, files, "FAILED" if failed else "FINISHED")
        self._tracker.view(study)
        self._tracker.close_stale(self._sweep)


class Follower:
    """A thread that reads the store while stages run and reports what is new."""

    def __init__(self, plan: Plan, store: Store, mirror: Mirror):
        self._plan, self._store, self._reader = plan, store, Reader(plan, store)
        self._mirror: Mirror | None = mirror
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._told: dict[str, tuple[float, int]] = {}
        self._noted: set[str] = set()
        self._failed, self._starting = set[str](), set[str]()
        self._titles: dict[str, str] = {}
        self._rates: dict[str, Callable[[float, float], float]] = {}
        self._before = {path: path.read_bytes() for path in store.root.glob(f"*/.work-*/{PROGRESS}")}
        """State that an interrupted attempt left behind, which must not be taken for this attempt's."""
        self._left = {path: _mark(path) for name in (f".work-*/{FAILED}", ".lock-*") for path in store.root.glob(f"*/{name}")}
        """Failures and locks of earlier attempts, which are not this attempt's as long as they are as they were. Their times are compared
        with nothing but themselves: the clock of the store's disk may differ from this one, and this one may have been set back."""
        finished = [path for path in store.root.glob(f"*/*-*/{NOTES}") if not path.parent.name.startswith(".")]
        self._earlier = {path: path.read_bytes() for path in finished}
        """Notes of stages that earlier runs finished; those runs have shown them."""
        self._ended = {path.name[-12:] for path in store.root.glob("*/*-*") if not path.name.startswith(".")}
        """First digits of the stages whose end was logged, or that were finished before."""
        self._dropped = set[str]()
        """Fingerprints of the stages that have ended and are no longer drawn."""
        known = [experiment for _, experiment in [*plan.upstream, *(plan.grid or ())]]
        made = dict.fromkeys(stage for experiment in known for stage in stages(experiment).values())
        self._digits = {(stage.kind, stage.fingerprint[:12]) for stage in made}
        self._read_notes = set[tuple[str, str]]()
        """Kind and folder of the finished stages whose notes were said."""
        self._records = Records(plan, store)
        self._trainings = [stage for stage in made if stage.followed]
        self._cleanings = {cleaned_by(experiment).fingerprint for _, experiment in plan.grid or ()}

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()  # MLflow's requests give up by themselves; two writers at once would log an epoch twice
        live.drop()
        with suppress(InputError, OSError):  # for what has ended since the last read
            self._tell_notes(self._store.listed())
            self._tell_ends(self._reader.read(live=True))

    def _follow(self) -> None:
        while not self._stop.wait(POLL_S):
            self.look()

    def look(self) -> None:
        """Read the store once, and report what is new since the last time."""
        try:
            study = self._reader.read(live=True)
        except (InputError, OSError):  # an artefact was damaged meanwhile: the end of the run reports it
            return
        self._tell(study)
        if self._mirror is not None:
            try:
                self._mirror.sync(study)
            except TrackingError as error:  # training continues; the end of the run logs everything, or fails
                self._mirror = None
                log.warning("%s", error)

    def _tell_notes(self, listed: Listed) -> None:
        """Log the notes of the plan's stages that run, or have ended since this run began."""
        drawn = self._records.read() if self._plan.grid is None else []
        for kind, digits in sorted(self._digits | {(Cleaned.kind, record.trial[:12]) for record in drawn}):
            for name in listed.ending(kind, digits):
                if name.startswith(".lock") or (kind, name) in self._read_notes:
                    continue
                path = listed.root / kind / name / NOTES
                with suppress(FileNotFoundError, NotADirectoryError):  # none; or sealed meanwhile: the next read finds it
                    text = path.read_bytes()
                    if text != self._earlier.get(path):
                        self._say_notes(text)
                if not name.startswith("."):
                    self._read_notes.add((kind, name))

    def _say_notes(self, text: bytes) -> None:
        for line in text.decode(errors="replace").splitlines():
            if line not in self._noted:  # the same note of many trials is logged once
                say(line)
                self._noted.add(line)

    def _tell(self, study: Study) -> None:
        """Log what is new: notes, stages that have ended, and the progress of the others."""
        listed = self._store.listed()
        self._tell_notes(listed)
        self._tell_ends(study)
        self._tell_begun(study, listed)
        for result in followed(study):
            if result.status != "running" or result.fingerprint in self._failed:
                continue
            named = self._named(result, study)
            failed = read_failure(result.folder)
            if failed and failed["kind"] in CERTAIN and self._is_new(result.folder / FAILED):
                self._failed.add(result.fingerprint)
                live.drop(result.fingerprint)
                log.warning("%s  failed: %s", named, failed["error"], extra={"stage": _stage(result)})
                continue
            found, now = self._progress(result.folder / PROGRESS), time.monotonic()
            if found is None:
                if not isinstance(result, TrialResult):  # a trial may wait for its turn
                    self._tell_start(result.fingerprint, named, _stage(result))
                continue
            rate = self._rates.setdefault(result.fingerprint, smoothed())(found["step"], now)
            progress = progress_of(named, result, found, rate * found["batch_size"])
            live.show(result.fingerprint, progress)
            last, epochs = self._told.get(result.fingerprint, (0.0, -1))
            if len(result.metrics) != epochs or now - last > 10:
                self._told[result.fingerprint] = (now, len(result.metrics))
                tell(progress, stage=_stage(result))

    def _tell_begun(self, study: Study, listed: Listed) -> None:
        """Show the trainings of the plan that have begun but have measured nothing yet."""
        known, begun = {result.fingerprint for result in followed(study)}, set()
        for stage in self._trainings:
            lock = listed.lock(stage.kind, stage.fingerprint)
            if stage.fingerprint in known or not listed.has(lock):
                continue
            with suppress(OSError):
                failed = (listed.work(stage.kind, stage.fingerprint) / FAILED).exists()
                if failed or not self._is_new(lock):
                    continue
                begun.add(stage.fingerprint)
                named = self._title(stage.kind, stage.fingerprint, lambda own=stage: own.name)  # type: ignore[misc]
                if stage.trial:  # there may be hundreds
                    live.show(stage.fingerprint, Progress(title=named, more="starting"))
                else:
                    self._tell_start(stage.fingerprint, named, str(stage))
        for ended in self._starting - begun - known:
            live.drop(ended)
        self._starting = begun

    def _is_new(self, path: Path) -> bool:
        """Whether the failure or lock was written since this began."""
        return self._left.get(path) != _mark(path)

    def _tell_start(self, fingerprint: str, named: str, stage: str) -> None:
        starting = Progress(title=named, more="starting workers")
        live.show(fingerprint, starting)
        if fingerprint not in self._told:
            self._told[fingerprint] = (0.0, -1)
            tell(starting, stage=stage)

    def _tell_ends(self, study: Study) -> None:
        """Log what has ended since the last read, and how many cleanings are finished."""
        for result in followed(study):
            if result.status == "running":
                self._dropped.discard(result.fingerprint)
            if result.status == "running" or result.fingerprint in self._dropped:
                continue
            self._dropped.add(result.fingerprint)
            live.drop(result.fingerprint)
            if result.status == "finished" and result.fingerprint[:12] not in self._ended:
                self._ended.add(result.fingerprint[:12])
                named = self._named(result, study)
                accuracy, asr = _measured(result)
                ended = Progress(title=named, more=f"finished in {clock(result.seconds)}", accuracy=accuracy, asr=asr)
                log.info("%s", ended, extra={"stage": _stage(result)})
        done = sum(trial.status == "finished" for trial in study.trials)
        if done and self._told.get("trials", (0.0, -1))[1] != done:
            self._told["trials"] = (time.monotonic(), done)
            known = self._cleanings
            total = f" of {len(known)}" if known else ""
            tell(Progress(title=f"cleanings finished: {done}{total}"))
            if known and not self._stop.is_set():
                whole = Progress(title="cleanings finished", done=done, total=len(known), rate=f"{done}{total}", whole=True)
                live.show("trials", whole)

    def _named(self, result: StageResult, study: Study) -> str:
        """A stage's kind and title: from the plan or, if the plan does not know it, from the results so far."""
        among = [*study.pretrains, *study.trials]
        return self._title(result.stage, result.fingerprint, lambda: titles(among).get(result.fingerprint) or result.name)

    def _title(self, kind: str, fingerprint: str, other: Callable[[], str]) -> str:
        """As `_named`; `other` gives the title of a stage that the plan does not know."""
        self._titles = self._titles or plan_titles(self._plan)
        return f"{kind} {self._titles.get(fingerprint) or other()} ({fingerprint[:6]})"

    def _progress(self, path: Path) -> dict[str, Any] | None:
        """The progress that the stage's process last wrote in this attempt; None if it has written nothing readable."""
        try:
            text = path.read_bytes()
            found = json.loads(text)
        except (OSError, ValueError):
            return None
        names = ("step", "total", "rate", "batch_size")
        whole = isinstance(found, dict) and all(isinstance(found.get(name), (int, float)) for name in names)
        return found if whole and text != self._before.get(path) else None


def _mark(path: Path) -> tuple[int, int, int]:
    """What tells whether a file is another one or was written again; that of no file where it is gone."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return info.st_ino, info.st_mtime_ns, info.st_ctime_ns


def _stage(result: StageResult) -> str:
    """The title of the result's stage, as its processes write it in the log."""
    return f"{result.stage} {result.name}-{result.fingerprint[:12]}"


def followed(study: Study) -> list[StageResult]:
    """The trainings of a study."""
    return [*study.priors, *study.pretrains, *study.trials]


def progress_of(title: str, result: StageResult, found: dict[str, Any], rate: float = 0.0) -> Progress:
    """How far a training is, by what its process wrote down (`found`).

    `rate` is smoothed, in samples a second; 0, before there is one: the last that the stage's process measured.
    """
    rate = rate or found["rate"]
    accuracy, asr = _measured(result)
    return Progress(
        title=title,
        done=found["step"],
        total=found["total"],
        unit="steps",
        rate=f"{rate:.0f} samples/s",
        left=left((found["total"] - found["step"]) * found["batch_size"], rate),
        accuracy=accuracy,
        asr=asr,
    )


def _measured(result: StageResult) -> tuple[str, str]:
    """The last accuracy and ASR of a training as text; empty until they are measured."""
    metrics = result.metrics[-1]["metrics"] if result.metrics else {}
    accuracy, asr = (f"{metrics[name]:.1f} %" if name in metrics else "" for name in ("zeroshot/top1", "asr/top1"))
    return accuracy, asr
