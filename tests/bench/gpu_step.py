"""The train step on a GPU against open_clip's own: ViT-B/32 and RN50 in bf16, samples a second and MFU.

    python -m tests.bench.gpu_step [--cpu] [--rounds N] [--steps N] [--compile] [--models ViT-B-32:1024,RN50:512] [--out folder]

Needs torch and open_clip, neither Ray nor MLflow. One batch of pictures and tokens lies on the device and is used in every step.
Ours is the loop's own step on bytes (normalised on the device); theirs is open_clip_train's (amp_bf16, ClipLoss, its AdamW)
on pictures that are normalised already. Both start from the same weights, and their first losses must agree.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from datasets.seeding import hash64  # noqa: E402  (needs ROOT)
from tests.bench import measure  # noqa: E402
from tests.bench.measure import Row  # noqa: E402
from trainers import schedule, throughput  # noqa: E402
from trainers.backward import backward  # noqa: E402
from trainers.encoder import Encoder  # noqa: E402
from trainers.model import Model, TinyCLIP  # noqa: E402
from trainers.objectives.contrastive import MMCL  # noqa: E402
from trainers.record import Sums  # noqa: E402
from trainers.schedule import Training  # noqa: E402

Step = Callable[[], Tensor]
MODELS = "ViT-B-32:1024,RN50:512"
LR, DECAY = 1e-5, 0.2


def build(name: str, device: torch.device) -> Encoder:
    """The model by its open_clip name; "tiny" for a run on a CPU."""
    encoder = (TinyCLIP() if name == "tiny" else Model(name=name)).build(0)
    return encoder.place(device, precision="bf16" if device.type == "cuda" else "fp32")


def batch(encoder: Encoder, rows: int) -> dict[str, Tensor]:
    """Random pictures uint8 [B, S, S, 3] and captions int64 [B, L] (start, words, end, zeros)."""
    size, length, device = encoder.image_size, encoder.model.context_length, encoder.device
    draw = torch.Generator().manual_seed(0)
    image_BHWC = torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8, generator=draw)
    text_BL = torch.zeros(rows, length, dtype=torch.long)
    words = length // 2
    text_BL[:, 1 : 1 + words] = torch.randint(300, 40_000, (rows, words), generator=draw)
    text_BL[:, 0], text_BL[:, 1 + words] = 49_406, 49_407
    return {"image": image_BHWC.to(device), "text": text_BL.to(device)}


def our_step(encoder: Encoder, data: dict[str, Tensor], compiled: bool) -> Step:
    """The body of `trainers.loop.fit` without the feed: rate, gradients, optimiser, clamp, sums."""
    training = Training(epochs=1, batch_size=len(data["image"]), lr=LR, weight_decay=DECAY, warmup_steps=0, compile=compiled)
    if compiled:
        encoder.place(encoder.device, precision="bf16" if encoder.device.type == "cuda" else "fp32", compile=True)
    encoder.train()
    optimizer, objective = schedule.optimizer(encoder, training), MMCL()
    sums, number = Sums({}, every=1 if encoder.device.type == "cpu" else 16), iter(range(1 << 30))

    def step() -> Tensor:
        at = next(number)
        for group in optimizer.param_groups:
            group["lr"] = LR
        losses = backward(encoder, objective, data, 1, hash64(0, "step", at, 0))
        optimizer.step()
        optimizer.zero_grad()
        encoder.clamp_logit_scale()
        sums.add(at, {**losses, "lr": LR, "logit_scale": encoder.model.logit_scale.detach().exp()})
        return losses["loss"]

    return step


def their_step(model: Any, encoder: Encoder, data: dict[str, Tensor], compiled: bool) -> Step:
    """The body of open_clip_train's train_one_epoch with its AdamW, as `--precision amp_bf16` runs it."""
    device = encoder.device
    image_BCHW = ((data["image"].float() - encoder.mean) / encoder.std).permute(0, 3, 1, 2).contiguous()
    no_decay = lambda name, p: p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if no_decay(name, p)], "weight_decay": 0.0},
        {"params": [p for name, p in named if not no_decay(name, p)], "weight_decay": DECAY},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-6)
    loss, text_BL = open_clip.ClipLoss(), data["text"]
    run = torch.compile(model) if compiled else model
    run.train()

    def step() -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = LR
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext():
            total = loss(*run(image_BCHW, text_BL)[:3])
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return total.detach()

    return step


