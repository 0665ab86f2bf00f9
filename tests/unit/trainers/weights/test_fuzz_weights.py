"""Spoilt checkpoints: each is loaded or refused with a sentence, within bounds of memory and time.

A process of its own has the bounds: its memory and CPU time, and a time for each input. Weights that are changed in a file without a
checksum load as they are; nobody can tell.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
SEED, INPUTS = 0, 630
MEMORY, CPU_SECONDS, INPUT_SECONDS = 2 << 30, 120, 10
"""Bytes beyond what the process has when it begins; of the whole process; of one input."""


def test_spoilt_checkpoints_are_loaded_or_refused_with_a_sentence():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    counts = json.loads(done.stdout)
    assert sum(counts.values()) == INPUTS and min(counts["loaded"], counts["refused"]) > INPUTS // 20, counts


def main() -> None:
    import torch

    from datasets.errors import InputError
    from trainers.weights.load import load_weights

    encoder = small()
    counts = {"loaded": 0, "refused": 0}
    draw = random.Random(SEED)
    limit(MEMORY, CPU_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        makers = list(files(encoder.model, Path(folder)))
        for number in range(INPUTS):
            name, whole, spoil = makers[number % len(makers)]
            place = Path(folder) / f"{number}" / name
            place.parent.mkdir()
            for beside, data in whole.items():
                (place.parent / beside).write_bytes(data)
            place.write_bytes(spoil(whole[name], draw))
            signal.setitimer(signal.ITIMER_REAL, INPUT_SECONDS)
            try:
                load_weights(encoder, place.parent if len(whole) > 1 else place, say=lambda line: None)
                counts["loaded"] += 1
            except InputError as error:
                counts["refused"] += 1
                if folder not in str(error) or len(str(error)) > 2500:
                    raise AssertionError(f"input {number}, {name}: {error}") from error
            except BaseException as error:
                raise AssertionError(f"input {number}, {name}: {type(error).__name__}: {error}") from error
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if not all(value.isfinite().all() for value in encoder.model.state_dict().values()):
                raise AssertionError(f"input {number}, {name} put numbers that are not finite into the model")
            assert torch.is_grad_enabled()
    print(json.dumps(counts))


def small():
    """A model of 40 kB."""
    import open_clip

    from trainers.encoder import Encoder, Tokenizer

    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 4, "patch_size": 8},
        "text_cfg": {"context_length": 6, "vocab_size": 64, "width": 8, "heads": 2, "layers": 1},
    }
    return Encoder(open_clip.CLIP(**config), config, Tokenizer(lambda captions: None))


def files(model, folder: Path) -> Iterator[tuple[str, dict[str, bytes], Callable[[bytes, random.Random], bytes]]]:
    """(the file to spoil, it and the files beside it, how it is spoilt)."""
    import argparse

    import numpy as np
    import torch
    from safetensors.torch import save

    state = model.state_dict()
    held = {
        "epoch": 3, "args": argparse.Namespace(lr=np.float64(3)), "state_dict": {f"module.{name}": value for name, value in state.items()},
        "optimizer": {"param_groups": [{"lr": np.float64(1e-3), "betas": (0.9, 0.98), "params": [0, 1]}]},
    }  # fmt: skip
    zipped, old, scripted = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(held, zipped)
    torch.save(held, old, _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.trace_module(model, {"encode_image": torch.zeros(1, 3, 16, 16)}), scripted)
    yield "zip.pt", {"zip.pt": zipped.getvalue()}, bytes_spoilt
    yield "zip.pt", {"zip.pt": zipped.getvalue()}, pickle_spoilt
    yield "old.pt", {"old.pt": old.getvalue()}, head_spoilt
    yield "scripted.pt", {"scripted.pt": scripted.getvalue()}, pickle_spoilt
    weights = {"open_clip_model.safetensors": save(state)}
    yield "open_clip_model.safetensors", weights, head_spoilt
    model_cfg = {"quick_gelu": False, "text_cfg": {"heads": 2}, "vision_cfg": {"head_width": 4}}
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}
    yield "open_clip_config.json", {**weights, "open_clip_config.json": json.dumps(config).encode()}, bytes_spoilt
    index = json.dumps({"weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}).encode()
    parts = {"model-00001-of-00001.safetensors": save(state), "model.safetensors.index.json": index}
    yield "model.safetensors.index.json", parts, bytes_spoilt


def bytes_spoilt(data: bytes, draw: random.Random, end: int | None = None) -> bytes:
    """One to three bytes flipped, zeroed, put in or taken out, or the end cut off; all before `end`."""
    spoilt, end = bytearray(data), end or len(data)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(max(1, min(end, len(spoilt))))
        kind = draw.choice(("flip", "any", "zeros", "insert", "remove", "double", "cut"))
        if kind == "flip" and spoilt:
            spoilt[at] ^= 1 << draw.randrange(8)
        elif kind == "any" and spoilt:
            spoilt[at] = draw.randrange(256)
        elif kind == "zeros":
            spoilt[at : at + 8] = bytes(8)
        elif kind == "insert":
            spoilt[at:at] = draw.randbytes(draw.randint(1, 8))
        elif kind == "remove":
            del spoilt[at : at + draw.randint(1, 8)]
        elif kind == "double":
            spoilt[at:at] = spoilt[at : at + draw.randint(1, 64)]
        elif draw.random() < 0.3:
            del spoilt[at:]
    return bytes(spoilt)


def head_spoilt(data: bytes, draw: random.Random) -> bytes:
    """In the first tenth, where the structure lies before the numbers."""
    return bytes_spoilt(data, draw, len(data) // 10)


def pickle_spoilt(data: bytes, draw: random.Random) -> bytes:
    """The pickle in the archive, under a checksum that fits."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(made, "w") as after:
        for name in before.namelist():
            part = before.read(name)
            after.writestr(name, bytes_spoilt(part, draw) if name.endswith("data.pkl") else part)
    return made.getvalue()


def limit(memory: int, seconds: int) -> None:
    """Bound the address space of this process, counted from what it has, and its CPU time; SIGALRM raises."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError("an input took too long")

    signal.signal(signal.SIGALRM, late)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + memory, own + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


if __name__ == "__main__":
    main()
