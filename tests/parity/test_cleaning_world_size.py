"""Cleaning losses and audits do not depend on the number of processes: real gloo processes, gradients in float64."""

import multiprocessing
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from datasets.seeding import rng
from tests.parity.toys import WORDS, ToyFeed, ToySet, resnet
from trainers import distributed
from trainers.backward import backward
from trainers.batch import to_device
from trainers.detect.base import Score
from trainers.detect.cosine import CosineByModel
from trainers.detect.lid import LID
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.evaluate.bdetclip import BDetCLIP
from trainers.evaluate.decree import Decree, Inversion
from trainers.evaluate.mmbd import MMBD
from trainers.methods.base import Run
from trainers.methods.par import seen
from trainers.methods.still import still_scale, still_text
from trainers.methods.ubt import UBT
from trainers.objectives.adversarial import Adversarial
from trainers.objectives.adversary import Adversary
from trainers.objectives.apart import Apart
from trainers.objectives.base import Objective
from trainers.objectives.fare import NearOriginal
from trainers.objectives.lipschitz import Smooth
from trainers.objectives.tecoa import AgainstClasses
from trainers.objectives.trades import Trades
from trainers.objectives.triggered import Triggered
from trainers.objectives.unlearn import Unlearn
from trainers.schedule import Training

BATCH = 16
LIMITS = (4.0, 1e-9, "between")
SUSPECTS = ("1111000010010000", "1" * 16, "0" * 15 + "1", "0" * 16)
"""Which of a batch: some ranks have suspects alone, some none."""

ATTACK = Adversary(eps=8 / 255, step=4 / 255, steps=2)
ADVERSARIAL: dict[str, Objective] = {
    "adversarial": Adversarial(adversary=ATTACK),
    "trades": Trades(adversary=ATTACK),
    "tecoa": AgainstClasses(class_names=WORDS[:4], template="the {}", scale=10, adversary=ATTACK),
    "fare": NearOriginal(adversary=ATTACK),
    "lipschitz": Smooth(spectral_weight=0.1),
    "lipschitz l1": Smooth(norm="l1"),
}
CASES = (*(f"apart {limit}" for limit in LIMITS), "triggered", "seen", *(f"unlearn {one}" for one in SUSPECTS), *ADVERSARIAL)


def moved() -> tuple[Encoder, Encoder]:
    """A model and what it has become."""
    before, after = resnet().double(), resnet().double()
    with torch.no_grad():
        for number, weight in enumerate(after.model.parameters()):
            weight += 0.05 * torch.from_numpy(rng("moved", number).standard_normal(weight.shape))
    return before, after


def share(world: World) -> dict:
    return next(ToyFeed(batch_size=BATCH, rank=world.rank, world=world.size).batches())


def _gradients(world: World, encoder: Encoder, objective: object, batch: dict) -> dict[str, torch.Tensor]:
    """Of all weights, and the parts of the loss."""
    distributed.synchronise_batchnorm(encoder, world)
    with still_scale(encoder):
        losses = backward(distributed.wrap(encoder, world), objective, batch, 1, seed=0)  # type: ignore[arg-type]
    found = {name: p.grad.clone() for name, p in encoder.model.named_parameters() if p.grad is not None}
    parts = distributed.sum_over_ranks({name: float(value) / world.size for name, value in losses.items()}, world)
    return found | {f"loss {name}": torch.tensor(value, dtype=torch.float64) for name, value in parts.items()}


def _apart(world: World, limit: float | str) -> dict[str, torch.Tensor]:
    """`between`: a limit that lies between the ranks' own distances."""
    before, after = moved()
    if limit == "between":
        limit = 0.98 * max(_distances(before, after, BATCH))
    return _gradients(world, after.train(), Apart(limit=limit).begin(before, rng(0)), to_device(share(world), after, False))


def _triggered(world: World) -> dict[str, torch.Tensor]:
    encoder = resnet().double().train()
    objective = Triggered(stamp=lambda batch: {**batch, "image": 255 - batch["image"]})
    return _gradients(world, encoder, objective, to_device(share(world), encoder, True))


def _seen(world: World) -> dict[str, torch.Tensor]:
    """PAR's published view, drawn by the numbers of the pairs."""
    before, after = moved()
    objective = Apart(limit=4.0, view=lambda batch: {**batch, "image": seen(batch["image"], batch["draw"], after.mean)})
    raw = share(world)
    batch = to_device(raw, after, False) | {"draw": torch.from_numpy(raw["number"])}
    return _gradients(world, after.train(), objective.begin(before, rng(0)), batch)


def _unlearn(world: World, suspects: str) -> dict[str, torch.Tensor]:
    encoder, raw = resnet().double().train(), share(world)
    suspect_N = torch.tensor(list(map(int, suspects)))
    batch = to_device(raw, encoder, False) | {"suspect": suspect_N[torch.from_numpy(raw["number"])]}
    return _gradients(world, encoder, Unlearn(weight=2.0, margin=-0.5), batch)


def _adversarial(world: World, name: str) -> dict[str, torch.Tensor]:
    """Attacks are drawn by the numbers of the pairs; TeCoA and FARE leave the text tower out."""
    _, encoder = moved()
    raw = share(world)
    number_B = torch.from_numpy(raw["number"])
    batch = to_device(raw, encoder, False) | {"draw": number_B, "target": number_B % 4}
    with still_text(encoder) if name in ("tecoa", "fare") else nullcontext():
        return _gradients(world, encoder.train(), ADVERSARIAL[name].begin(encoder, rng(0)), batch)


