"""Whether a file that a method keeps in its stage's folder is as it was written, before the stage is finished and sealed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from datasets.errors import InputError


def digest(*parts: np.ndarray | str) -> str:
    """SHA-256 of the parts' bytes, which the file keeps beside them."""
    return hashlib.sha256(b"".join(part.encode() if isinstance(part, str) else part.tobytes() for part in parts)).hexdigest()


def damaged(file: Path) -> InputError:
    """What to raise for a file that cannot be read, or whose digest is another."""
    return InputError(f"{file} is damaged: remove its folder, and the cleaning begins anew.")
