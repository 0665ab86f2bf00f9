"""Result files that look like real ones, made of numbers; for the tests of boards and their pages."""

from typing import Any

from datasets.seeding import rng
from orchestrator.results.cells import Cell

SEEDS = [0, 1, 2]


def quantity(mean: float, half: float = 2.0, seeds: int = 3) -> dict[str, Any]:
    values = [min(max(mean + step * half / 2, 0.0), 100.0) for step in (-1, 0, 1)][:seeds]
    return {"mean": mean, "low": max(mean - half, 0.0), "high": min(mean + half, 100.0), "values": values}


def choice(accuracy: float | None, asr: float | None, start: tuple[float, float] = (60.0, 98.0)) -> dict[str, Any]:
    known = accuracy is not None and asr is not None
    return {
        "rule": "asr_at_10pct_loss",
        "accuracy": quantity(accuracy) if known and accuracy is not None else None,
        "asr": quantity(asr) if known and asr is not None else None,
        "start_accuracy": quantity(start[0]),
        "start_asr": quantity(start[1]),
        "clean_accuracy": quantity(58.0),
        "clean_asr": quantity(1.0),
        "settings": ["lr 0.001, epoch 2"] * 3 if known else [None] * 3,
    }


def cell(attack: str, defence: str, **changed: Any) -> Cell:
    """A measured cell: `oracle` and `blind` are (accuracy, ASR), or None for a rule without a model; `took` is the gate's verdict."""
    oracle, blind, took = changed.pop("oracle", (57.0, 10.0)), changed.pop("blind", (59.0, 60.0)), changed.pop("took", True)
    clean, trials = changed.pop("clean", False), changed.pop("trials", 3)
    made = {
        "schema": "cleansweep-cell",
        "version": 1,
        "matrix": "fake",
        "attack": {"name": attack, "trigger": "" if clean else "Patch", "target": "banana", "count": 20, "rate": None,
                   "mode": "dirty_label", "config": {}},
        "defence": {"name": defence, "class": defence, "config": {}, "trials": trials},
        "model": "RN50",
        "data": "CC3M",
        "seeds": SEEDS,
        "pictures": {"accuracy": 1000, "asr": 900},
        "gate": None if clean else {"threshold": 90.0, "asr": [98.0 if took else 40.0] * 3, "took": [took] * 3},
        "measured": {"oracle": choice(*(oracle or (None, None))), "blind": choice(*(blind or (None, None))) | {"rule": "blind"}},
        "cost": {"seconds": 300.0, "search_seconds": 900.0, "pretraining_seconds": 7200.0, "hardware": "8 × 1 GPU"},
        "reported": [],
        "commit": "0123abc",
        "date": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    return made | changed


def reported(attack: str, defence: str, accuracy: float | None, asr: float | None, source: str) -> Cell:
    """A cell that holds figures of a paper alone."""
    told = [{"accuracy": accuracy, "asr": asr, "source": source, "note": ""}]
    nothing = {"gate": None, "measured": None, "cost": None, "seeds": [], "matrix": "", "commit": "", "date": ""}
    return cell(attack, defence) | nothing | {"reported": told, "pictures": {"accuracy": None, "asr": None}}


def many(attacks: list[str], defences: list[str]) -> list[Cell]:
    """A whole matrix: undefended first, the clean model last; an attack that did not take, a rule without a model, a hole, a figure of a
    paper."""
    found = []
    for attack in attacks:
        for number, defence in enumerate(["none", *defences]):
            draw, start = rng("fake cells", attack, defence), (60.0, 97.0)
            asr, lost = float(draw.uniform(0, 95)), float(draw.uniform(0, 6))
            options: dict[str, Any] = {"oracle": (60 - lost, asr), "blind": (60 - lost / 3, min(asr * 1.4, 99))}
            if number == 0:
                options = {"oracle": start, "blind": start, "trials": 0}
            if attack == attacks[1]:
                options |= {"took": False} | ({"measured": None, "cost": None} if number else {})
            elif attack == attacks[2] and number == 2:
                options["oracle"] = None
            elif attack == attacks[3] and number == 3:
                continue
            elif attack == attacks[3] and number == 4:
                found.append(reported(attack, defence, 41.0, 8.66, "A Paper (2025), table 3"))
                continue
            found.append(cell(attack, defence, **options))
    found += [cell("clean model", defence, clean=True, oracle=(60.0 - 2 * i, 1.0), blind=(60.0, 1.2), trials=0 if i == 0 else 3)
              for i, defence in enumerate(["none", *defences])]  # fmt: skip
    return found