@contextmanager
def settings(theirs: bool) -> Iterator[None]:
    """open_clip's training script turns on cuDNN's search and TF32 for the whole process; ours leaves torch as it is."""
    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = theirs
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = before


def rate(step: Step, steps: int, rows: int, device: torch.device) -> float:
    """Samples a second over `steps` steps after a few that are not counted."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(min(3, steps)):
        step()
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return steps * rows / (time.perf_counter() - began)


def compare(name: str, rows: int, device: torch.device, rounds: int, steps: int, compiled: bool) -> list[Row]:
    """Both sides of one model."""
    encoder = build(name, device)
    data = batch(encoder, rows)
    flops, peak = throughput.flops_per_sample(encoder), throughput.peak_flops(device)
    if name == "tiny":
        model: Any = copy.deepcopy(encoder.model)
    else:
        model = open_clip.create_model(name, device=device)
        model.load_state_dict(encoder.model.state_dict())
    sides = our_step(encoder, data, compiled), their_step(model, encoder, data, compiled)
    losses = []
    for theirs, step in enumerate(sides):
        with settings(bool(theirs)):
            losses.append(step().item())
            rate(step, 5, rows, device)
    assert abs(losses[0] - losses[1]) < 0.02 * abs(losses[1]), f"first losses differ: ours {losses[0]}, theirs {losses[1]}"
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0

    def side(theirs: bool) -> dict[str, float]:
        with settings(theirs):
            return {"rate": rate(sides[theirs], steps, rows, device)}

    one, other = measure.alternate(lambda: side(False), lambda: side(True), rounds)
    with settings(True):
        searched = [rate(sides[0], steps, rows, device)]
    detail = {"flops_per_sample": flops, "peak_flops": peak, "memory_gb": memory, "first_losses": losses,
              "ours_with_cudnn_benchmark": searched, "compile": compiled}
    kind = "bf16" if device.type == "cuda" else "fp32"
    found = [Row(f"{name}, {kind}, batch {rows}{', compiled' if compiled else ''}", "samples/s", one["rate"], other["rate"],
                 detail=detail, note=f"{flops / 1e9:.3g} GFLOP a sample; ours with cudnn.benchmark: {searched[0]:,.0f}")]
    if peak:
        found.append(Row(f"{name}, MFU", "%", *([throughput.mfu(r, flops, peak) for r in s["rate"]] for s in (one, other))))
    return found


def run(size: str, rounds: int, *, cpu: bool = False, steps: int = 0, compiled: bool = False, models: str = MODELS) -> list[Row]:
    """The rows of all models; none, and a line that says so, where there is no GPU."""
    on_gpu = torch.cuda.is_available() and not cpu
    if not on_gpu and not cpu and size == "full":
        print("step: this machine has no GPU; nothing is measured. --quick (or --cpu) runs the code on a tiny model.")
        return []
    device = torch.device("cuda" if on_gpu else "cpu")
    if not on_gpu:
        models, steps = "tiny:32", steps or 3
        torch.set_num_threads(1)
    rows = []
    for entry in models.split(","):
        name, _, count = entry.rpartition(":")
        rows += compare(name, int(count), device, rounds, steps or (5 if size == "quick" else 30), compiled)
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU: shows that the code runs")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured")
    parser.add_argument("--steps", type=int, default=0, help="steps a measurement (default 30, on a CPU 3)")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument("--models", default=MODELS, help="open_clip names and batch sizes")
    parser.add_argument("--out", type=Path, default=None, help="folder for step.json")
    given = parser.parse_args()
    began = time.monotonic()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{name}; {' '.join(f'{key}={value}' for key, value in measure.machine().items())}", flush=True)
    rows = run("full", given.rounds, cpu=given.cpu, steps=given.steps, compiled=given.compile, models=given.models)
    print(measure.table(rows) if rows else "no rows")
    if given.out:
        measure.save(rows, given.out, "step", time.monotonic() - began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
