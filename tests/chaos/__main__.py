"""`python -m tests.chaos [kinds]`: faults at random for some minutes. Exits 1 if something was lost or came out otherwise."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from tests.chaos.clock import Clock
from tests.chaos.flip import Flip
from tests.chaos.full_disk import FullDisk
from tests.chaos.hosts import Hosts
from tests.chaos.kill import Kill
from tests.chaos.kill_here import KillHere
from tests.chaos.memory import Memory
from tests.chaos.no_locks import NoLocks
from tests.chaos.soak import soak
from tests.chaos.tried import Count, Kind, Tried, table

KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Kill, KillHere, FullDisk, NoLocks, Clock, Flip, Memory, Hosts)}
SOAK = "no fault: one sweep of many small trials, and what of memory, open files, threads and disk grows with them"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join([*(f"{name:11}{kind.about}" for name, kind in KINDS.items()), f"{'soak':11}{SOAK}"]),
    )
    parser.add_argument("kinds", nargs="*", metavar="kind", help=f"which of {', '.join(KINDS)}; all of these without one; or soak, alone")
    parser.add_argument(
        "--minutes", type=float, default=None, help="how long, shared equally (default 10, of soak 60; no limit with --runs)"
    )
    parser.add_argument("--trials", type=int, default=200, help="of soak: how many trials (default 200)")
    parser.add_argument("--csv", type=Path, default=Path("build/soak.csv"), help="of soak: where its series goes (default %(default)s)")
    parser.add_argument("--runs", type=int, default=None, help="tries of each kind")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other moments, files and bytes")
    parser.add_argument("--first", type=int, default=0, help="number of the first try, to do one again")
    parser.add_argument("--folder", type=Path, default=None, help="where stores are made and removed (default: a temporary folder)")
    given = parser.parse_args()
    if "soak" in given.kinds and (len(given.kinds) > 1 or given.trials < 8):
        parser.error("soak is done alone, with --trials of at least 8")
    unknown = sorted(set(given.kinds) - set(KINDS) - {"soak"})
    if unknown:
        parser.error(f"no kind named {', '.join(unknown)}; there are {', '.join(KINDS)}, soak")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=given.folder))
    if given.kinds == ["soak"]:
        try:
            return soak(folder, given.trials, given.minutes or 60.0, given.csv)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    minutes = given.minutes if given.minutes is not None else 10.0 if given.runs is None else float("inf")
    counts: dict[str, Count] = {name: Count() for name in KINDS if name in (given.kinds or KINDS)}
    try:
        run(counts, folder, 60 * minutes, given.runs, given.seed, given.first)
    except KeyboardInterrupt:
        print("interrupted; this is what was tried:")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, seed {given.seed}\n\n{table(counts)}")
    return int(any(one.wrong for count in counts.values() for one in count.tries))


def run(counts: dict[str, Count], folder: Path, seconds: float, runs: int | None, seed: int, first: int) -> None:
    """Try the kinds in turn, always the one that had the least time, until time or tries are used up."""
    kinds: dict[str, Kind] = {}
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        open_ = [name for name, one in counts.items() if not one.skipped and (runs is None or len(one.tries) < runs)]
        if not open_:
            return
        name = min(open_, key=lambda one: counts[one].seconds)
        count, since = counts[name], time.monotonic()
        if name not in kinds:
            kinds[name] = KINDS[name]()
            count.skipped = kinds[name].prepare(folder)
            if count.skipped:
                print(f"{name} is not tried: {count.skipped}.", flush=True)
                continue
        number = first + len(count.tries)
        tried = kinds[name].again(number, np.random.default_rng((seed, zlib.crc32(name.encode()), number)))
        count.tries.append(tried)
        count.seconds += time.monotonic() - since
        say(name, number, tried, seed)


def say(name: str, number: int, tried: Tried, seed: int) -> None:
    """One line for a try; more where something was lost."""
    ended = "WRONG" if tried.wrong else "survived" if tried.met else "not met"
    how = ", refused by name" if tried.refused else f", {tried.commands} commands" if tried.commands > 1 else ""
    print(f"{name} {number}  {ended}{how}: {tried.what}", flush=True)
    for line in tried.wrong[:10]:
        print(f"    {line}")
    if tried.wrong:
        print(f"    once more: python -m tests.chaos {name} --seed {seed} --first {number} --runs 1", flush=True)


if __name__ == "__main__":
    sys.exit(main())