def _suspects(world: World, score: Score) -> tuple[list[int], dict[str, float]]:
    """What UBT decides after a phase that trained nothing; `ToySet` gives each rank its share of the pairs."""
    toys = ToySet(rank=world.rank, world=world.size)
    training = Training(epochs=2, batch_size=8, lr=1e-3, warmup_steps=0)
    keys = list(toys.samples["key"])
    run = Run(trainer=lambda *_: None, training=training, fresh=resnet, keys=lambda: keys, pairs=toys.pairs, world=world)
    suspect_N, told = UBT(share=0.2, score=score)._suspects(resnet().double(), run)
    return suspect_N.tolist(), told


def _distances(before: Encoder, after: Encoder, rows: int) -> list[float]:
    """d of the pictures in each part of that many rows of the whole batch."""
    batch = to_device(share(World()), after, False)["image"]
    with torch.no_grad():
        d = (after.train().encode_image(batch) - before.eval().encode_image(batch)).square().sum(1)
    return [float(part.mean()) for part in d.split(rows)]


def _audits(world: World, size: int) -> list[dict]:
    """Of this rank's pictures in batches of this size."""
    total = ToyFeed(batch_size=23).batch(0)
    mine = range(world.rank, 23, world.size)
    chunks = [list(mine[i : i + size]) for i in range(0, len(mine), size)]
    batches = [{name: total[name][rows] for name in ("image", "key")} | {"label": [i % 4 for i in rows]} for rows in chunks]
    known = {"class_names": WORDS[:4], "templates": ("a {} thing", "{}")}
    for number, batch in enumerate(batches):
        batch |= {**known, "image_triggered": total["image_aug"][chunks[number]], "target": 2}
    own = tuple((word, (f"a {word} thing",)) for word in WORDS[:4])
    return [
        Decree(pictures=11, inversion=Inversion(epochs=3, batch_size=4, alike=0.5)).measure(resnet().double(), batches, world),
        BDetCLIP(descriptions=own, fprs=(20.0,)).measure(resnet().double(), batches, world),
        MMBD(starts=2, steps=3).measure(resnet().double(), [known], world),
    ]


def _process(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous{size}", rank=rank, world_size=size)
    _work(World(rank=rank, size=size), Path(folder))
    dist.destroy_process_group()


def _work(world: World, folder: Path) -> None:
    results = {
        **{f"apart {limit}": _apart(world, limit) for limit in LIMITS},
        "triggered": _triggered(world),
        "seen": _seen(world),
        **{f"unlearn {suspects}": _unlearn(world, suspects) for suspects in SUSPECTS},
        **{name: _adversarial(world, name) for name in ADVERSARIAL},
        "suspects": [_suspects(world, score) for score in (CosineByModel(), LID(k=4, m=20))],
        "audits": [_audits(world, size) for size in (3, 100)],
    }
    torch.save(results, folder / f"world{world.size}-rank{world.rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    folder = tmp_path_factory.mktemp("worlds")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _work(World(), folder)
    torch.set_num_threads(threads)
    for size in (2, 4):
        multiprocessing.set_forkserver_preload(["torch", "open_clip"])  # seconds a process
        mp.start_processes(_process, (size, str(folder)), nprocs=size, start_method="forkserver")
    return {size: [torch.load(folder / f"world{size}-rank{rank}.pt", weights_only=False) for rank in range(size)] for size in (1, 2, 4)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [2, 4])
def test_gradients_do_not_depend_on_the_number_of_processes(results, size, case):
    one, many = (results[n][0][case] for n in (1, size))
    assert one.keys() == many.keys() and "logit_scale" not in one
    for name, expected in one.items():
        if expected.norm() > 1e-9:  # the rest is rounding about an exact zero: a key's bias, what batch norm takes out
            assert (many[name] - expected).norm() / expected.norm() <= 1e-12, name
        else:
            assert many[name].norm() < 1e-9, name


def test_the_same_pairs_are_suspect_on_every_rank(results):
    found = [rank["suspects"] for size in (1, 2, 4) for rank in results[size]]
    for suspects, told in found[0]:
        assert sum(suspects) == 10 and 0 <= told["ubt/auroc"] <= 1
    assert all(one == found[0] for one in found) and found[0][0] != found[0][1]


def test_the_distance_of_the_whole_batch_decides_for_all_ranks(results):
    parts = _distances(*moved(), rows=BATCH // 4)
    whole = sum(parts) / 4
    assert min(parts) < 0.98 * whole < max(parts), "some ranks alone would decide otherwise"
    assert [float(results[size][0]["apart between"]["loss beyond_image"]) for size in (1, 2, 4)] == [100, 100, 100]


def test_audits_do_not_depend_on_processes_or_batch_size(results):
    measured = [audits for size in (1, 2, 4) for rank in results[size] for audits in rank["audits"]]
    assert len(measured) == 14
    for audits in measured[1:]:
        for one, other in zip(measured[0], audits, strict=True):
            assert one.keys() == other.keys()
            for name, value in one.items():
                torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(other[name]), rtol=1e-9, atol=1e-9, msg=name)
