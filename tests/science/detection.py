"""How well the scores of `sweeps/detection.py` found the poison, and what dropping the suspects did, as Markdown.

    cleansweep run sweeps.detection --seeds 0,1,2 --store STORE
    python -m tests.science.detection --store STORE --seeds 0,1,2

A row a score, a column a rate: the AUROC of each seed's undefended model, n / k in brackets. Then ASR without and with the keep.
"""

import argparse
from collections import defaultdict

from orchestrator.results.outcome import StageResult
from orchestrator.store import Store
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.stored import load_study


def rate_of(result: StageResult) -> float:
    """Share of the pairs that its attack poisons."""
    return result.config["poison"]["rate"]


def keep_of(result: StageResult) -> str:
    """What it keeps, in words."""
    keep = result.config.get("keep")
    return f"{100 * keep['share']:g} % by {keep['score']['label']}" if keep else "all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--seeds", default="")
    given = parser.parse_args()
    seeds = tuple(int(seed) for seed in given.seeds.split(",") if seed)
    study = load_study(make_plan(load_sweep("sweeps.detection", seeds=seeds or None)), Store(given.store))
    finished = sorted((one for one in study.pretrains if one.status == "finished"), key=rate_of)
    rates = sorted({rate_of(one) for one in finished})
    cells: dict[str, dict[float, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in finished:
        last = one.metrics[-1]["metrics"]
        if one.config.get("keep") is None:
            for name in (name for name in last if name.startswith("detect/") and name.endswith("/auroc")):
                score = name.split("/")[1]
                crowding = last.get(f"detect/{score}/poisons_per_k")
                told = f"{last[name]:.2f}" + (f" ({crowding:.2g})" if crowding is not None else "")
                cells[score][rate_of(one)].append(told)
    print("| score | " + " | ".join(f"{100 * rate:g} %" for rate in rates) + " |\n|---" + "|---" * len(rates) + "|")
    for score, by_rate in cells.items():
        print(f"| `{score}` | " + " | ".join(", ".join(by_rate[rate]) for rate in rates) + " |")
    print("\n| rate | keep | accuracy / ASR of each seed |\n|---|---|---|")
    for rate in rates:
        for keep in dict.fromkeys(map(keep_of, finished)):
            ends = [one.metrics[-1]["metrics"] for one in finished if rate_of(one) == rate and keep_of(one) == keep]
            told = ", ".join(f"{end['zeroshot/top1']:.1f} / {end['asr/top1']:.1f}" for end in ends)
            print(f"| {100 * rate:g} % | {keep} | {told} |")
    print("\n| what was dropped | pairs | victims caught | clean pairs lost |\n|---|---|---|---|")
    for one in study.dropped:
        caught = f"{one['victims_caught']} of {one['victims']}"
        print(f"| {one['name']} | {one['dropped']} of {one['pairs']} | {caught} | {one['clean_pairs_lost']} |")


if __name__ == "__main__":
    main()
