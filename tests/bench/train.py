"""Pre-training on two workers: under Ray Train, as `cleansweep run` does it, and under torchrun.

The same job (`orchestrator.training.workers.pretrain`) on the same data runs in both, so start-up, the workers' surroundings and
Ray's services are all that differs; the last weights must be equal bit by bit. Steady state: from the end of the first epoch to
the end of the last, with evaluation and checkpoints.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from datasets.attack.poison import Poison
from datasets.images.view import Views
from datasets.synthetic import World
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Compute, Data, Evaluate, Experiment, Pretrain
from orchestrator.stages.base import At, ensure
from orchestrator.stages.graph import make_data, trained_by
from orchestrator.store import Store, read_lines, sha256
from orchestrator.training.inputs import Inputs
from orchestrator.training.job import Job
from orchestrator.training.workers import pretrain
from tests.bench.measure import ROOT, Meter, Row, alternate, ray_session, scratch
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL

SIZES = {"full": (4_000, 6), "quick": (256, 2)}
BATCH = 64
COMPUTE = Compute(workers=2, cpus_per_worker=1)


def experiment(samples: int, epochs: int, seed: int = 0) -> Experiment:
    """Pictures of 64 pixels, a ResNet and a text transformer: about a twentieth of a second a step and rank."""
    world = World(train=samples, test=100, size=64)
    model = TinyCLIP(image_size=64, vision_width=24, text_width=128, text_layers=2, text_heads=4)
    return Experiment(
        data=Data(source=world), views=Views(size=64), evaluate=Evaluate(data=world),
        poison=Poison(trigger=Patch(size=8), target="banana", rate=0.01),
        pretrain=Pretrain(model=model, objective=MMCL(), epochs=epochs, batch_size=BATCH, lr=1e-3, warmup_steps=2, seed=seed),
    )


def result(folder: Path, used: Meter) -> dict[str, float]:
    """Of a finished pre-training: samples a second after the first epoch, and what the whole of it took."""
    lines = read_lines(folder / "metrics.jsonl")
    first, last = lines[1], lines[-1]
    steps = last["step"] - first["step"]
    within = [line["metrics"]["train/samples_per_second"] for line in lines[2:]]
    return {"rate": steps * BATCH / (last["seconds"] - first["seconds"]), "steps_only": sum(within) / len(within),
            "wall": used.wall, "cpu": used.cpu}


def weights(folder: Path) -> str:
    [found] = sorted(folder.glob("epoch_*"))[-1].glob("open_clip_model.safetensors")
    return sha256(found)


def under_ray(spec: Experiment, store: Store, made: list[str]) -> dict[str, float]:
    with ray_session(), Meter() as used:
        artefact = ensure(trained_by(spec), At(store=store, compute=COMPUTE))
    made.append(weights(artefact.folder))
    return result(artefact.folder, used)


def under_torchrun(spec: Experiment, inputs: Inputs, folder: Path, made: list[str]) -> dict[str, float]:
    folder.mkdir()
    job = Job(experiment=spec, inputs=inputs, folder=str(folder), compute=COMPUTE, stage="torchrun")
    (folder / "job.pickle").write_bytes(pickle.dumps(job))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with Meter() as used:
        done = subprocess.run([*command, "-m", "tests.bench.train", str(folder / "job.pickle")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    made.append(weights(folder))
    return result(folder, used)


def run(size: str, rounds: int) -> list[Row]:
    spec = experiment(*SIZES[size])
    with scratch() as folder:
        store = Store(folder / "store")
        store.prepare()
        with ray_session():
            inputs = make_data(spec, At(store=store))
        made: tuple[list[str], list[str]] = ([], [])
        numbers = iter(range(rounds)), iter(range(rounds))

        def seeded(number: int) -> Experiment:
            return replace(spec, pretrain=replace(spec.pretrain, seed=number))

        def ours() -> dict[str, float]:
            return under_ray(seeded(next(numbers[0])), store, made[0])

        def theirs() -> dict[str, float]:
            number = next(numbers[1])
            return under_torchrun(seeded(number), inputs, folder / f"torchrun-{number}", made[1])

        one, peer = alternate(ours, theirs, rounds)
    assert made[0] == made[1], "both sides must end with the same weights"
    detail = {"ours": one, "theirs": peer}
    return [
        Row(f"two workers, batch {BATCH}, after the first epoch", "samples/s", one["rate"], peer["rate"], mark=0.95, detail=detail,
            note="evaluation and checkpoints included; the final weights of both sides are equal bit by bit"),
        Row("steps alone", "samples/s", one["steps_only"], peer["steps_only"]),
        Row("the whole of it, start included", "s", one["wall"], peer["wall"], note="Ray itself runs already"),
        Row("the whole of it", "CPU-s", one["cpu"], peer["cpu"]),
    ]


def main() -> None:
    """One rank under torchrun."""
    import torch.distributed as dist

    with open(sys.argv[1], "rb") as file:
        job = pickle.load(file)  # noqa: S301 (written by this benchmark a moment ago)
    dist.init_process_group("gloo")
    pretrain(job)
    dist.destroy_process_group()
    print(json.dumps({"done": True}))


if __name__ == "__main__":
    main()
