"""Start or join Ray, ask for its resources, and keep its output from the user.

Importing this module does not import Ray.
"""

import atexit
import contextlib
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from orchestrator import ROOT
from orchestrator.cluster import by_value, start
from orchestrator.console.log import log
from orchestrator.failures import behind

ARENAS = "MALLOC_ARENA_MAX"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # otherwise every worker without a GPU prints a warning
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",  # without it Train cannot free its resources; a busy machine needs some time
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "300",  # a feed without CPUs is reported after 5 minutes
    "RAY_task_oom_retries": "2",  # as `Compute.retries`; else a task that always needs too much memory is begun again for ever
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # reports are barriers, and Ray polls them at this interval
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ctrl-C ends the command; Tune's handler would return as if everything were done
    "RAY_enable_metrics_collection": "0",  # nobody reads them in a command's own Ray, and its services take a quarter less of a core
    "RAY_metrics_report_interval_ms": "60000",
    ARENAS: "2",  # a trial trains in a thread of its own; memory left in other arenas adds up to 100 MB a trial
}
"""Environment of the driver and the workers of a local Ray; the user's own settings are kept.

OMP_NUM_THREADS is not among them: Ray gives each worker as many threads as it reserved CPUs, at least one.
"""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
OBJECT_STORE_BYTES = 1_000_000_000
"""Size of a local Ray's object store: streams of blocks of 16 MiB need no more."""


def set_environment() -> None:
    """Set Ray's environment for this process and all that it starts. Call it before `import ray`, which reads some of it once.

    RAY_AUTH_MODE is left to Ray, which turns tokens on for a local cluster by itself; if it were set here, after the import, only the
    servers would see it.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(
    num_cpus: int | None = None,
    *,
    num_gpus: int | None = None,
    object_store_bytes: int = OBJECT_STORE_BYTES,
    dashboard: bool | None = None,
    worker_output: bool = False,
) -> None:
    """Join the cluster that RAY_ADDRESS names, or start a local Ray of `num_cpus` (None: all there are).

    Does nothing if Ray runs already. `dashboard=False` is only for unit tests: without the dashboard there is no State API, and Train
    cannot free its placement groups. `worker_output` prints what workers print; their logs are in Ray's session folder either way.
    InputError if Ray does not start or answer.
    """
    address = start.named_address()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    options: dict[str, Any] = {"log_to_driver": worker_output, "logging_level": logging.INFO}
    if not address:
        os.environ["PYTHONPATH"] = path  # workers inherit it
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one more process, for nodes that a cloud takes back
        options |= {
            "address": "local",
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "object_store_memory": object_store_bytes,
            "include_dashboard": dashboard,
        }
    elif "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a submitted job brings its own working_dir
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": path, ARENAS: os.environ.get(ARENAS, ENVIRONMENT[ARENAS])}}

    import ray

    by_value.tell_ray()
    if ray.is_initialized():
        return
    quiet()
    if address:
        start.join(address, options)
    else:
        start.start(options)
    interruptible()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names. If it names none, no Ray is started: one machine can handle small data without it."""
    if not start.named_address():
        yield
        return
    connect()
    try:
        yield
    finally:
        shutdown()


def scratch(store: Path, owner: str) -> str:
    """A name for a run of Train or Tune. `shutdown` removes its folder in `store`/ray at the latest. Folders left by killed runs of the
    same owner are removed now, so the caller must hold the owner's lock."""
    for left in (store / "ray").glob(f"{owner}-*"):
        shutil.rmtree(left, ignore_errors=True)
    name = f"{owner}-{time.time_ns()}"
    _SCRATCH.add(store / "ray" / name)
    return name


_SCRATCH: set[Path] = set()


def interruptible() -> None:
    """Let ctrl-C and SIGTERM raise KeyboardInterrupt: Ray and Ray Train leave handlers behind that abort, or swallow them."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)


def shutdown() -> None:
    """Stop a local Ray, or leave the cluster. Remove what runs of Train and Tune left in the store."""
    import ray

    ray.shutdown()
    start.unwatch()
    _tidy()


def abandon() -> None:
    """Like `shutdown`, for a Ray whose servers are dead, so that a normal shutdown would wait for them: kills the rest of a local Ray.
    After that the process can only end, with exit code 1."""
    import ray

    mute()
    atexit.unregister(ray.shutdown)
    atexit.register(_leave)
    if not start.named_address():
        start.stop_started()
        start.unwatch()
    _tidy()


def mute() -> None:
    """From here on only Python writes to stderr. Ray's C++ part would repeat there at length what we report in a sentence."""
    global _MUTED
    if _MUTED:
        return
    _MUTED = True
    sys.stderr.flush()
    sys.stderr = open(os.dup(2), "w", buffering=1)  # noqa: SIM115 (for the rest of the process)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


_MUTED = False


def _leave() -> None:
    """End the process before the destructors of Ray's C++ part run: they crash without its servers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _tidy() -> None:
    while _SCRATCH:
        shutil.rmtree(_SCRATCH.pop(), ignore_errors=True)


def quiet() -> None:
    """Keep Ray's own messages in this process, and those of Train's workers, from the terminal; they are logged at the level debug.

    Failures reach the caller anyway, and `waiting` says in a sentence what a run waits for.
    """
    from ray._private import log as ray_log
    from ray._private import worker

    def emit(handler: logging.Handler, record: logging.LogRecord) -> None:
        heard.debug("%s: %s", record.name, COLOUR.sub("", record.getMessage()), exc_info=record.exc_info)

    def told(data: dict[str, Any], ignore_prefix: bool) -> None:
        if str(data.get("pid")).isdecimal():  # printed by a worker
            show(data, ignore_prefix)
        else:  # from the raylet or the autoscaler
            for line in data["lines"]:
                heard.debug("%s: %s", data.get("pid"), COLOUR.sub("", line.rstrip()))

    heard, show = log.getChild("ray"), worker.print_to_stdstream
    ray_log.PlainRayHandler.emit = emit  # type: ignore[method-assign,assignment] # by which all of Ray's libraries write to the terminal
    if not getattr(show, "quiet", False):
        told.quiet = True  # type: ignore[attr-defined]
        worker.print_to_stdstream = told


def require_resources(cpus: float, gpus: float, what: str) -> None:
    """Raise InputError if the whole cluster has less than `what` needs: Ray would wait for ever."""
    import ray

    has = ray.cluster_resources()
    for name, need in (("CPU", cpus), ("GPU", gpus)):
        if need > has.get(name, 0.0) + 1e-9:
            raise InputError(
                f"{what} needs {need:g} {name}s, but the cluster has {has.get(name, 0.0):g} in all: "
                "ask for fewer workers or less for each, or add nodes."
            )


def has_gpu() -> bool:
    """Whether the cluster has a GPU."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def user_error(error: BaseException | None) -> InputError | None:
    """The InputError that caused an exception of Ray Data, Train or Tune; None if there is none."""
    for current in behind(error):
        if isinstance(current, InputError) and getattr(current, "cause", None) is None:  # Ray's combined exceptions hold the original there
            return InputError(str(current).split("\nFailed to apply UDF transform")[0])
    return None
