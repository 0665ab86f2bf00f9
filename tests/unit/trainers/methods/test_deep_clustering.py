"""Deep clustering: k-means against its definition, clusters that outlast a kill, a head that is no part of the model."""

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from datasets.errors import InputError
from datasets.seeding import rng
from orchestrator.experiment.override import override_all
from orchestrator.stages.graph import stages
from sweeps.quickstart import BASE
from tests.parity.toys import RESNET, ToySet, resnet
from trainers import schedule
from trainers.loop import fit
from trainers.methods.base import Run
from trainers.methods.deep_clustering import DeepClustering, embed
from trainers.methods.kmeans import spherical_kmeans
from trainers.methods.shrink_perturb import ShrinkPerturb
from trainers.schedule import Training

METHOD = DeepClustering(clusters=5, iterations=10)


def unit(array):
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def blobs(n=600, k=7, d=12, spread=0.6):
    draw = rng("blobs")
    middle = draw.normal(size=(k, d))
    return unit(middle[draw.integers(k, size=n)] + spread * draw.normal(size=(n, d)))


def reference(points, k, iterations, draw):
    """Spherical k-means from its definition, in numpy's float64."""
    centroids = points[np.sort(draw.choice(len(points), k, replace=False))]
    for _ in range(iterations):
        cosines = points @ centroids.T
        nearest = cosines.argmax(1)
        worst = list(np.argsort(cosines.max(1), kind="stable"))
        sums = np.stack([points[nearest == i].sum(0) if (nearest == i).any() else points[worst.pop(0)] for i in range(k)])
        centroids = unit(sums)
    return (points @ centroids.T).argmax(1), centroids


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_kmeans_is_the_definition(iterations):
    points = blobs()
    labels, centroids = spherical_kmeans(torch.from_numpy(points), 25, iterations, rng("start"))
    expected, middles = reference(points, 25, iterations, rng("start"))
    assert labels.tolist() == expected.tolist()
    np.testing.assert_allclose(centroids.numpy(), middles, rtol=1e-10, atol=1e-12)
    single, _ = spherical_kmeans(torch.from_numpy(points).float(), 25, iterations, rng("start"))
    assert (single.numpy() == expected).mean() > 0.99


def test_kmeans_fills_empty_clusters_with_the_farthest_points():
    points = np.repeat(unit(rng("few").normal(size=(6, 4))), [95, 1, 1, 1, 1, 1], axis=0)
    labels, centroids = spherical_kmeans(torch.from_numpy(points), 6, 20, rng("start"))
    assert len(set(labels.tolist())) == 6, "it starts from copies of one point, and still finds the six"
    expected, middles = reference(points, 6, 20, rng("start"))
    assert labels.tolist() == expected.tolist()
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(6, dtype=torch.float64))


def training(**fields):
    return Training(**{"epochs": 2, "batch_size": 8, "lr": 1e-3, "warmup_steps": 1, **fields})


def cleaned(folder, method=METHOD, feed=None, **fields):
    feed, lines = feed or ToySet(), []

    def train(model, objective, phase):
        fit(model, objective, training(**fields), feed, folder, report=lines.append, begin_epoch=phase.begin_epoch)

    return method.train(resnet(), run(train, feed, folder)), lines


def run(train, feed, folder=None):
    return Run(trainer=train, training=training(seed=3), fresh=lambda: RESNET.build(77), pairs=feed.pairs, folder=folder)


@pytest.mark.parametrize("stop_at", [4, 5, 6, 7, 11])
@pytest.mark.parametrize("every", [None, 2])
def test_a_kill_changes_nothing(tmp_path, stop_at, every):
    whole, lines = cleaned(tmp_path / "whole", checkpoint_every_steps=every)
    with pytest.raises(KeyboardInterrupt):
        cleaned(tmp_path / "cut", feed=ToySet(stop_at=stop_at), checkpoint_every_steps=every)
    resumed, more = cleaned(tmp_path / "cut", checkpoint_every_steps=every)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert {k: v for k, v in more[-1]["metrics"].items() if "second" not in k} == {
        k: v for k, v in lines[-1]["metrics"].items() if "second" not in k}


def test_after_a_kill_the_epochs_clusters_are_read_and_not_made_from_the_changed_model(tmp_path):
    def stopped(step):
        with pytest.raises(KeyboardInterrupt):
            cleaned(tmp_path, feed=ToySet(stop_at=step), checkpoint_every_steps=2)

    stopped(5)
    file = tmp_path / "epochs" / "epoch_0000.safetensors"
    before = file.stat().st_mtime_ns, load_file(file)["target"].tolist()
    assert len(before[1]) == ToySet().count and set(before[1]) == set(range(5))
    feed = ToySet(stop_at=5)
    feed.pairs = lambda: pytest.fail("embedded again")  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cleaned(tmp_path, feed=feed, checkpoint_every_steps=4)
    assert (file.stat().st_mtime_ns, load_file(file)["target"].tolist()) == before
    cleaned(tmp_path)
    assert sorted(path.name for path in file.parent.iterdir()) == ["epoch_0000.safetensors", "epoch_0001.safetensors"]


def test_the_head_is_trained_drawn_anew_and_kept_out_of_the_model(tmp_path):
    heads = []

    class Watched(ToySet):
        def batches(self, *steps):
            for batch in super().batches(*steps):
                yield batch
                heads.append(model.head.weight.detach().clone())

    feed = Watched()
    model = resnet()

    def train(encoder, objective, phase):
        fit(encoder, objective, training(), feed, tmp_path, begin_epoch=phase.begin_epoch)

    METHOD.train(model, run(train, feed, tmp_path))
    steps = [float((a - b).norm()) for a, b in zip(heads[1:], heads)]
    assert steps[5] > 5 * max(steps[:5]) and 0.007 < float(heads[6].std()) < 0.014, "a new head at the start of an epoch"
    assert heads[-1].shape == (5, 16)

    folder = tmp_path / "epoch_0002"
    weights = load_file(folder / "open_clip_model.safetensors")
    assert weights.keys() == resnet().model.state_dict().keys()
    torch.testing.assert_close(load_file(folder / "state.safetensors")["value.head.weight"], model.head.weight.detach())
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    open_clip.CLIP(**config).load_state_dict(weights)


def test_no_weight_decay_on_the_head():
    model = resnet()
    model.draw_head(5, rng(0))
    with_decay, without = (group["params"] for group in schedule.optimizer(model, training()).param_groups)
    assert all(any(p is q for q in without) for p in model.head.parameters()) and len(with_decay) > 3


def test_embedding_is_in_evaluation_mode_and_leaves_the_model_as_it_was():
    model, feed = resnet().train(), ToySet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = embed(model, run(lambda *_: None, feed))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        expected = model.eval().encode_image(torch.from_numpy(feed.samples["image"]))
    torch.testing.assert_close(features, expected)


def test_more_clusters_than_pairs_are_refused_also_behind_another_method():
    for method in (DeepClustering(clusters=2001), ShrinkPerturb(then=DeepClustering(clusters=2001))):
        with pytest.raises(InputError, match="clusters is 2001, more than the 2000 pairs"):
            stages(override_all(BASE, {"clean.method": method}))
    stages(override_all(BASE, {"clean.method": DeepClustering(clusters=2000)}))
    with pytest.raises(InputError, match="DeepClustering.clusters is 1; "):
        DeepClustering(clusters=1)
    with pytest.raises(InputError, match=r"DeepClustering.weight is 0; accepted: a number \(above 0\)"):
        DeepClustering(weight=0)
