"""What a terminal shows: each line that is said and, below them, one line for all that is under way.

Where the output is no terminal (a pipe, a file, a submitted job, TERM=dumb), or the user wants warnings alone, there is no view: progress
is then said in lines, now and then.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.console.log import hearing, printable

if TYPE_CHECKING:
    from rich.console import Console, OverflowMethod
    from rich.live import Live
    from rich.table import Table

WIDE, NARROW = 72, 50
"""Columns of a terminal with room for everything, and of one with room for title, percentage and time left only."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of one thing."""

    title: str
    done: float = 0
    total: float = 0
    """0 while it is unknown."""
    unit: str = ""
    """Unit of `done` and `total`, e.g. steps."""
    rate: str = ""
    left: str = ""
    """The estimated time left, as text."""
    accuracy: str = ""
    asr: str = ""
    more: str = ""
    """Further text, e.g. what a stage does while nothing can be counted."""
    whole: bool = False
    """Whether it is the progress of the whole run, which is drawn below the others."""

    def __str__(self) -> str:
        """`clean CleanCLIP (012345)  620/1240 steps  1890 samples/s  ETA 0:00:21  accuracy 83.1 %  ASR 97.0 %`"""
        parts = [self.title]
        if self.total:
            parts += [f"{self.done}/{self.total} {self.unit}", self.rate, f"ETA {self.left}"]
        parts += [self.more, f"accuracy {self.accuracy}" if self.accuracy else "", f"ASR {self.asr}" if self.asr else ""]
        return "  ".join(part for part in parts if part)


class View:
    """The lines of progress: redrawn a few times a second, and removed when nothing is under way."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._shown: dict[str, Progress] = {}
        self._live: Live | None = None
        self._lock = threading.Lock()

    def show(self, key: str, progress: Progress) -> None:
        """Draw the progress of `key` in place of its earlier progress."""
        from rich.live import Live

        with self._lock:
            self._shown = {**self._shown, key: progress}  # a new one, for the thread that draws goes through the old one
            if self._live is None:
                aside = self.console.stderr  # then what is printed is the result
                self._live = Live(
                    console=self.console, transient=True, redirect_stdout=not aside, redirect_stderr=False, get_renderable=self.table
                )
                self._live.start(refresh=True)

    def drop(self, key: str | None = None) -> None:
        """Stop drawing the progress of `key`; None: of all."""
        with self._lock:
            self._shown = {} if key is None else {other: one for other, one in self._shown.items() if other != key}
            if not self._shown and self._live is not None:
                self._live.stop()
                self._live = None

    def say(self, line: str) -> None:
        """Print a line above the lines of progress."""
        from rich.text import Text

        self.console.print(Text(line), soft_wrap=True)

    def table(self) -> Table:
        """One line for each progress; parts for which there is no room are left out."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        width = self.console.width
        trained = any(one.accuracy or one.asr for one in self._shown.values())
        headed = trained and width >= NARROW
        made = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, show_header=headed, header_style="dim")
        cut: OverflowMethod = "ellipsis" if self.console.encoding.startswith("utf") else "crop"
        made.add_column("", ratio=3, no_wrap=True, overflow=cut)
        made.add_column("", ratio=1 if width >= WIDE else None, no_wrap=True)
        if width >= WIDE:
            made.add_column("rate", no_wrap=True, justify="right")
        made.add_column("ETA", no_wrap=True, justify="right")
        if headed:
            made.add_column("accuracy", no_wrap=True, justify="right")
            made.add_column("ASR", no_wrap=True, justify="right")
        for one in sorted(self._shown.values(), key=lambda one: one.whole):
            share = f"{100 * one.done / one.total:.0f} %" if one.total else ""
            bar = ProgressBar(total=one.total, completed=one.done) if one.total and width >= WIDE else Text(share)
            title, rate = (f"{one.title}  {one.more}", one.rate) if one.rate and one.more else (one.title, one.rate or one.more)
            words = [*([rate] if width >= WIDE else []), one.left, one.accuracy, one.asr]
            cells = [Text(printable(title)), bar, *map(Text, words)]
            made.add_row(*cells[: len(made.columns)])
        return made


_view: View | None = None


def show(key: str, progress: Progress) -> None:
    """Draw the progress if there is a view."""
    if _view is not None:
        _view.show(key, progress)


def drop(key: str | None = None) -> None:
    """Stop drawing the progress of `key` if there is a view; None: of all."""
    if _view is not None:
        _view.drop(key)


@contextmanager
def viewing(console: Console) -> Iterator[View]:
    """Within the block, progress is drawn on the console, and other lines of the log are printed above it."""
    global _view
    before, _view = _view, View(console)
    try:
        yield _view
    finally:
        _view.drop()
        _view = before


@contextmanager
def terminal(name: str, level: str = "info") -> Iterator[None]:
    """Within the block, log lines of this level and above go to a stream of this process, `stdout` or `stderr`."""
    number, stream = logging.getLevelName(level.upper()), getattr(sys, name)
    if number <= logging.INFO and stream is not None and stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown"):
        from rich.console import Console

        console = Console(stderr=name == "stderr", force_terminal=True, force_interactive=True)
        with viewing(console) as view, hearing(_trying(view.say), number, lambda record: not hasattr(record, "progress")):
            yield
        return
    # the stream is looked up for each line: where Ray's servers died, another takes its place
    with hearing(_trying(lambda line: print(line, file=getattr(sys, name), flush=True)), number):
        yield


def _trying(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say` that ignores a closed stream: the run goes on, because its results are in the store."""

    def tried(line: str) -> None:
        with suppress(OSError, ValueError):
            say(line)

    return tried
