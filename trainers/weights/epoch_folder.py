"""The files of this project's checkpoints, and whether they are unchanged."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.storage import crc32

WEIGHTS, CONFIG, STATE, META = "open_clip_model.safetensors", "open_clip_config.json", "state.safetensors", "meta.json"


def fault(checkpoint: Path, state: bool = True) -> str:
    """Which file of the checkpoint is missing or changed, as a message; "" if none is. `state`: also check the files that training
    continues from."""
    meta = read_meta(checkpoint)
    if not meta:
        return f"{checkpoint / META} {'is not as it was written' if (checkpoint / META).exists() else 'is missing'}"
    if state and meta.get("stage") != checkpoint.parent.name:
        return f"{checkpoint} is a checkpoint of another stage ({meta.get('stage')})"
    if state and STATE not in meta["files"]:  # the model was returned by a method
        return f"{checkpoint / STATE} is missing"
    sums = {checkpoint / name: checksum for name, checksum in meta["files"].items() if state or name != STATE}
    if state:
        sums |= {checkpoint.parent / name: checksum for name, checksum in meta.get("beside", {}).items()}
    for path, checksum in sums.items():
        if not path.is_file():
            return f"{path} is missing"
        if crc32(path) != checksum:
            return f"{path} is not as it was written"
    return ""


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's meta.json; empty if the file is missing or was changed."""
    try:
        meta = json.loads((checkpoint / META).read_bytes())
        return meta if meta.pop("digest") == digest(meta) else {}
    except (OSError, ValueError, AttributeError, KeyError, RecursionError):
        return {}


def digest(meta: Mapping[str, Any]) -> str:
    """Hexadecimal SHA-256 of the content of a checkpoint's meta.json."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
