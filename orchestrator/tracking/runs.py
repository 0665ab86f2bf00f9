"""Finds or creates experiments and runs, each exactly once, even if it was deleted in MLflow's pages or a server's answer was lost."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.tracking.server import patience

FINGERPRINT, STUDY = "cleansweep.fingerprint", "cleansweep.study"
COMPLETE = "cleansweep.complete"
"""Tag that is set last on a stage's run: its value identifies the result that the run holds completely. Such a run is not opened again."""
SENTINEL = "epoch"
"""Metric in the same batch as an epoch's other metrics: an epoch that has it was logged completely."""
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
    """What a run holds, kept in step with what is written to it: a run is read once, and one that was just made not at all."""

    status: str
    tags: dict[str, str]
    params: set[str]
    metrics: dict[str, float]
    """The newest value of each."""
    epochs: set[int] = field(default_factory=set)
    """Those that were logged completely."""

    @classmethod
    def of(cls, run: Any, epochs: set[int]) -> "Held":
        data = run.data
        return cls(run.info.status, dict(data.tags), set(data.params), dict(data.metrics), epochs)


def batches(lines: list[tuple[int, dict[str, float]]]) -> Iterator[list[tuple[int, dict[str, float]]]]:
    """(epoch, values) in as many as fit one request, none of them divided: a request is carried out as a whole or not at all."""
    batch: list[tuple[int, dict[str, float]]] = []
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
