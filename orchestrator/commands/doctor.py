"""`cleansweep doctor`: what this machine has, and which problems a run would have on it."""

import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import psutil

from datasets.errors import InputError
from orchestrator import ROOT
from orchestrator.cluster import network, start
from orchestrator.store import Store

PACKAGES = ("torch", "torchvision", "open_clip_torch", "ray", "mlflow", "pyarrow", "numpy", "nltk", "simplejpeg", "optuna")


class Doubt(Exception):
    """A warning: something works but should be changed, or fails only with several nodes."""


def doctor(root: str, tracking_uri: str) -> int:
    """Print one line for each check. The exit code is 0 if none failed; a warning is not a failure."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: _python()),
        ("packages", lambda: _packages()),
        ("datasets", lambda: _datasets()),
        ("cores", lambda: _cores()),
        ("memory", lambda: _memory()),
        ("gpu", lambda: _gpu()),
        ("store", lambda: _store(root)),
        ("shared memory", lambda: _shared_memory()),
        ("ray", lambda: _ray()),
        ("token", lambda: _token()),
        ("network", lambda: _network()),
        ("synonyms", lambda: _synonyms()),
        ("mlflow", lambda: _mlflow(root, tracking_uri)),
    ]
    failed = 0
    for name, check in checks:
        try:
            state, text = "ok", check()
        except Doubt as doubt:
            state, text = "WARN", str(doubt)
        except (InputError, RuntimeError, OSError, ImportError, metadata.PackageNotFoundError) as error:
            state, text = "FAIL", str(error)
            failed += 1
        print(f"{state:5} {name:14} {text}", flush=True)
    return 1 if failed else 0


def version_text() -> str:
    """One line: cleansweep and its commit, Python, and the packages that can change a number."""
    from orchestrator.manifest import commit

    def of(name: str) -> str:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            return f"{name} (not installed)"

    return ", ".join([f"{of('cleansweep')} (commit {commit() or 'unknown'})", f"python {_python()}", *map(of, PACKAGES)])


def _python() -> str:
    return sys.version.split()[0]


def _packages() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)


def _datasets() -> str:
    found = importlib.util.find_spec("datasets")
    where = Path(found.origin).parent if found and found.origin else None
    if where != ROOT / "datasets":
        raise InputError(f"`import datasets` finds {where}, not {ROOT / 'datasets'}: another is first on the path")
    try:
        other = metadata.version("datasets")
    except metadata.PackageNotFoundError:
        return str(where)
    raise InputError(f"Hugging Face's datasets {other} is installed beside ours and can win on a worker's path: uninstall it")


def _cores() -> str:
    threads = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    return f"{len(os.sched_getaffinity(0))} usable; {threads or 'thread pools are capped in workers'}"


def _memory() -> str:
    memory = psutil.virtual_memory()
    return f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none seen by torch; training runs on CPU"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{len(names)}: {', '.join(sorted(set(names)))}; bf16 {torch.cuda.is_bf16_supported()}"


def _store(root: str) -> str:
    store = Store(root)
    store.prepare()
    free = shutil.disk_usage(store.root).free / 2**30
    if free < 2:
        raise InputError(f"{store.root}: {free:.1f} GiB free; checkpoints need more")
    return f"{store.root}, {free:.0f} GiB free"


def _shared_memory() -> str:
    free = shutil.disk_usage("/dev/shm").free / 2**30
    if free < 0.5:
        return f"{free:.1f} GiB in /dev/shm: Ray falls back to {tempfile.gettempdir()}, which is slower"
    return f"{free:.1f} GiB"


def _ray() -> str:
    address = start.named_address()
    if address and address != "auto" and not address.startswith("ray://"):
        start.check_address(address)
    if address and start.token_file().exists() and os.environ.get("RAY_AUTH_MODE") != "token":
        return f"RAY_ADDRESS={address}; {start.token_file()} exists, so a cluster started here asks for it: set RAY_AUTH_MODE=token"
    if address:
        return f"joins {address}"
    folder = start.short_folder()
    return "starts its own, on loopback (RAY_ADDRESS is not set)" + (f"; TMPDIR is too long for its sockets: in {folder}" if folder else "")


def _token() -> str:
    file = start.token_file()
    if not file.exists():
        return f"none yet; a Ray started here writes {file}"
    if file.stat().st_mode & 0o077:
        mode = f"{file.stat().st_mode & 0o777:o}"
        raise Doubt(f"{file} can be read by others (mode {mode}), who could run code in your Ray: chmod 600 {file}")
    return f"{file}, for you alone"


def _network() -> str:
    own = network.outward_address()
    name, chosen = network.interface_of(own), os.environ.get(network.GLOO, "")
    if chosen:
        if chosen not in psutil.net_if_addrs():
            raise InputError(f"{network.GLOO}={chosen} is no interface of this machine: {', '.join(psutil.net_if_addrs())}")
        return f"{network.GLOO}={chosen}"
    if not network.name_is_loopback():
        return f"{socket.gethostname()} has an address of its own; {name or 'no interface'} {own}".rstrip()
    text = (
        f"the name {socket.gethostname()} means loopback here, so that gloo on several nodes would connect to itself: pre-training names "
        f"the interface itself; for other programs export {network.GLOO}={name or '<interface>'} {network.NCCL}={name or '<interface>'} "
        "on every node before `ray start`"
    )
    if start.named_address():
        raise Doubt(text)
    return text


def _synonyms() -> str:
    from datasets.captions import synonym_digest

    return f"WordNet table {synonym_digest()[:12]}"


def _mlflow(root: str, uri: str) -> str:
    from orchestrator.running.driver import tracking_uri
    from orchestrator.tracking.server import absolute_uri, redacted, why_unusable

    chosen = absolute_uri(tracking_uri(uri, Store(root)))
    why = why_unusable(chosen)
    if why:
        raise InputError(f"{redacted(chosen)} cannot be used: {why}")
    return redacted(chosen)
