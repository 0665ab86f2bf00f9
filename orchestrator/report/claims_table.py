"""The claims for a reader: as HTML, as text for a terminal, and as the files of `cleansweep claims`."""

import json
import math
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path

from datasets.storage import write_whole
from orchestrator.report.style import document
from orchestrator.study.claims import Claim, Verdict, as_json, judged
from orchestrator.study.names import number_of
from orchestrator.study.outcome import Study

WIDTH = 100


def claims_html(found: Sequence[Verdict]) -> str:
    """One block a claim, one line a pre-training and cleaning set that could judge it."""
    head = "".join(f"<th>{text}</th>" for text in ("verdict", "on", "estimate [95 % over seeds]", "seeds", "images", "why"))
    lines = []
    for claim in dict.fromkeys(verdict.claim for verdict in found):
        mine = [verdict for verdict in found if verdict.claim == claim]
        others = f" <small>published: {escape(mine[0].published)}</small>" if mine[0].published else ""
        criterion = f'<p class="soft">{escape(mine[0].criterion)}</p>' if mine[0].criterion else ""
        lines.append(f'<tr class="rule"><th colspan="6">({escape(claim)}) {escape(mine[0].text)}{others}{criterion}</th></tr>')
        lines += map(_line, mine)
    return (
        f'<div class="wide"><table class="claims"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        '<p class="soft"><i>Not shown</i> is not the contrary shown.</p>'
    )


def _line(verdict: Verdict) -> str:
    cls = {"shown": "yes", "not shown": "no"}.get(verdict.verdict, "none")
    seen = f'<br><span class="soft">{escape(verdict.seen)}</span>' if verdict.seen else ""
    measure = f"<br><small>{escape(verdict.measure)}</small>" if verdict.estimate is not None else ""
    cells = (
        f'<b class="{cls}">{escape(verdict.verdict)}</b>',
        escape(verdict.where),
        f"<b>{escape(estimate(verdict))}</b>{measure}",
        str(verdict.seeds or "–"),
        str(verdict.images or "–"),
        escape(verdict.reason) + seen,
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def estimate(verdict: Verdict) -> str:
    """`−0.6 [−1.2, +0.1]`, or an en dash."""
    if verdict.estimate is None:
        return "–"
    bounds = (verdict.low, verdict.high)
    known = all(bound is not None and math.isfinite(bound) for bound in bounds)
    return _number(verdict.estimate) + (f" [{', '.join(_number(bound or 0.0) for bound in bounds)}]" if known else "")


def _number(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")


def claims_text(found: Sequence[Verdict]) -> str:
    """The table for a terminal, at most 100 columns wide."""
    out = []
    for verdict in found:
        out += textwrap.wrap(f"({verdict.claim}) {verdict.text}: {verdict.verdict.upper()}", WIDTH, subsequent_indent="    ")
        facts = [verdict.where] if verdict.where else []
        if verdict.seeds:
            facts.append(number_of(verdict.seeds, "seed") + (f", {verdict.images} images" if verdict.images else ""))
        if verdict.estimate is not None:
            facts.append(f"{verdict.measure}: {estimate(verdict)}")
        for line in ("; ".join(facts), verdict.reason, verdict.seen):
            out += textwrap.wrap(line, WIDTH, initial_indent="    ", subsequent_indent="    ") if line else []
    return "\n".join(out)


def write_claims(claims: Sequence[Claim], studies: Sequence[Study], folder: Path) -> tuple[list[Verdict], Path]:
    """Write claims.html and claims.json into the folder, each aside and renamed; returns the verdicts and the page."""
    found = judged(claims, studies)
    names = ", ".join(study.name for study in studies)
    body = f"<header><h1>The claims of the study</h1><p>From {escape(names)}.</p></header><section>{claims_html(found)}</section>"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"sweeps": [{"name": s.name, "fingerprint": s.fingerprint} for s in studies], "claims": as_json(found)}
    for name, text in (
        ("claims.json", json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n"),
        ("claims.html", document(f"Claims: {names}", body)),
    ):
        write_whole(folder / name, text.encode())
    return found, folder / "claims.html"
