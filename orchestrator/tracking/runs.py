"""Finds or creates experiments and runs, each exactly once, even if it was deleted in MLflow's pages or a server's answer was lost."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from orchestrator.results.names import value_text
from orchestrator.tracking.server import patience

FINGERPRINT, STUDY = "cleansweep.fingerprint", "cleansweep.study"
COMPLETE = "cleansweep.complete"
"""Tag that is written with a stage's last values: it identifies the result that the run holds completely. Such a run, once it has ended, is
not opened again."""
SENTINEL = "epoch"
"""Metric in the same batch as an epoch's other metrics: an epoch that has it was logged completely."""
Line = tuple[int, dict[str, float]]
"""An epoch and its values."""
MAX_PARAM, MAX_TAG, MAX_KEY, MAX_PARAMS = 500, 5000, 250, 100
"""Characters of a value, of a tag and of a key, and parameters in one request, that every MLflow server takes."""
MAX_METRICS = 900
"""Metrics of one request; a server takes 1000 metrics, parameters and tags together."""
WAITS_S = (1.0, 4.0)
"""Seconds to wait before checking whether an unanswered request was carried out, and then sending it again."""


def find_experiment(client: Any, name: str, artifacts: str | None) -> str:
    """The id of the experiment. It is restored if it was deleted, and created if it does not exist."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return client.create_experiment(name, artifact_location=artifacts, tags=tags)
        except MlflowException:  # another driver created it first, or the answer was lost
            known = client.get_experiment_by_name(name)
            if known is None:
                raise
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    return known.experiment_id


def search_runs(client: Any, experiment: str, query: str, *, deleted: bool = False) -> list[Any]:
    """All runs that match the query; with `deleted`, also those that somebody deleted."""
    from mlflow.entities import ViewType

    which = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment], query, which, max_results=1000, page_token=token)
        runs += list(page)
        token = page.token
        if not token:
            return runs


def find_run(client: Any, experiment: str, tags: Mapping[str, str]) -> Any:
    """The run with this fingerprint and study; None if there is none.

    A server that made a run and whose answer was lost leaves a second one. Of several runs the one that holds the most is returned, and the
    others are deleted. A deleted run is returned only if there is no other.
    """
    query = " and ".join(f"tags.`{tag}` = '{tags.get(tag, '')}'" for tag in (FINGERPRINT, STUDY))
    return one_of(client, search_runs(client, experiment, query, deleted=True))


def runs_of(client: Any, experiment: str, study: str) -> dict[str, list[Any]]:
    """Fingerprint → the runs of a study with it, deleted ones too: one search for a study, where `find_run` is one for each run."""
    found: dict[str, list[Any]] = {}
    for run in search_runs(client, experiment, f"tags.`{STUDY}` = '{study}'", deleted=True):
        found.setdefault(run.data.tags.get(FINGERPRINT, ""), []).append(run)
    return found


def one_of(client: Any, runs: list[Any]) -> Any:
    """The one of several runs of one fingerprint and study that stays, as `find_run` says; None of none."""
    runs.sort(key=lambda run: (
        run.info.lifecycle_stage == "deleted", COMPLETE not in run.data.tags, -run.data.metrics.get(SENTINEL, -1.0),
        run.info.start_time, run.info.run_id,
    ))  # fmt: skip
    for twin in runs[1:]:
        if twin.info.lifecycle_stage != "deleted":
            client.delete_run(twin.info.run_id)
    return runs[0] if runs else None


@dataclass
class Held:
    """A run and what it holds, kept in step with what is written: a run is read once, and one that was just made not at all."""

    client: Any
    run_id: str
    status: str
    tags: dict[str, str]
    params: set[str]
    metrics: dict[str, float]
    """The newest value of each."""
    epochs: set[int] = field(default_factory=set)
    """Those that were logged completely."""
    began: int = 0
    """When the run began, in milliseconds since 1970."""
    newest: int = 0
    """The latest time of a value that was read. Of two values of an epoch MLflow shows the one with the later time."""

    @classmethod
    def of(cls, client: Any, run: Any, *, made: bool = False) -> "Held":
        """Of a run that was found, or just `made`."""
        run_id, data = run.info.run_id, run.data
        epochs = set() if made else {metric.step for metric in client.get_metric_history(run_id, SENTINEL)}
        newest = max((metric.timestamp for metric in data._metric_objs), default=0)
        known = dict(data.tags), set(data.params), dict(data.metrics), epochs
        return cls(client, run_id, run.info.status, *known, began=run.info.start_time, newest=newest)

    def log(self, lines: list[Line] | None = None, tags: Mapping[str, str] | None = None) -> None:
        """Write values, (epoch, them), in as few requests as they fit, and the tags in the last one."""
        from mlflow.entities import Metric, RunTag

        now, parts = max(int(time.time() * 1000), self.newest + 1), list(batches(lines or [])) or [[]]  # the clock may have been set back
        for number, part in enumerate(parts, 1):
            told = {} if tags is None or number < len(parts) else tags
            newest_first = reversed(part)  # MLflow's database then writes the newest value of a metric once, not once an epoch
            metrics = [Metric(key_of(name), value, now, epoch) for epoch, values in newest_first for name, value in values.items()]
            if metrics or told:
                self.client.log_batch(self.run_id, metrics=metrics, tags=[RunTag(tag, value) for tag, value in told.items()])
                self.newest = now if metrics else self.newest
            self.metrics |= {metric.key: metric.value for metric in reversed(metrics)}
            self.tags |= told

    def unlike(self, values: Mapping[str, float], lines: list[Line] | None = None) -> dict[str, float]:
        """The values that differ from those that the run will have when these lines are written."""
        known = self.metrics | {key_of(name): value for _, line in lines or () for name, value in line.items()}
        return {name: value for name, value in values.items() if known.get(key_of(name)) != value}

    def at(self, name: str, epoch: int) -> float | None:
        """The newest value of a metric at an epoch; None if it has none there."""
        history = self.client.get_metric_history(self.run_id, key_of(name)) if key_of(name) in self.metrics else []
        here = [metric for metric in history if metric.step == epoch]
        self.newest = max([self.newest, *(metric.timestamp for metric in history)])
        return max(here, key=lambda metric: metric.timestamp).value if here else None

    def audit(self, title: str, setting: str) -> tuple[str, dict[str, str] | None]:
        """(what stands before the names of an audit's numbers, a tag to write with them, if any).

        That is audit/<title> for the first setting that comes under this title, which the tag holds, and audit/<title> <setting> for every
        other one, so that no audit overwrites another's numbers.
        """
        plain = f"audit/{title}"[: MAX_KEY // 2]  # so that a long title cuts off neither the setting nor a number's name
        first = self.tags.get(key_of(plain))
        if first is None and any(name.startswith(f"{key_of(plain)}/") for name in self.metrics):  # logged before there was such a tag
            first = "unknown"
        return (plain if first in (None, setting) else f"{plain} {setting}"), ({key_of(plain): setting} if first is None else None)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Write the parameters that the run lacks; MLflow refuses to change existing ones."""
        from mlflow.entities import Param

        texts = {key_of(k): value_text(v)[:MAX_PARAM] for k, v in params.items()}
        missing = [Param(k, v) for k, v in texts.items() if k not in self.params and v != ""]
        for start in range(0, len(missing), MAX_PARAMS):
            self.client.log_batch(self.run_id, params=missing[start : start + MAX_PARAMS])
        self.params |= {param.key for param in missing}

    def set_status(self, status: str) -> None:
        """Write the status unless the run has it."""
        if self.status != status and status == "RUNNING":
            self.client.update_run(self.run_id, status=status)
        elif self.status != status:
            end_run(self.client, self.run_id, status, self.began)
        self.status = status


def end_run(client: Any, run_id: str, status: str, began: int) -> None:
    """Set a run's status and end, which is not before it began: the clock may have been set back, or another host's may differ."""
    client.set_terminated(run_id, status, max(int(time.time() * 1000), began))


@lru_cache(maxsize=4096)
def key_of(text: str) -> str:
    """A name that MLflow accepts for a parameter or metric."""
    return "".join(c if c.isalnum() or c in "_-./ :" else "_" for c in text)[:MAX_KEY]


def batches(lines: list[Line]) -> Iterator[list[Line]]:
    """(epoch, values) in as many as fit one request, none of them divided: a request is carried out as a whole or not at all."""
    batch: list[Line] = []
    for line in lines:
        if batch and sum(len(values) for _, values in [*batch, line]) > MAX_METRICS:
            yield batch
            batch = []
        batch.append(line)
    if batch:
        yield batch


def create_run(client: Any, experiment: str, name: str, tags: Mapping[str, str]) -> Any:
    """Create a run. An unanswered request may have succeeded, so it is sent again only if a search does not find the run."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    for wait_s in (*WAITS_S, None):
        try:
            with patience(timeout_s=None, retries=0):  # MLflow's own retries would create a second run
                created = client.create_run(experiment, run_name=name, tags=dict(tags))
            return created if wait_s == WAITS_S[0] else find_run(client, experiment, tags) or created
        except (MlflowException, RequestException):
            if wait_s is None:
                raise
        time.sleep(wait_s)
        if (run := find_run(client, experiment, tags)) is not None:
            return run
    raise AssertionError("the last try returns or raises")
