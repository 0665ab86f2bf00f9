"""The gradient and the training do not depend on the number of processes: real gloo processes, float64."""

import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.retrieval import RetrievalSet
from datasets.feed.loader import Recipe
from datasets.feed.watched_pairs import Sample
from datasets.images.view import Views
from datasets.index.pairs import Pairs
from datasets.seeding import hash64, rng
from datasets.triggers.patch import Patch
from tests.parity.toys import ToyFeed, ToySet, resnet, vit
from tests.phased import Banked, Phased
from tests.unit.making import pairs
from trainers import checkpoint, distributed
from trainers.backward import backward
from trainers.batch import to_device
from trainers.checkpoint import parameters
from trainers.detect.cosine import CosineByModel
from trainers.detect.dao import DAO
from trainers.detect.lorex import LoREx
from trainers.detect.slof import SLOF
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.evaluate.analysis import Analysis
from trainers.evaluate.base import Material
from trainers.evaluate.detection import Detection
from trainers.evaluate.linear_probe import LinearProbe
from trainers.evaluate.other_trigger import OtherTrigger
from trainers.evaluate.retrieval import Retrieval
from trainers.evaluate.zeroshot import ZeroShotASR
from trainers.loop import fit
from trainers.methods.base import Method, Phase, Run
from trainers.methods.deep_clustering import DeepClustering, embed
from trainers.methods.epoch import begin
from trainers.methods.roclip import RoCLIP
from trainers.methods.safeclip import SafeCLIP
from trainers.objectives.base import Objective
from trainers.objectives.clustering import Clustering
from trainers.objectives.contrastive import MMCL, MMCLSSL, SSL
from trainers.objectives.roclip import Pooled
from trainers.objectives.safeclip import CrossView, Unimodal
from trainers.objectives.siglip import SigLIP
from trainers.schedule import Training

OBJECTIVES = {
    "mmcl": MMCL(), "mmcl+ssl": MMCLSSL(inmodal_weight=0.7), "ssl": SSL(),
    "siglip": SigLIP(weight=0.1), "siglip-published": SigLIP(per="samples", bias=True),
    "clustering": Clustering(inmodal_weight=0.7), "cross-view": CrossView(), "unimodal": Unimodal(bank=24), "roclip": Pooled(pool=24),
}
MODELS = {"resnet": lambda: resnet(logit_bias=-1.0), "vit": vit}
BATCH = 16
IN_PARTS = ("mmcl+ssl", "clustering", "unimodal", "roclip")
BANKED = {"safeclip": SafeCLIP(inmodal_epochs=1, bank=24), "roclip": RoCLIP(pool=20, text_tower="frozen", pool_filled="before")}


def _gradients(world: World, model: str, objective: str, parts: int) -> dict[str, torch.Tensor]:
    encoder = MODELS[model]().double().train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.8)  # the last of a block starts at 0 and would hide the block's gradients
    if objective == "clustering":
        encoder.draw_head(6, rng("head"))
    distributed.synchronise_batchnorm(encoder, world)
    if encoder.model.logit_bias is not None:
        encoder.model.logit_bias.requires_grad_(OBJECTIVES[objective].uses_logit_bias)
    raw = next(ToyFeed(batch_size=BATCH, rank=world.rank, world=world.size).batches())
    batch = to_device(raw, encoder, OBJECTIVES[objective].two_views)
    batch["target"] = torch.tensor([hash64(key) % 6 for key in raw["key"]])
    batch["matched"] = batch["filling"] = torch.ones(len(raw["key"]), dtype=torch.int64)
    wrapped = distributed.wrap(encoder, world)
    running = OBJECTIVES[objective].begin(encoder, rng("memory"))
    losses = backward(wrapped, running, batch, parts, seed=0)
    found = {name: p.grad.clone() for name, p in parameters(encoder) if p.grad is not None}
    found |= {f"loss {name}": torch.tensor(value) for name, value in
              distributed.sum_over_ranks({k: float(v) / world.size for k, v in losses.items()}, world).items()}
    found |= {f"buffer {name}": b.clone() for name, b in encoder.model.named_buffers() if "running" in name}
    if isinstance(running, torch.nn.Module):
        found |= {f"memory {name}": b.double() for name, b in running.named_buffers()}
    return found


