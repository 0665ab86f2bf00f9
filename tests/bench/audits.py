"""Audits of a checkpoint by two processes against one after another: does the second core halve the time?

Both sides make the same kind and number of audits, PGD at as many ε, through the stage that stores them; each audit runs in a process of
its own with one core, on a Ray with two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from orchestrator.running.audits import make_audits
from orchestrator.stages.audited import audited
from orchestrator.stages.base import At, ensure
from orchestrator.stages.graph import make_data, trained_by
from orchestrator.store import Store
from tests.bench.measure import Meter, Row, alternate, ray_session, scratch
from tests.bench.trials import BASE, COMPUTE
from trainers.audit.attacks.pgd import PGD
from trainers.audit.robustness import Robustness

SIZES = {"full": (8, 200), "quick": (2, 20)}
"""Audits, steps of PGD."""


def run(size: str, rounds: int) -> list[Row]:
    count, steps = SIZES[size]
    with scratch() as folder, ray_session():
        store = Store(folder / "store")
        store.prepare()
        at = At(store=store, compute=COMPUTE)
        make_data(BASE, at)
        model = trained_by(BASE)
        ensure(model, at)
        seeds = itertools.count()  # each audit has a seed of its own, so that none is found in the store

        def some() -> list[Any]:
            attacks = [PGD(eps=4 / 255, steps=steps, stop=False, seed=next(seeds)) for _ in range(count)]
            return [("model", audited(model, 1, Robustness(attack=attack), 40)) for attack in attacks]

        def timed(make: Callable[[list[Any]], None]) -> dict[str, float]:
            wanted = some()
            with Meter(interval=1.0) as used:  # every 0.2 s the looks cost 1 to 2 % of both cores, but nothing where one is idle
                make(wanted)
            return {"wall": used.wall / count, "cpu": used.cpu / count}

        def together(wanted: list[Any]) -> None:
            assert all(one.folder is not None for one in make_audits(wanted, at))

        def in_turn(wanted: list[Any]) -> None:
            for one in wanted:
                together([one])

        timed(together), timed(in_turn)  # the first ones import in the processes
        two, one = alternate(lambda: timed(together), lambda: timed(in_turn), rounds)
    return [
        Row(f"{count} audits, speed of two processes against one", "s/audit, inverted", [1 / wall for wall in two["wall"]],
            [1 / wall for wall in one["wall"]], mark=1.8, detail={"two": two, "one": one}),
        Row("the same, all processes", "CPU-s/audit", two["cpu"], one["cpu"]),
    ]  # fmt: skip
