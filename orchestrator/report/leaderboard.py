"""A folder of result files as a page, as Markdown or as LaTeX."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets.storage import write_whole
from orchestrator.report.drawing import pdf, png
from orchestrator.report.heatmap import WHAT, heat_map
from orchestrator.report.inline import svg
from orchestrator.report.paper import LATEX
from orchestrator.report.rendering import render
from orchestrator.results.board import KINDS, NO_MODEL, NOT_TAKEN, REPORTED, Board, Ranked, boards, ranking, unequal_trials
from orchestrator.results.cells import Cell, read_cells
from orchestrator.results.names import duration
from trainers.evaluate.choice import RULE

NAMES = {"oracle": "chosen with the ASR at hand (oracle)", "blind": "chosen by accuracy alone (blind)"}
FORMATS = ("html", "md", "latex")
Table = tuple[Sequence[str], list[list[str]]]
NOTE = (
    "Accuracy and ASR in percent, mean over seeds with Student's 95 % interval; for one seed Wilson's over the test pictures. Rank: mean "
    "over attacks of the rank by rating ½(1 + ASR removed − share of the accuracy lost), ties share their mean; brackets are 95 % "
    "bootstrap intervals over attacks and seeds."
)


def write_board(folder: Path, out: Path, title: str = "Leaderboard", doc: str = "", kinds: Sequence[str] = KINDS) -> Path:
    """Write the page index.html into folder `out`, with each heat map as PNG and PDF beside it; returns the page's path. InputError as
    `read_cells`."""
    cells = read_cells(folder)
    out.mkdir(parents=True, exist_ok=True)
    shown = []
    for number, board in enumerate(boards(cells), 1):
        maps = {(kind, what): heat_map(board, kind, what) for kind in kinds for what in WHAT if what != "cost" or kind == kinds[0]}
        for (kind, what), figure in maps.items():
            name = f"{number}-{what}" + ("" if what == "cost" else f"-{kind}")
            for ending, content in (("png", png(figure)), ("pdf", pdf(figure))):
                write_whole(out / f"{name}.{ending}", content)
        mine = [cell for cell in cells if (cell["model"], cell["data"]) == (board.model, board.data)]
        shown.append(_values(board, number, kinds, maps, mine))
    write_whole(out / "index.html", render("leaderboard", title=title, doc=doc, boards=shown, note=NOTE).encode())
    return out / "index.html"


def _values(board: Board, number: int, kinds: Sequence[str], maps: dict[tuple[str, str], Any], cells: Sequence[Cell]) -> dict[str, Any]:
    def drawn(kind: str, what: str) -> dict[str, Any]:
        alt = f"{WHAT[what]}, attacks by defences" + ("" if what == "cost" else f", {NAMES[kind]}")
        return {"title": WHAT[what], "svg": svg(maps[kind, what], f"map-{number}-{what}-{kind}", alt), "wide": len(board.defences)}

    parts = [
        {"name": NAMES[kind], "rules": _rules(board, kind), "ranks": rank_table(board, kind), "maps": [drawn(kind, what) for what in
         ("asr", "accuracy")], "table": full_table(board, kind)} for kind in kinds
    ]  # fmt: skip
    sources = {f"{cell['matrix']}, {cell['date'][:10]}, commit {cell['commit'] or 'not known'}" for cell in cells if cell["matrix"]}
    hardware = sorted({cell["cost"]["hardware"] for cell in cells if cell["cost"] and cell["cost"]["hardware"]})
    return {
        "model": board.model, "data": board.data, "kinds": parts, "cost": drawn(kinds[0], "cost"), "hardware": hardware,
        "costs": cost_table(board), "unequal": unequal_trials(board.trials()), "gates": _gates(board), "reported": reported_table(board),
        "missing": [f"{defence} against {attack}" for attack, defence in board.missing()],
        "sources": sorted(sources),
    }  # fmt: skip


def _rules(board: Board, kind: str) -> str:
    keys = {choice["rule"]: None for a in board.attacks for d in board.defences if (choice := board.choice(a, d, kind))}
    return "; ".join(RULE[key].text if key in RULE else key for key in keys)


def _gates(board: Board) -> list[str]:
    """A sentence for each attack that did not take on some undefended model."""
    sentences = {}
    for (attack, _), cell in board.cells.items():
        gate = cell["gate"]
        if gate and not all(one is None or one for one in gate["took"]) and attack not in sentences:
            failed = [(seed, asr) for seed, asr, ok in zip(cell["seeds"], gate["asr"], gate["took"]) if ok is False]
            seeds = ", ".join(f"seed {seed}: ASR {'not known' if asr is None else f'{asr:.1f} %'}" for seed, asr in failed)
            wanted = f"at least {gate['threshold']:g} %, twice the floor, and an accuracy above chance"
            sentences[attack] = f"{attack}: the attack did not take ({seeds}; the gate wants {wanted})."
    return list(sentences.values())


def _number(quantity: dict[str, Any] | None) -> str:
    """`12.3 [8.0, 16.1]`"""
    if not quantity:
        return "–"
    low, high = quantity["low"], quantity["high"]
    return f"{quantity['mean']:.1f}" + (f" [{low:.1f}, {high:.1f}]".replace("-", "−") if low is not None and high is not None else "")


def rank_table(board: Board, kind: str) -> Table:
    """Defences by mean rank; those with missing cells come last."""
    clean = next((attack for attack in board.attacks if attack in board.clean), "")
    heads = ("defence", "mean rank [95 %]", "rating", "attacks", "trials", *(["accuracy on the clean model"] if clean else []))
    trials = board.trials()

    def line(one: Ranked) -> list[str]:
        bounds = "" if math.isnan(one.low) else f" [{one.low:.1f}, {one.high:.1f}]"
        choice = board.choice(clean, one.defence, kind) if clean else None
        texts = [one.defence, f"{one.rank:.2f}{bounds}", f"{one.rating:.3f}", f"{one.attacks} of {one.of}"]
        return [*texts, str(trials.get(one.defence, "–")), *([_number(choice["accuracy"] if choice else None)] if clean else [])]

    return heads, [line(one) for one in ranking(board, kind)]


def grid_table(board: Board, kind: str, what: str) -> Table:
    """One number for all attacks × defences."""
    lines = [[attack, *(_told(board, attack, defence, kind, what) for defence in board.defences)] for attack in board.attacks]
    return ("attack", *board.defences), lines


def _told(board: Board, attack: str, defence: str, kind: str, what: str) -> str:
    state, choice = board.state(attack, defence, kind), board.choice(attack, defence, kind)
    if state == REPORTED:
        figures = [f"{one[what]:.1f} (reported)" for one in board.reported[attack, defence] if one[what] is not None]
        return figures[0] if figures else "–"
    if choice is None or state == NO_MODEL:
        return {NOT_TAKEN: "did not take", NO_MODEL: "no model"}.get(state, "–")
    return _number(choice[what]) + ("" if board.took(attack, defence) else " (did not take)")


def full_table(board: Board, kind: str) -> Table:
    """A line for each measured cell, with everything that is known of it."""
    heads = ("attack", "defence", "accuracy", "ASR", "accuracy before", "ASR before", "clean: accuracy", "clean: ASR", "chosen, by seed")
    keys = ("accuracy", "asr", "start_accuracy", "start_asr", "clean_accuracy", "clean_asr")
    measured = [(a, d, choice) for a in board.attacks for d in board.defences if (choice := board.choice(a, d, kind))]
    lines = []
    for attack, defence, choice in measured:
        settings = "; ".join(one or "none" for one in choice["settings"])
        lines.append([attack, defence, *(_number(choice[key]) for key in keys), settings])
    return heads, lines


def cost_table(board: Board) -> Table:
    """What each defence costs beyond the undefended training: means over the attacks."""
    lines = []
    for defence in board.defences:
        costs = [cell["cost"] for (_, name), cell in board.cells.items() if name == defence and cell["cost"]]
        means = []
        for key in ("seconds", "search_seconds", "pretraining_seconds"):
            values = [cost[key] for cost in costs if cost[key] is not None]
            means.append(duration(sum(values) / len(values)) if values else "–")
        lines.append([defence, str(board.trials().get(defence, "–")), *means])
    return ("defence", "trials", "one setting", "all settings", "undefended training"), lines


def reported_table(board: Board) -> Table:
    """Figures from papers, which we did not measure."""
    lines = [
        [attack, defence, *("–" if one[key] is None else f"{one[key]:.1f}" for key in ("accuracy", "asr")), one["source"], one["note"]]
        for (attack, defence), figures in board.reported.items() for one in figures
    ]  # fmt: skip
    return ("attack", "defence", "accuracy", "ASR", "source", "note"), lines


def as_text(folder: Path, form: str, kinds: Sequence[str] = KINDS) -> str:
    """The leaderboard as `form`: md | latex. First the ranking, then one table each for ASR and accuracy. InputError as `read_cells`."""
    write = {"md": _markdown, "latex": _latex}[form]
    return "\n".join([*(write(title, table) for title, table in _tables(folder, kinds)), {"md": NOTE, "latex": f"% {NOTE}"}[form], ""])


def _tables(folder: Path, kinds: Sequence[str]) -> Iterator[tuple[str, Table]]:
    for board in boards(read_cells(folder)):
        where = f"{board.model} on {board.data}"
        for kind in kinds:
            if any(board.choice(a, d, kind) for a in board.attacks for d in board.defences):
                yield f"{where}: ranking, {NAMES[kind]}", rank_table(board, kind)
            for what in ("asr", "accuracy"):
                yield f"{where}: {WHAT[what].partition(' (')[0]}, {NAMES[kind]}", grid_table(board, kind, what)
        yield f"{where}: cost", cost_table(board)
        if board.reported:
            yield f"{where}: reported by papers", reported_table(board)


def _markdown(title: str, table: Table) -> str:
    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_escaped(cell, MARKDOWN) for cell in cells) + " |"

    heads, lines = table
    return "\n".join([f"**{_escaped(title, MARKDOWN)}**", "", row(heads), "|---" * len(heads) + "|", *map(row, lines), ""])


MARKDOWN = {"\\": "\\\\", "|": "\\|", "*": "\\*", "_": "\\_", "<": "&lt;", "`": "\\`", "\n": " "}


def _escaped(text: str, known: dict[str, str]) -> str:
    return "".join(known.get(letter, letter) for letter in text)


def _latex(title: str, table: Table) -> str:
    def text(cell: str) -> str:
        return _escaped(cell, LETTERS)

    heads, lines = table
    rows = [" & ".join(map(text, line)) + r" \\" for line in lines]
    out = [f"% {' '.join(title.split())}", rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule"]
    return "\n".join([*out, " & ".join(map(text, heads)) + r" \\", r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""])


LETTERS = LATEX | {"½": r"$\frac12$", "×": r"$\times$", "\n": " "}