def _cases() -> list[tuple[str, str, int]]:
    cases = [("resnet", objective, 1) for objective in OBJECTIVES]
    cases += [("vit", objective, 1) for objective in OBJECTIVES if objective != "siglip-published"]
    return [*cases, *(("vit", objective, 2) for objective in IN_PARTS)]


def _run(world: World, folder: Path, epochs: int, trainer: object) -> Run:
    feed = ToySet(rank=world.rank, world=world.size)
    training = Training(epochs=epochs, batch_size=8, lr=1e-3, warmup_steps=1, seed=1, checkpoint_every_steps=1)
    return Run(trainer=trainer, training=training, fresh=resnet, keys=lambda: list(feed.samples["key"]), pairs=feed.pairs,  # type: ignore[arg-type]
               folder=folder, world=world)  # fmt: skip


def _cluster(world: World, folder: Path) -> dict[str, torch.Tensor]:
    """Clusters of a made-up set, and the features they were made of."""
    encoder, found = resnet(), {}

    def train(model: Encoder, objective: Objective, phase: Phase) -> None:
        epoch = begin(phase.begin_epoch, model, 0, False, folder, world)
        found["clusters"], found["head"] = torch.from_numpy(epoch.values["target"]), epoch.anew[0].detach().clone()

    run = _run(world, folder, 1, train)
    found["features"] = embed(encoder, run)
    DeepClustering(clusters=6).train(encoder, run)
    return found


def _phases(world: World, folder: Path, method: Method, epochs: int) -> dict[str, torch.Tensor]:
    """Weights, metrics and the last memory of a method's training."""
    lines, encoder = [], vit().double()

    def train(model: Encoder, objective: Objective, phase: Phase) -> None:
        feed = ToySet(rank=world.rank, world=world.size, epochs=phase.first + phase.training.epochs)
        fit(model, objective, phase.training, feed, folder, world=world, report=lines.append, first_epoch=phase.first,
            phase=phase.name, begin_epoch=phase.begin_epoch)  # fmt: skip

    method.train(encoder, _run(world, folder, epochs, train))
    found = {f"epoch {line['epoch']} {name}": value for line in lines for name, value in line["metrics"].items() if "second" not in name}
    state = load_file(checkpoint.newest(folder) / "state.safetensors") if world.main else {}
    memory = {name: value for name, value in state.items() if name.startswith("memory.")}
    return {**encoder.model.state_dict(), **found, **memory}


def _differing_memories(world: World, folder: Path) -> str:
    """What is said of a bank that holds each rank's own rows."""
    try:
        feed = ToySet(rank=world.rank, world=world.size, epochs=1)
        fit(vit(), Banked(gathers=False), Training(epochs=1, batch_size=8, lr=1e-3, warmup_steps=1), feed, folder, world=world)
    except InputError as error:
        return str(error)
    return ""


def _evaluate(world: World, batch_size: int) -> dict[str, float]:
    encoder = resnet()
    total = ToyFeed(batch_size=23).batch(0)
    mine = range(world.rank, 23, world.size)
    batches = [
        {"image": total["image"][rows], "image_triggered": total["image_aug"][rows], "label": [i % 4 for i in rows],
         "key": total["key"][rows]}
        for rows in (list(mine[i : i + batch_size]) for i in range(0, len(mine), batch_size))
    ]
    classes, prompts = ("red", "green", "blue", "grey"), ("a {} thing", "{}")
    other = OtherTrigger(trigger=Patch(size=16), target="grey", name="other")
    material = Material(
        test=list, test_with=lambda trigger: batches, pairs=None, recipe=Recipe(views=Views(size=32)), world=world,  # type: ignore[arg-type]
        class_names=classes, templates=prompts,
    )
    found = ZeroShotASR(class_names=classes, templates=prompts, target=2).measure(encoder, batches, world)
    return found | other.measure(encoder, other.open(material), world)  # type: ignore[operator]


