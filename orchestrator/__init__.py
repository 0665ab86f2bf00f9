"""How many, where, in which order, with which results?"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The project's folder: cleansweep is an application that runs from its checkout."""

if str(ROOT) not in sys.path[:1]:
    sys.path.insert(0, str(ROOT))

_other = getattr(sys.modules.get("datasets"), "__file__", None)
if _other and Path(_other).resolve().parent != ROOT / "datasets":
    raise ImportError(
        f"another package named 'datasets' is loaded already ({_other}), most likely Hugging Face's. "
        "Import orchestrator first, or run cleansweep in an environment without it."
    )

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from orchestrator.api import load_sweep, run, study  # noqa: E402  (these need ROOT)
from orchestrator.cluster.session import set_environment  # noqa: E402

__all__ = ["ROOT", "load_sweep", "run", "study"]

set_environment()
