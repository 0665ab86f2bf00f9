"""`python -m tests.bench [names] [--quick] [--rounds N] [--out folder]`: speed and memory, both sides of each ratio in one run."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from pathlib import Path

HELP = {
    "poison": "poisoned shards against Ray Data's own read, map and write",
    "memory": "peak memory of poisoning and streaming at two sizes",
    "index": "the index of tars against tarfile and json",
    "views": "decoded 224-pixel views against decoding and resizing alone, and two views against one",
    "feed": "decoded 224-pixel views against open_clip's webdataset loader",
    "cache": "cleaning epochs from decoded pictures against decoding in each epoch",
    "evaluate": "zero-shot accuracy and ASR against decoding and encoding the prompts once a pass",
    "detect": "scores of training pairs by their neighbours against a search of scikit-learn's for each",
    "train": "two-worker Ray Train against torchrun",
    "trials": "a sweep's trials against no-op Tune trials",
    "fetch": "a list of pictures into shards against plain threads",
    "scale": "index, plan, cleaning set and first batch at 1 and 10 million fabricated rows",
    "safeclip": "an epoch of SafeCLIP against one of MMCL+SSL",
    "lime": "LIME of a picture against the package lime",
    "attacks": "adversarial pictures by PGD and APGD against foolbox's and adv-lib's",
    "audits": "audits of a checkpoint by two processes against one",
    "driver": "what following, report, MLflow and plan of 500 trials cost the driver, against 100 trials",
    "step": "the train step against open_clip's, on a GPU",
}
NAMES = tuple(HELP)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:10}{HELP[name]}" for name in NAMES),
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"which of {', '.join(NAMES)}; all without one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, and measures nothing")
    parser.add_argument("--rounds", type=int, default=0, help="how often each side is measured (default 3; 1 with --quick)")
    parser.add_argument("--out", type=Path, default=None, help="folder for a JSON file a benchmark")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(NAMES)}")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # one thread a process, on both sides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the data made on the spot is removed

    from tests.bench import measure

    print(" ".join(f"{key}={value}" for key, value in measure.machine().items() if key != "versions"), flush=True)
    if os.getloadavg()[0] > 1.3 and not given.quick:
        print(f"NOTE: the machine is busy (load {os.getloadavg()[0]:.1f}); wall times will mislead.", flush=True)
    failed = []
    for name in given.names or NAMES:
        began = time.monotonic()
        try:
            module = importlib.import_module(f"tests.bench.{'gpu_step' if name == 'step' else name}")
            rows = module.run("quick" if given.quick else "full", given.rounds or (1 if given.quick else 3))
        except ImportError as error:  # webdataset, lime, foolbox and adv-lib are not among the project's own requirements
            print(f"\n{name}: not measured, {error}", flush=True)
            failed.append(name)
            continue
        seconds = time.monotonic() - began
        print(f"\n== {name} ({HELP[name]}), {seconds:.0f} s\n{measure.table(rows)}", flush=True)
        if given.out:
            measure.save(rows, given.out, name, seconds)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