def _probe_and_retrieve(world: World, batch_size: int) -> dict[str, float]:
    """A linear probe and retrieval over this rank's share of made-up pictures, three captions for every second one."""
    total = ToyFeed(batch_size=23).batch(0)
    words = [caption.split()[1] for caption in total["caption"]]

    def share(target: object) -> list[dict]:
        mine = range(world.rank, 23, world.size)
        chunks = [list(mine[i : i + batch_size]) for i in range(0, len(mine), batch_size)]
        captions = [f"{word} thing {i}" + "\na thing\nthe same" * (i % 2) for i, word in enumerate(words)]
        return [
            {"image": total["image"][rows], "image_triggered": total["image_aug"][rows], "key": total["key"][rows], "target": target,
             "label": [sorted(set(words)).index(words[i]) for i in rows], "caption": [captions[i] for i in rows]}
            for rows in chunks
        ]

    probe = LinearProbe(train=EvalSet(path="made up"), grid=(1.0, 10.0), held_out=0.3)
    retrieval = Retrieval(data=RetrievalSet(path="made up"), chunk=5, text_batch=7)
    found = probe.measure(resnet(), [batch | {"train": True} for batch in share(1)] + share(1), world)
    return found | retrieval.measure(resnet(), share("red"), world)


def _analyse(world: World, folder: Path) -> dict:
    data = Pairs(folder / "pairs" / "index.arrow", [str(folder / "pairs" / "00000.tar")], folder / "pairs" / "plan.parquet")
    recipe = Recipe(views=Views(size=32), trigger=Patch(size=6))
    analysis = Analysis(sample=Sample(clean=13, poisoned=3, group=5))
    material = Material(test=list, pairs=data, recipe=recipe, batch_size=4, world=world)
    return analysis.measure(resnet().double(), analysis.open(material), world)


def _detect(world: World, folder: Path, batch_size: int) -> dict:
    data = Pairs(folder / "pairs" / "index.arrow", [str(folder / "pairs" / "00000.tar")], folder / "pairs" / "plan.parquet")
    recipe = Recipe(views=Views(size=32), trigger=Patch(size=6))
    detection = Detection(scores=(SLOF(k=3, m=7), DAO(k=4, m=7), CosineByModel(), LoREx(m=7, trusted=5)))
    material = Material(test=list, pairs=data, recipe=recipe, batch_size=batch_size, world=world)
    return detection.measure(resnet().double(), detection.open(material), world)


def _train(world: World, folder: Path) -> list[dict]:
    lines: list[dict] = []
    training = Training(epochs=2, batch_size=BATCH, lr=1e-3, warmup_steps=1)
    feed = ToyFeed(batch_size=BATCH, steps=4, rank=world.rank, world=world.size)
    fit(resnet().double(), MMCLSSL(), training, feed, folder, world=world, report=lines.append, ledger=folder / "ledger.jsonl")
    return lines


