"""Which files hold weights: found by their names alone, without reading a tensor."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from datasets.errors import InputError
from datasets.text import read_json
from trainers.weights.epoch_folder import CONFIG, WEIGHTS

FOLDER = (WEIGHTS, "open_clip_pytorch_model.bin", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
          "pytorch_model.bin.index.json")  # fmt: skip
"""Weight files that a folder may hold, in order of preference."""
_PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.")


def aside(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


def weights_file(path: str | Path) -> Path:
    """The file that holds the weights, or the index that names such files. InputError if there is none."""
    file = Path(path)
    if os.path.isdir(file):
        held = next((file / name for name in FOLDER if (file / name).is_file()), None)
        if held is not None:
            return held
        epochs = sorted(place.parent.name for place in file.glob(f"epoch_*/{WEIGHTS}"))
        if epochs:
            raise InputError(f"checkpoint {file} is the folder of a whole stage: give one of its epoch folders: {', '.join(epochs)}")
        raise InputError(f"checkpoint {file} is a folder without weights; looked for: {', '.join(FOLDER)}")
    if not os.path.isfile(file):  # also true for an invalid name
        tags = "" if "/" in str(path) else "; open_clip's tags are accepted where the experiment's model is one of its own"
        raise InputError(f"checkpoint {file} does not exist{tags}")
    if _PART.search(file.name):
        raise InputError(f"checkpoint {file} is one of several parts: give their folder, or the index beside them")
    return file


def files_read(path: str | Path) -> list[Path]:
    """All files that `load_weights` reads: the weights or their index, the parts, and the configurations beside them."""
    file = weights_file(path)
    beside = [file.with_name(name) for name in (CONFIG, "config.json", "preprocessor_config.json")]
    return [file, *(parts(file) if file.suffix == ".json" else ()), *(other for other in beside if other.is_file())]


def parts(index: Path) -> list[Path]:
    """The files, beside the index, that a Hugging Face index names. InputError if it is not an index or a file is missing."""
    listed = read_json(index)
    places = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) and Path(name).name == name for name in places.values()):
        raise InputError(f"checkpoint {index} cannot be read: an index has an object weight_map, the name of a file for each tensor")
    found = [index.with_name(name) for name in sorted(set(places.values()))]
    missing = [part.name for part in found if not part.is_file()]
    if missing:
        raise InputError(f"checkpoint {index} names {', '.join(missing[:3])}, which is not beside it: fetch all {len(found)} parts")
    return found
