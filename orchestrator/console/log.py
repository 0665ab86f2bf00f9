"""The logger of the product, who hears it, and the log of a run.

All that is said goes through `log`. A terminal, or the `say` of `orchestrator.run`, hears it by `hearing`. A run keeps its log in a
folder of the store, `logs/<name>-<time>-<pid>/`, where every process appends to a file of its own: the store may lie on a network file
system, where processes of several machines that append to one file overwrite each other's lines.
"""

import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("cleansweep")
NOTE, WAITING = 25, 32
"""Levels beside those of `logging`: something that a user may want to know; a run waits for something that is missing."""
WORDS = {NOTE: "NOTE", logging.WARNING: "WARNING", WAITING: "WAITING", logging.ERROR: "FAILED"}
"""The first word of a line of these levels."""
LEVELS = ("debug", "info", "warning", "error")
"""Values of `--log-level`."""
LOGS = "logs"
"""Folder of a store that holds the logs of its runs."""
KEPT_LOGS = 50
"""A store keeps the logs of this many runs: those that were written to last."""
DRIVER = "driver.log"
"""The file of the process that runs the sweep; those of its workers are named by machine and process."""

log.setLevel(logging.DEBUG)  # every listener has a level of its own
log.propagate = False
log.addHandler(logging.NullHandler())  # else `logging` prints warnings that no listener takes
for _level, _word in WORDS.items():
    if _level not in (logging.WARNING, logging.ERROR):
        logging.addLevelName(_level, _word)

_RUN = re.compile(r".+-\d{8}-\d{6}-\d+")
_stage, _rank = "", ""
"""The stage that this process makes, and its rank among the stage's processes. A process makes one stage at a time."""
_file: logging.FileHandler | None = None


def say(line: str) -> None:
    """Log a line of `datasets` or `trainers` at the level that its first word names, or else at INFO."""
    for level, word in WORDS.items():
        if line.startswith(f"{word} "):
            log.log(level, "%s", line.removeprefix(f"{word} "))
            return
    log.info("%s", line)


def note(text: str) -> None:
    """Log what a user may want to know."""
    log.log(NOTE, "%s", text)


def printable(text: str) -> str:
    """The text with control characters, which a file's name may hold, spelt out; line ends before indented lines stay."""
    lines = text.split("\n    ")
    return "\n    ".join("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line) for line in lines)


# ---- who hears it -----------------------------------------------------------------------------------------------------------


class _Hearer(logging.Handler):
    def __init__(self, hear: Callable[[str], None], level: int) -> None:
        super().__init__(level)
        self.hear = hear

    def format(self, record: logging.LogRecord) -> str:
        word = WORDS.get(record.levelno, "")
        return printable(f"{word} {record.getMessage()}" if word else record.getMessage())

    def emit(self, record: logging.LogRecord) -> None:
        self.hear(self.format(record))


@contextmanager
def hearing(
    hear: Callable[[str], None], level: int = logging.INFO, wanted: Callable[[logging.LogRecord], bool] | None = None
) -> Iterator[None]:
    """Within the block, `hear` gets each line of this level and above, as a terminal shows it, except those that `wanted` refuses."""
    handler = _Hearer(hear, level)
    if wanted is not None:
        handler.addFilter(wanted)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


# ---- the log of a run -------------------------------------------------------------------------------------------------------


class _File(logging.FileHandler):
    """Appends records to a file. A full disk or a missing folder does not stop the run."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        return

    def format(self, record: logging.LogRecord) -> str:
        record.stage = getattr(record, "stage", _stage) or "-"
        record.rank = f"rank {_rank}" if _rank else "driver"
        first, *others = super().format(record).splitlines()
        return "\n".join([first, *(f"{record.asctime}    {line}" for line in others)])  # each has its time, so that files can be merged


@contextmanager
def recording(root: Path, name: str) -> Iterator[None]:
    """Within the block, keep the log of a run in the store at `root`: every record, whatever a terminal shows, and Python's warnings.

    A block within another block writes into the log of the outer one.
    """
    from orchestrator.store import slug

    if folder():
        yield
        return
    began = time.strftime("%Y%m%d-%H%M%S")
    own = root / LOGS / f"{slug(name)}-{began}-{os.getpid()}"
    with suppress(OSError):
        own.mkdir(parents=True, exist_ok=True)
        _remove_old(root / LOGS, own)
    _write_to(own / DRIVER)
    logging.captureWarnings(True)
    try:
        yield
    except BaseException as error:
        log.debug("ended by %s", type(error).__name__, exc_info=True)  # the terminal shows one sentence only
        raise
    finally:
        logging.captureWarnings(False)
        _write_to(None)


def _remove_old(logs: Path, own: Path) -> None:
    """Remove all logs but the newest, by the time of the last record: a run that takes weeks keeps its log. The log of this run stays, even
    if the clock was set back and all others are newer."""
    def written(run: Path) -> float:
        return max(path.stat().st_mtime for path in (run, *run.iterdir()))

    runs = [path for path in logs.iterdir() if _RUN.fullmatch(path.name) and path != own]
    for run in sorted(runs, key=written)[: max(0, len(runs) - KEPT_LOGS + 1)]:
        shutil.rmtree(run, ignore_errors=True)


def folder() -> str:
    """The folder of the log of the run that this process works for; empty if no log is kept."""
    return "" if _file is None else str(Path(_file.baseFilename).parent)


def stage() -> str:
    """The title of the stage that this process makes; empty for none."""
    return _stage


def join(to: str) -> None:
    """Let this worker process write into the log of the run that it works for: `to` is `folder()` of the process that started it."""
    global _rank
    if to != folder():
        _write_to(Path(to) / f"{socket.gethostname()}-{os.getpid()}.log" if to else None)
        _rank = "0"


def _write_to(path: Path | None) -> None:
    global _file, _rank, _stage
    warned = logging.getLogger("py.warnings")
    if _file is not None:
        for logger in (log, warned):
            logger.removeHandler(_file)
        _file.close()
    _file, _rank, _stage = None, "", ""
    if path is not None:
        _file = _File(path, encoding="utf-8", errors="backslashreplace", delay=True)
        _file.setFormatter(logging.Formatter("%(asctime)s  %(levelname)-7s  %(stage)s  %(rank)s  %(message)s"))
        for logger in (log, warned):
            logger.addHandler(_file)
    warned.propagate = path is None


@contextmanager
def making(stage: str, rank: int | None = None) -> Iterator[None]:
    """Within the block, the records of this process belong to that stage and, if it is given, that rank."""
    global _stage, _rank
    before = _stage, _rank
    _stage, _rank = stage, _rank if rank is None else str(rank)
    try:
        yield
    finally:
        _stage, _rank = before
