"""What a terminal shows: lines above, one line for all that is under way; and lines alone where there is no terminal."""

import io
import re
import sys
from xml.etree import ElementTree

import pytest
from rich.console import Console

from orchestrator.console import live
from orchestrator.console.live import Progress, terminal, viewing
from orchestrator.console.log import log, note
from orchestrator.console.progress import meter, tell
from tests.console_picture import picture
from tests.experiments import ROOT

TRAINING = Progress(
    title="clean CleanCLIP, lr 0.001 on MMCL (012345)", done=620, total=1240, unit="steps", rate="1890 samples/s", left="0:00:21",
    accuracy="83.1 %", asr="97.0 %",
)  # fmt: skip
SHARDS = Progress(title="index", done=3, total=4, unit="shards", rate="0.5 shards/s", left="0:00:02")


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def frame(width: int, *shown: Progress) -> list[str]:
    """One drawing of the table, without the control codes of the view."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    view = live.View(console)
    view._shown = {one.title: one for one in shown}
    console.print(view.table())
    return file.getvalue().splitlines()


def test_a_line_holds_what_is_known():
    assert str(TRAINING) == (
        "clean CleanCLIP, lr 0.001 on MMCL (012345)  620/1240 steps  1890 samples/s  ETA 0:00:21  accuracy 83.1 %  ASR 97.0 %"
    )
    assert str(Progress(title="pretrain MMCL (012345)", more="starting workers")) == "pretrain MMCL (012345)  starting workers"
    assert str(SHARDS) == "index  3/4 shards  0.5 shards/s  ETA 0:00:02"


def test_the_view_of_80_columns_has_all_columns():
    head, clean, index = frame(80, TRAINING, SHARDS)
    assert head.split() == ["rate", "ETA", "accuracy", "ASR"]
    assert re.fullmatch(r"clean CleanCLIP\S*.*…\s+━+╸?━*\s+1890 samples/s\s+0:00:21\s+83.1 %\s+97.0 %", clean)
    assert re.fullmatch(r"index\s+━+╸?━*\s+0.5 shards/s\s+0:00:02\s*", index)
    assert len(clean) <= 80


@pytest.mark.parametrize("width", [10, 20, 30, 49, 50, 60, 71, 72, 79, 80, 120, 300])
def test_each_takes_one_line_of_any_terminal(width: int):
    lines = frame(width, TRAINING, SHARDS, Progress(title="pretrain MMCL (012345)", more="starting workers"))
    assert len(lines) == (4 if width >= live.NARROW else 3) and all(len(line) <= width for line in lines)
    if width >= 20:
        assert "0:00:21" in lines[-3]
    if live.NARROW <= width < live.WIDE:
        assert "50 %" in lines[-3] and "97.0 %" in lines[-3]


def test_a_title_is_shown_as_it_is():
    [line] = frame(80, Progress(title="clean [red]a[/red] :smile:\x1b[2J", done=1, total=2, unit="steps", left="0:00:01"))
    assert line.startswith("clean [red]a[/red] :smile:\\x1b[2J ")


def test_what_is_said_stands_above_and_nothing_stays_below():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    with viewing(console) as view:
        live.show("index", SHARDS)
        view.say("world made [bold]in[/bold] 1.0 s :smile:")
        live.drop("index")
        live.show("index", SHARDS)  # a second view: it must not reach into what stands above
        view.say("index made in 2.0 s")
    lines = screen(file.getvalue())
    assert lines == ["world made [bold]in[/bold] 1.0 s :smile:", "index made in 2.0 s"]
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 2, "the cursor is back"


def screen(text: str) -> list[str]:
    """What stands on a terminal at the end: line ends, carriage returns, one line up, erase the line."""
    rows, at = [""], 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", text):
        if token == "\n":
            at += 1
            rows += [""] * (at + 1 - len(rows))
        elif token == "\x1b[1A":
            at -= 1
        elif token == "\x1b[2K":
            rows[at] = ""
        elif token[0] not in "\x1b\r":
            rows[at] = token if rows[at] == "" else rows[at] + token
    return [row.rstrip() for row in rows if row.strip()]


def test_a_terminal_gets_the_view_and_no_lines_of_progress(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal("stdout"):
        live.show("x", TRAINING)
        tell(TRAINING)
        note("no room")
        live.drop()
    assert "\x1b[?25l" in stream.getvalue() and "━" in stream.getvalue()
    assert "620/1240 steps" not in stream.getvalue() and screen(stream.getvalue()) == ["NOTE no room"]


def test_no_color_draws_without_colour(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal("stdout"):
        live.show("x", TRAINING)
        live.drop()
    assert "━" in stream.getvalue() and not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9])[0-9;]*m", stream.getvalue())


@pytest.mark.parametrize(("term", "stream", "level"), [
    ("dumb", Terminal(), "info"), ("", Terminal(), "info"), ("xterm", io.StringIO(), "info"), ("xterm", Terminal(), "warning"),
])  # fmt: skip
def test_elsewhere_there_are_plain_lines(term: str, stream: io.StringIO, level: str, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as some CI sets it
    with terminal("stderr", level):
        live.show("x", TRAINING)
        tell(TRAINING)
        log.warning("the attack did not take")
        log.debug("of no interest")
    lines = [] if level == "warning" else [str(TRAINING)]
    assert stream.getvalue().splitlines() == [*lines, "WARNING the attack did not take"]


def test_a_terminal_of_ascii_alone_gets_a_bar_of_ascii():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    view = live.View(console)
    view._shown = {"x": TRAINING}
    console.print(view.table())
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "---" in text and "\\u2026" not in text and "\\u2501" not in text


def test_nobody_who_reads_any_more_stops_a_run(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    with terminal("stdout"):
        log.info("goes on")


def test_what_is_printed_beside_a_view_on_stderr_goes_to_stdout(monkeypatch):
    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    with terminal("stderr"):
        live.show("fetch", SHARDS)
        print("{}")
    assert out.getvalue() == "{}\n" and "index" in err.getvalue()


def test_a_meter_is_drawn_while_it_counts(monkeypatch, said):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with viewing(console) as view:
        progress = meter("fetch", "rows", every_s=0.0)
        progress(2, 4, "1/2 shards  success 2")
        console.print(view.table())
        assert re.search(r"fetch  1/2 shards  success 2 +━+", console.file.getvalue())  # type: ignore[attr-defined]
        assert view._shown["fetch"].done == 2 and said[-1].startswith("fetch  2/4 rows") and said[-1].endswith("1/2 shards  success 2")
        progress(4, 4)
        assert view._shown == {}


def test_the_picture_of_the_documents_shows_the_view_and_fetches_nothing():
    for text in (picture("x", ["world made in 1.0 s"], {"x": TRAINING}), (ROOT / "docs" / "console.svg").read_text()):
        words = " ".join(ElementTree.fromstring(text).itertext()).replace("\xa0", " ")
        assert "accuracy" in words and "samples/s" in words and "$ cleansweep run" in words
        assert not re.search(r"url\((?!#)|href|https?://(?!www.w3.org|www.textualize.io)", text)
