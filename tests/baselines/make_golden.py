"""The golden loss curve: 20 steps of a small model on the CPU. Written anew by `make baselines`, after a change that is meant
to move it, and by nothing else."""

import json
import tempfile
from pathlib import Path

import torch

from tests.parity.toys import RESNET, ToyFeed
from trainers.loop import fit
from trainers.objectives.contrastive import MMCLSSL
from trainers.schedule import Training

FILE = Path(__file__).with_name("golden_loss.json")


def curve(dtype: torch.dtype) -> list[float]:
    """Loss of each of 20 steps (an epoch a step, so that each is reported), one thread.

    The file holds float64: in float32 another processor's order of summation alone moves this curve by 4e-5.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lines: list[dict] = []
    training = Training(epochs=20, batch_size=32, lr=5e-4, warmup_steps=4, precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        fit(RESNET.build(0).to(dtype), MMCLSSL(), training, ToyFeed(batch_size=32, steps=20), Path(folder), report=lines.append)
    torch.set_num_threads(threads)
    return [line["metrics"]["train/loss"] for line in lines[1:]]


def main() -> None:
    """Write the file."""
    FILE.write_text(json.dumps({"train/loss": curve(torch.float64)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
