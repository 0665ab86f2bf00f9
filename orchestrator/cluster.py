"""Ray itself: starting or joining it, asking what it has, and keeping its chatter from the user.

Importing this module does not import Ray.
"""

import importlib.util
import logging
import os
import signal
import threading
from typing import Any

from datasets.errors import InputError
from orchestrator import ROOT
from orchestrator.failures import behind

ARENAS = "MALLOC_ARENA_MAX"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning in every worker without a GPU
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "300",  # a feed without CPUs says so in 5 minutes
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report is a barrier that is drained at this interval
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ctrl-C ends the command; Tune's handler would return as if all were done
    ARENAS: "2",  # a trial trains in a thread of its own; what each leaves in another arena adds up to 100 MB a trial
}
"""For the driver and the workers of a local Ray; what the user has set stands.

OMP_NUM_THREADS is not among them: Ray gives each worker as many threads as it reserved CPUs, at least one.
"""

NOISY = ("ray.data", "ray.train", "ray.tune")
OBJECT_STORE_BYTES = 1_000_000_000
"""Of a local Ray: streams of blocks of 16 MiB need no more."""


def set_environment() -> None:
    """Ray's settings for this process and all it starts; before `import ray`, which reads some of them once.

    RAY_AUTH_MODE is left to Ray: it turns tokens on for a local cluster by itself, whenever it was imported,
    and set by hand after the import it would be heard by the servers alone.
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

    Does nothing where Ray runs already. `dashboard=False` is for unit tests alone: without the dashboard
    there is no State API and Train cannot free its placement groups. `worker_output` prints what workers
    print; their logs lie in Ray's session folder either way. InputError where Ray does not start or answer.
    """
    address = os.environ.get("RAY_ADDRESS")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    options: dict[str, Any] = {"log_to_driver": worker_output, "logging_level": logging.ERROR}
    if not address:
        os.environ["PYTHONPATH"] = path  # workers inherit it
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

    if ray.is_initialized():
        return
    quiet()
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError) as error:
        what = f"the cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        raise InputError(f"{what} does not answer: {str(error).strip().splitlines()[0]}") from error
    interruptible()


def interruptible() -> None:
    """Let ctrl-C and SIGTERM raise KeyboardInterrupt: Ray and Ray Train leave handlers behind that abort, or swallow them."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)


def shutdown() -> None:
    """Stop a local Ray, or leave the cluster."""
    import ray

    ray.shutdown()


def quiet() -> None:
    """Silence Ray's libraries in this process, Train's workers too: what fails reaches the caller anyway."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    found = importlib.util.find_spec("ray")
    assert found is not None and found.submodule_search_locations
    folder = found.submodule_search_locations[0]  # "Reporting training result" has a logger named by its file
    logging.getLogger(f"{folder}/train/v2/_internal/execution/context.py").setLevel(logging.ERROR)


def require_resources(cpus: float, gpus: float, what: str) -> None:
    """InputError where the cluster has less in all than `what` needs: Ray would wait for it for ever."""
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
    """The InputError at the root of what Ray Data, Train or Tune raised, as it was; None without one."""
    for current in behind(error):
        if isinstance(current, InputError) and getattr(current, "cause", None) is None:  # Ray's own hybrids carry the original there
            return InputError(str(current).split("\nFailed to apply UDF transform")[0])
    return None
