"""A saved view of MLflow's chart page: accuracy against ASR.

MLflow keeps a shared view as an experiment tag `mlflow.sharedViewState.<id>`. The format is not documented; this one was written for MLflow
3.17 and checked in its pages.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

from orchestrator.results.outcome import Study
from orchestrator.results.points import ACCURACY, ASR, points_of

OLDEST = (3, 17)


def saved_view(client: Any, experiment_id: str, study: Study, study_tag: str) -> str:
    """Store the view with the experiment; returns the path that opens it, below the server's address.

    If this MLflow does not keep views, returns the path of the experiment's plain chart page.
    """
    from mlflow import __version__
    from mlflow.exceptions import MlflowException

    page = f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    if tuple(int(part) for part in __version__.split(".")[:2]) < OLDEST:
        return page
    key = hashlib.sha256(study.fingerprint.encode()).hexdigest()[:20]
    now = int(time.time() * 1000)
    accuracies = [p.accuracy for trial in study.trials for p in points_of(trial)]
    state = view_state(f"tags.`{study_tag}` = '{study.fingerprint}'", accuracies)
    view = {"name": "accuracy against ASR", "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    try:
        client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{key}", json.dumps(view))
    except MlflowException:  # refused for its length or its key: the plain page is used
        return page
    return f"{page}&viewStateShareKey={key}"


def view_state(search: str, accuracies: Sequence[float] = ()) -> dict[str, Any]:
    """The page's state: which runs, how grouped, which charts; the first chart's range shows these accuracies (%)."""
    low, high = min(accuracies, default=0.0), max(accuracies, default=100.0)
    margin = max(0.08 * (high - low), 0.5)
    trade_off, epochs, last = "cleansweep-trade-off", "cleansweep-epochs", "cleansweep-last"
    section = {"display": True, "isReordered": True, "columns": 2}
    shared = {"deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    line = {
        **shared,
        "type": "LINE",
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "displayPoints": True,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
    }

    def over_epochs(metric: str, title: str) -> dict[str, Any]:
        return {
            **line,
            "uuid": f"{epochs}-{metric}",
            "metricSectionId": epochs,
            "metricKey": metric,
            "selectedMetricKeys": [metric],
            "displayName": title,
            "xAxisKey": "step",
            "selectedXAxisMetricKey": "",
        }

    trajectories = {
        **line,
        "uuid": trade_off,
        "metricSectionId": trade_off,
        "metricKey": ACCURACY,
        "selectedMetricKeys": [ACCURACY],
        "displayName": "accuracy against ASR, a line a run, a point an epoch",
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": ASR,
        "range": {"xMin": -3, "xMax": 103, "yMin": round(low - margin, 2), "yMax": round(high + margin, 2)},
    }
    scatter = {
        **shared,
        "uuid": last,
        "metricSectionId": trade_off,
        "type": "SCATTER",
        "displayName": "last epoch: accuracy against ASR",
        "xaxis": {"key": ASR, "type": "METRIC"},
        "yaxis": {"key": ACCURACY, "type": "METRIC"},
    }
    return {
        "searchFilter": search,
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "lifecycleFilter": "Active",
        "runsHiddenMode": "SHOWALL",
        "selectedColumns": ["attributes.`Source`"],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": False,
        "hideEmptyCharts": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "role"}]},
        "compareRunSections": [
            {
                **section,
                "uuid": trade_off,
                "name": "Accuracy (up) against ASR (right), percent",
                "cardHeight": 520,
            },
            {**section, "uuid": epochs, "name": "Accuracy and ASR over the epochs, percent", "cardHeight": 360},
        ],
        "compareRunCharts": [
            trajectories,
            scatter,
            over_epochs(ACCURACY, "zero-shot accuracy, %"),
            over_epochs(ASR, "attack success rate, %"),
        ],
    }
