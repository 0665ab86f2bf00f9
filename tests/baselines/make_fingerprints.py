"""Write golden_fingerprints.json: what the shipped sweeps are called. A change of one means that stored results are made anew."""

import json
from pathlib import Path

from orchestrator.stages.graph import stages
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.plan import make_plan

FILE = Path(__file__).with_name("golden_fingerprints.json")
SWEEPS = (("sweeps.quickstart", False), ("sweeps.main_cc3m", True))
"""Name, and whether its miniature is meant: all miniatures of the study have the experiment of this one."""


def fingerprints() -> dict[str, dict[str, str]]:
    """Sweep → role → fingerprint, and the sweep's own under `sweep`."""
    found = {}
    for name, miniature in SWEEPS:
        plan = make_plan(load_sweep(name, miniature=miniature))
        found[name] = {role: stage.fingerprint for role, stage in stages(plan.sweep.base).items()}
        found[name]["sweep"] = plan.fingerprint
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(fingerprints(), indent=1) + "\n")
