"""The verdicts on claims for a reader: values for a page, text for a terminal, and the files of `cleansweep claims`."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets.storage import write_whole
from orchestrator.report.rendering import render
from orchestrator.results.claims import Claim, Verdict, as_json, judged
from orchestrator.results.names import number_of
from orchestrator.results.outcome import Study

WIDTH = 100


def by_claim(found: Sequence[Verdict]) -> list[list[dict[str, Any]]]:
    """Values of the template `claims_table`: the verdicts of each claim, with the estimate as text."""
    names = dict.fromkeys(verdict.claim for verdict in found)
    return [[asdict(verdict) | {"told": estimate(verdict)} for verdict in found if verdict.claim == name] for name in names]


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
    """Write claims.html and claims.json into the folder, each under another name first; returns the verdicts and the page's path."""
    verdicts = judged(claims, studies)
    names = ", ".join(study.name for study in studies)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"sweeps": [{"name": s.name, "fingerprint": s.fingerprint} for s in studies], "claims": as_json(verdicts)}
    for name, text in (
        ("claims.json", json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n"),
        ("claims.html", render("claims", title=f"Claims: {names}", names=names, claims=by_claim(verdicts))),
    ):
        write_whole(folder / name, text.encode())
    return verdicts, folder / "claims.html"
