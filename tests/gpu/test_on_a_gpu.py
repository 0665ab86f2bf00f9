"""The train loop on a GPU: bf16, resume, torch.compile, SyncBatchNorm. Passed over where there is none; needs torch and open_clip only.

    python -m pytest --noconftest -p no:cacheprovider tests/gpu
"""

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from tests.parity.toys import ToyFeed, resnet, vit
from trainers import distributed, loop
from trainers.distributed import World
from trainers.objectives.contrastive import MMCLSSL
from trainers.schedule import Training

GPU = World(device=torch.device("cuda", 0))
CPU = World()

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def exact():
    """cuDNN may take another kernel, with another order of sums, from call to call; torch lets it multiply in TF32."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before


def trained(folder, build, world, feed=None, **fields):
    encoder, lines = build(), []
    training = Training(**{"epochs": 2, "batch_size": 8, "lr": 1e-2, "warmup_steps": 2, **fields})
    loop.fit(encoder, MMCLSSL(), training, feed or ToyFeed(steps=8), folder, world=world, report=lines.append)
    return {name: value.detach().cpu() for name, value in encoder.model.state_dict().items()}, lines


def same(one, other):
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("build", [resnet, vit])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_and_resumed_is_the_same_bit_for_bit(tmp_path, build, precision):
    whole, _ = trained(tmp_path / "whole", build, GPU, precision=precision, checkpoint_every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", build, GPU, ToyFeed(steps=8, stop_at=6), precision=precision, checkpoint_every_steps=2)
    resumed, _ = trained(tmp_path / "cut", build, GPU, precision=precision, checkpoint_every_steps=2)
    assert same(whole, resumed) == []


@pytest.mark.parametrize("build", [resnet, vit])
def test_it_trains_as_a_cpu_does(tmp_path, build):
    _, ours = trained(tmp_path / "gpu", build, GPU, precision="fp32")
    _, theirs = trained(tmp_path / "cpu", build, CPU, precision="fp32")
    for one, other in zip(ours[1:], theirs[1:]):
        assert one["metrics"]["train/loss"] == pytest.approx(other["metrics"]["train/loss"], rel=1e-3)


@pytest.mark.parametrize("build", [resnet, vit])
def test_bf16_is_near_fp32(tmp_path, build):
    _, rough = trained(tmp_path / "bf16", build, GPU, precision="bf16")
    _, exact = trained(tmp_path / "fp32", build, GPU, precision="fp32")
    assert rough[1]["metrics"]["train/loss"] != exact[1]["metrics"]["train/loss"]
    assert rough[1]["metrics"]["train/loss"] == pytest.approx(exact[1]["metrics"]["train/loss"], rel=0.05)


def test_a_compiled_model_trains_alike_and_saves_plain_names(tmp_path):
    plain, lines = trained(tmp_path / "plain", vit, GPU, precision="fp32")
    compiled, more = trained(tmp_path / "compiled", vit, GPU, precision="fp32", compile=True)
    assert plain.keys() == compiled.keys()
    assert more[1]["metrics"]["train/loss"] == pytest.approx(lines[1]["metrics"]["train/loss"], rel=1e-3)


def _half(rank: int, port: int, backend: str, device: int, out: str) -> None:
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cuda", device * rank))
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    encoder, lines = resnet(), []
    training = Training(epochs=2, batch_size=8, lr=1e-2, warmup_steps=2, precision="fp32")
    loop.fit(encoder, MMCLSSL(), training, ToyFeed(steps=8, rank=rank, world=2), Path(out), world=world, report=lines.append)
    kinds = {type(module).__name__ for module in encoder.modules()}
    torch.save({"lines": lines, "sync": "SyncBatchNorm" in kinds}, f"{out}/rank{rank}.pt")
    distributed.from_main(None, world)
    dist.destroy_process_group()


@pytest.mark.parametrize(("backend", "device"), [
    pytest.param("nccl", 1, marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")),
    ("gloo", 0),
])
def test_two_ranks_with_sync_batchnorm_train_as_one(tmp_path, backend, device):
    """Two processes: on two GPUs with NCCL, or on one, which NCCL refuses and gloo does not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "two"
    out.mkdir()
    torch.multiprocessing.spawn(_half, (port, backend, device, str(out)), nprocs=2)
    found = torch.load(out / "rank0.pt", weights_only=True)
    assert found["sync"]
    _, lines = trained(tmp_path / "one", resnet, GPU, precision="fp32")
    for one, other in zip(found["lines"][1:], lines[1:]):
        assert one["metrics"]["train/loss"] == pytest.approx(other["metrics"]["train/loss"], rel=1e-3)
