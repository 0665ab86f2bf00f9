"""The picture of the live view, docs/console.svg: a sweep is run on a terminal that records, and one moment of it is drawn.

    python -m tests.console_picture sweeps.quickstart store/picture docs/console.svg

The store must not hold the sweep yet. Drawn is the first moment at which most was under way, with the last lines above it: what was
said and measured then, and nothing else.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from unittest.mock import patch

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from orchestrator import load_sweep
from orchestrator.console import live
from orchestrator.console.log import hearing
from orchestrator.running.driver import run_sweep
from orchestrator.sweep.plan import make_plan

WIDTH, ABOVE = 100, 12
"""Columns of the terminal, and lines above the view."""


class Recorder(live.View):
    """A view that keeps its moments: (lines above, what is under way)."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.lines: list[str] = []
        self.moments: list[tuple[list[str], dict[str, live.Progress]]] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def show(self, key: str, progress: live.Progress) -> None:
        super().show(key, progress)
        self.moments.append((list(self.lines), dict(self._shown)))


def picture(sweep: str, lines: list[str], shown: dict[str, live.Progress], width: int = WIDTH) -> str:
    """The moment as SVG, by rich's own export; its font is the reader's, so that nothing is fetched."""
    console = Console(record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor", width=width)
    for line in [f"$ cleansweep run {sweep}", *lines[-ABOVE:]]:
        console.print(Text(line), no_wrap=True, overflow="ellipsis")
    view = live.View(console)
    view._shown = shown
    console.print(view.table())
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")
    return console.export_svg(title="cleansweep", theme=DIMMED_MONOKAI, code_format=form, unique_id="cleansweep")


def busiest(moments: list[tuple[list[str], dict[str, live.Progress]]]) -> tuple[list[str], dict[str, live.Progress]]:
    """The moment with the most trainings under way that have measured something; of several the first after the most lines."""
    return max(moments, key=lambda moment: (sum(bool(one.asr and one.total) for one in moment[1].values()), "trials" in moment[1]))


def main(name: str, store: str, out: str) -> None:
    sweep = load_sweep(name)
    compute = sweep.compute.__class__(**{**vars(sweep.compute), "store": store})
    with patch.object(live, "View", Recorder), live.viewing(Console(file=io.StringIO(), force_terminal=True, width=WIDTH)) as view:
        assert isinstance(view, Recorder)
        with hearing(view.say, wanted=lambda record: not hasattr(record, "progress")):
            run_sweep(make_plan(sweep), compute)
    Path(out).write_text(picture(name, *busiest(view.moments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