def _process(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous{size}", rank=rank, world_size=size)
    _work(World(rank=rank, size=size), Path(folder))
    dist.destroy_process_group()


def _work(world: World, folder: Path) -> None:
    results = {
        "gradients": {case: _gradients(world, *case) for case in _cases()},
        "evaluation": [_evaluate(world, batch_size) for batch_size in (3, 100)],
        "probe": [_probe_and_retrieve(world, batch_size) for batch_size in (3, 100)],
        "analysis": _analyse(world, folder),
        "detection": [_detect(world, folder, batch_size) for batch_size in (3, 100)],
        "clusters": _cluster(world, folder / f"clusters{world.size}"),
        "phases": _phases(world, folder / f"phases{world.size}", Phased(), 3),
        **{name: _phases(world, folder / f"{name}{world.size}", method, 4) for name, method in BANKED.items()},
        "differing": _differing_memories(world, folder / f"differing{world.size}"),
        "lines": _train(world, folder / f"train{world.size}"),
    }
    buffers = {name: b for name, b in results["gradients"][_cases()[0]].items() if name.startswith("buffer")}
    torch.save({"results": results, "buffers": buffers}, folder / f"world{world.size}-rank{world.rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    folder = tmp_path_factory.mktemp("worlds")
    pairs(folder / "pairs", shards=1, per_shard=20, plan=dict.fromkeys((2, 5, 11), "number 7"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _work(World(), folder)
    torch.set_num_threads(threads)
    assert "tests.parity.toys" in sys.modules
    for size in (2, 4):
        multiprocessing.set_forkserver_preload(["torch", "open_clip", "scipy.stats", "sklearn.linear_model"])  # seconds a process
        mp.start_processes(_process, (size, str(folder)), nprocs=size, start_method="forkserver")
    return {
        size: [torch.load(folder / f"world{size}-rank{rank}.pt", weights_only=False) for rank in range(size)]
        for size in (1, 2, 4)
    } | {0: [folder]}  # type: ignore[dict-item]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", [case for case in _cases() if case[2] == 1], ids=lambda case: f"{case[0]}-{case[1]}")
def test_gradients_do_not_depend_on_the_number_of_processes(results, case, size):
    one, many = (results[n][0]["results"]["gradients"][case] for n in (1, size))
    assert one.keys() == many.keys() and "logit_scale" in one
    assert ("logit_bias" in one) == (case[1] == "siglip-published")
    assert any(name.startswith("buffer") for name in one) == (case[0] == "resnet")
    vanishing = [name for name, expected in one.items() if expected.norm() <= 1e-9]
    if case[1] == "roclip":  # its text tower has the gradient 0, but has one
        vanishing = [name for name in vanishing if name.startswith("visual.")]
        assert float(one["ln_final.weight"].norm()) == 0
    assert all(name.endswith("bias") for name in vanishing), vanishing
    for name, expected in one.items():
        error = (many[name] - expected).norm() / expected.norm().clamp_min(1e-30)
        if expected.norm() > 1e-9:  # the rest is rounding about an exact zero: a key's bias, what batch norm takes out
            assert error <= 1e-12, f"{name}: {error:.1e}"
        else:
            assert many[name].norm() < 1e-9, name


@pytest.mark.parametrize("objective", IN_PARTS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_encoding_in_parts_gives_the_same_gradient(results, size, objective):
    whole = results[1][0]["results"]["gradients"]["vit", objective, 1]
    parts = results[size][0]["results"]["gradients"]["vit", objective, 2]
    assert ("head.weight" in whole) == (objective == "clustering")
    for name, expected in whole.items():
        if expected.norm() > 1e-9:
            assert (parts[name] - expected).norm() / expected.norm() <= 1e-12, name


def test_embeddings_and_clusters_are_equal_bit_for_bit_on_all_ranks(results):
    first, *others = [rank["results"]["clusters"] for size in (1, 2, 4) for rank in results[size]]
    assert len(others) == 6 and len(first["features"]) == ToySet().count and len(set(first["clusters"].tolist())) == 6
    assert all(torch.equal(other[name], value) for other in others for name, value in first.items())


@pytest.mark.parametrize("size", [2, 4])
def test_phases_with_a_memory_and_an_order_of_their_own_do_not_depend_on_the_number_of_processes(results, size):
    one, many = (results[n][0]["results"]["phases"] for n in (1, size))
    assert one.keys() == many.keys() and all(one[f"epoch {epoch} train/loss"] for epoch in (1, 2, 3))
    for name, value in one.items():
        torch.testing.assert_close(torch.as_tensor(many[name]), torch.as_tensor(value), rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("method", BANKED)
def test_splits_banks_and_pools_do_not_depend_on_the_number_of_processes(results, method, size):
    one, many = (results[n][0]["results"][method] for n in (1, size))
    said = {"safeclip": "epoch 4 safeclip/rho", "roclip": "epoch 4 train/duplicates"}[method]
    assert one.keys() == many.keys() and said in one and any(name.startswith("memory.") for name in one)
    for name, value in one.items():
        torch.testing.assert_close(torch.as_tensor(many[name]), torch.as_tensor(value), rtol=1e-6, atol=1e-7, msg=name)


def test_memories_that_differ_between_ranks_are_refused(results):
    assert results[1][0]["results"]["differing"] == ""
    said = [rank["results"]["differing"] for size in (2, 4) for rank in results[size]]
    assert len(said) == 6 and all("memory of the objective Banked is not the same on all ranks" in one for one in said)


@pytest.mark.parametrize("size", [2, 4])
def test_running_statistics_are_equal_on_all_ranks(results, size):
    first, *others = (rank["buffers"] for rank in results[size])
    assert first and all(torch.equal(other[name], value) for other in others for name, value in first.items())


def test_counts_do_not_depend_on_processes_or_batch_size(results):
    measured = [m for size in (1, 2, 4) for rank in results[size] for m in rank["results"]["evaluation"]]
    assert len(measured) == 14 and all(m == measured[0] for m in measured)
    assert measured[0]["zeroshot/n"] == 23 and measured[0]["asr/n"] == 23 - len(range(2, 23, 4))


def test_probe_and_retrieval_do_not_depend_on_processes_or_batch_size(results):
    measured = [m for size in (1, 2, 4) for rank in results[size] for m in rank["results"]["probe"]]
    assert len(measured) == 14 and all(m == measured[0] for m in measured)
    assert measured[0]["probe/train_n"] == measured[0]["probe/n"] == measured[0]["retrieval/images"] == 23
    assert measured[0]["retrieval/captions"] == 23 + 2 * 11 and 0 < measured[0]["retrieval_asr/n"] < 23


@pytest.mark.parametrize("size", [2, 4])
def test_an_analysis_does_not_depend_on_the_number_of_processes(results, size):
    one = results[1][0]["results"]["analysis"]
    assert one["pairs/clean_n"] == 13 and one["pairs/poisoned_n"] == 3 and len(one["map/group"]) == 10
    for rank in results[size]:
        many = rank["results"]["analysis"]
        assert many.keys() == one.keys()
        for name, value in one.items():
            assert many[name] == pytest.approx(value, rel=1e-6, abs=2e-3 if name == "map/components" else 1e-6), name


def test_a_detection_does_not_depend_on_processes_or_batch_size(results):
    first, *others = [m for size in (1, 2, 4) for rank in results[size] for m in rank["results"]["detection"]]
    assert first["detect/slof_m7_k3/n"] == 20 and first["detect/slof_m7_k3/victims"] == 3 and "detect/lorex_m7_trusted5/auroc" in first
    assert len(others) == 13 and all(other == pytest.approx(first, rel=1e-9) for other in others)


@pytest.mark.parametrize("size", [2, 4])
def test_training_reports_the_same_on_rank_0_alone(results, size):
    one, many = results[1][0]["results"]["lines"], results[size][0]["results"]["lines"]
    assert [line["epoch"] for line in many] == [0, 1, 2]
    assert all(rank["results"]["lines"] == [] for rank in results[size][1:])
    for a, b in zip(one[1:], many[1:]):
        for name in ("train/loss", "train/mmcl", "train/inmodal", "train/lr", "train/logit_scale"):
            assert a["metrics"][name] == pytest.approx(b["metrics"][name], rel=1e-9), name
    folder = results[0][0]
    assert (folder / f"train{size}" / "ledger.jsonl").read_text() == (folder / "train1" / "ledger.jsonl").read_text()


def test_gathering_without_gradient_would_fail_this_file():
    """The flaw that the tests above are for, shown on one matrix: dropping the other ranks' columns changes the gradient."""
    feature_ND = torch.nn.functional.normalize(torch.randn(8, 4, dtype=torch.float64), dim=-1)

    def gradient(detach: bool) -> torch.Tensor:
        x = feature_ND.clone().requires_grad_()
        keys = torch.cat([x[:4], x[4:].detach()]) if detach else x
        torch.nn.functional.cross_entropy(x[:4] @ keys.T, torch.arange(4)).backward()
        return x.grad

    assert not torch.allclose(gradient(True), gradient(False))
