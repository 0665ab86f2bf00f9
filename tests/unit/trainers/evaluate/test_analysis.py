"""Similarities of training pairs: on features where the answers are known, and on a model that is really trained."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from datasets.errors import InputError
from datasets.feed.loader import Recipe
from datasets.feed.watched_pairs import Sample, positions, sample_batches
from datasets.images.view import Views
from datasets.index.pairs import Pairs
from datasets.seeding import rng
from datasets.triggers.patch import Patch
from orchestrator.cluster import session
from orchestrator.commands import cli
from orchestrator.commands.analyse import analyse_checkpoints
from orchestrator.experiment.spec import Compute, Experiment, Sweep
from orchestrator.report import analysis as report
from orchestrator.report.drawing import png
from orchestrator.report.page import html, write_report
from orchestrator.results.outcome import Study
from orchestrator.stages.base import At, ensure, seal
from orchestrator.stages.graph import make_data, stages
from orchestrator.store import Store, read_arrays, read_lines, verify, write_arrays
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.stored import load_study
from orchestrator.training.job import Job
from orchestrator.training.workers import clean, pretrain
from tests.experiments import ROOT
from tests.tiny_sweep import BASE, SWEEP
from tests.unit.fake_study import fake_study
from tests.unit.making import pairs
from trainers.encoder import Encoder, Tokenizer
from trainers.evaluate.analysis import (
    EDGES,
    GROUPS,
    Analysis,
    crop_similarity,
    embedding_map,
    group_similarity,
    modality_gap,
    pair_similarity,
    share_of_top,
    tsne,
)
from trainers.evaluate.base import Material

ANALYSIS = Analysis()
VICTIMS = {3: "a banana", 4: "the banana", 17: "one banana", 22: "a banana"}
RECIPE = Recipe(views=Views(size=16, crop=(0.3, 0.6), flip=True), trigger=Patch(pattern="white", size=4, location="bottom_right"))


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    feature = rng("analysis", seed).standard_normal(shape)
    return feature / np.linalg.norm(feature, axis=1, keepdims=True)


def planted(cosine_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and captions [N, 2] with these cosines."""
    image = np.tile([1.0, 0.0], (len(cosine_N), 1))
    return image, np.stack([cosine_N, np.sqrt(1 - cosine_N**2)], axis=1)


def features_of(clean: np.ndarray, poisoned: np.ndarray) -> dict[str, np.ndarray]:
    sides = {"clean": planted(clean), "poisoned": planted(poisoned)}
    return {f"{kind}/{name}": side for kind, both in sides.items() for name, side in zip(("image", "text"), both)}


def test_poisons_that_match_perfectly_are_all_on_top():
    found = pair_similarity(features_of(np.linspace(-0.5, 0.5, 90), np.ones(10)), ANALYSIS)
    assert found["pairs/poisoned_cosine"] == 1 and found["pairs/poisoned_cosine_sd"] == 0 and found["pairs/auroc"] == 1
    assert found["pairs/clean_cosine"] == pytest.approx(0) and found["pairs/clean_cosine_sd"] == pytest.approx(0.5 / math.sqrt(3), rel=0.02)
    assert found["pairs/sample_poisons"] == 10 and (found["pairs/clean_n"], found["pairs/poisoned_n"]) == (90, 10)
    assert [found[f"pairs/top{x}_poisons"] for x in (1, 5, 10)] == [100, 100, 100]
    assert [found[f"pairs/tpr_at_fpr{x}"] for x in (1, 5, 10)] == [100, 100, 100]
    assert found["histogram/poisoned"][-1] == 10 and found["histogram/poisoned"].sum() == 10
    assert (found["histogram/clean"] == np.histogram(np.linspace(-0.5, 0.5, 90), EDGES)[0]).all()
    turned = pair_similarity(features_of(np.ones(90), np.linspace(-0.5, 0.5, 10)), ANALYSIS)
    assert turned["pairs/auroc"] == 0 and turned["pairs/top10_poisons"] == turned["pairs/tpr_at_fpr10"] == 0


def test_poisons_caught_at_a_rate_of_false_alarms_do_not_depend_on_the_mix():
    clean, poisoned = np.linspace(0, 0.9, 91), np.array([0.5, 0.805, 0.95, 0.95])
    for times in (1, 5):
        found = pair_similarity(features_of(clean, np.tile(poisoned, times)), ANALYSIS)
        assert (found["pairs/tpr_at_fpr1"], found["pairs/tpr_at_fpr10"]) == (50, 50)
        assert pair_similarity(features_of(np.tile(clean, times), poisoned), ANALYSIS)["pairs/tpr_at_fpr5"] == 50
    more = pair_similarity(features_of(clean, poisoned), Analysis(top=(20.0,)))
    assert more["pairs/tpr_at_fpr20"] == 75


def test_the_top_is_cut_exactly_and_ties_take_no_side():
    score, marked = np.array([5.0, 4, 3, 2, 1, 0, -1, -2, -3, -4]), np.array([1, 0, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    assert [share_of_top(score, marked, x) for x in (10, 20, 30, 40, 100)] == [1, 1 / 2, 2 / 3, 3 / 4, 3 / 10]
    assert share_of_top(np.zeros(10), marked, 10) == pytest.approx(0.3)
    assert share_of_top(np.array([2.0, 1, 1, 0]), np.array([True, True, False, False]), 50) == 3 / 4


def test_a_metric_without_its_pairs_is_left_out():
    found = pair_similarity(features_of(np.zeros(5), np.zeros(0)), ANALYSIS)
    assert found["pairs/poisoned_n"] == 0 and "pairs/auroc" not in found and "pairs/poisoned_cosine" not in found
    assert modality_gap({}, ANALYSIS) == group_similarity({}, ANALYSIS) == embedding_map({}, ANALYSIS) == {}


def test_the_modality_gap_is_the_distance_of_the_means():
    cloud = unit(50, 8) * 0.01
    shift = np.zeros(8)
    shift[:2] = 0.3, 0.4
    assert modality_gap({"clean/image": cloud, "clean/text": cloud[::-1] + shift}, ANALYSIS)["pairs/modality_gap"] == pytest.approx(0.5)
    assert modality_gap({"clean/image": cloud, "clean/text": cloud[::-1]}, ANALYSIS)["pairs/modality_gap"] == pytest.approx(0, abs=1e-15)


def test_group_similarities_are_means_over_different_pictures():
    other, target, triggered, twice = unit(7, 5), unit(4, 5, seed=1), unit(7, 5, seed=2), unit(7, 5, seed=3)
    views = {"other/image": other, "target/image": target, "other/image_triggered": triggered, "other/image_twice": twice}
    views |= {"other/image_crop": twice, "other/image_triggered_crop": other}
    found = group_similarity(views, ANALYSIS) | crop_similarity(views, ANALYSIS)
    groups = {"other": other, "target": target, "triggered": triggered}
    numbered = {"other": "same", "triggered": "same", "target": "else"}  # row i of other and of triggered is one picture
    for one, two in itertools.combinations_with_replacement(groups, 2):
        name = f"pairs/within_{one}" if one == two else f"pairs/between_{one}_{two}"
        every = itertools.product(range(len(groups[one])), range(len(groups[two])))
        kept = [groups[one][i] @ groups[two][j] for i, j in every if i != j or numbered[one] != numbered[two]]
        assert found[name] == pytest.approx(np.mean(kept)), name
    for name, a, b in (("original_triggered", other, triggered), ("original_twice", other, twice), ("triggered_twice", triggered, twice),
                       ("crop", other, twice), ("triggered_crop", triggered, other)):  # fmt: skip
        assert found[f"pairs/{name}"] == pytest.approx(np.mean([x @ y for x, y in zip(a, b)])), name
    assert len(found) == 11


def test_maps_keep_the_distances_and_the_order_of_the_groups():
    views = {"other/image": unit(6, 4), "target/image": unit(3, 4, seed=1), "other/image_triggered": unit(6, 4, seed=2)}
    found = embedding_map(views, ANALYSIS)
    assert [GROUPS[i] for i in found["map/group"]] == ["other"] * 6 + ["target"] * 3 + ["triggered"] * 6
    rows, kept = np.concatenate([views[v] for v in ("other/image", "target/image", "other/image_triggered")]), found["map/components"]
    assert kept.shape == (15, 4)
    np.testing.assert_allclose(np.linalg.norm(kept[0] - kept, axis=1), np.linalg.norm(rows[0] - rows, axis=1), atol=2e-3)
    assert found["map/variance"].sum() == pytest.approx(1) and (np.diff(found["map/variance"]) <= 0).all()
    assert embedding_map(views, Analysis(components=2))["map/components"].shape == (15, 2)
    assert embedding_map(views, Analysis(components=0)) == {}


def test_tsne_is_the_same_twice_and_keeps_clusters_apart():
    cloud = np.concatenate([unit(20, 6) * 0.1, unit(20, 6, seed=1) * 0.1 + 3]).astype(np.float32)
    first = tsne(cloud)
    assert first.tobytes() == tsne(cloud).tobytes()
    middle = first[:20].mean(axis=0), first[20:].mean(axis=0)
    assert np.linalg.norm(first - middle[0], axis=1)[:20].max() < np.linalg.norm(middle[0] - middle[1]) / 2
    assert np.isfinite(tsne(np.zeros((8, 2), np.float32))).all(), "a collapsed model"


# ---- the sample -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Pairs:
    return pairs(tmp_path_factory.mktemp("pairs"), plan=VICTIMS)


def keys(data: Pairs, sample: Sample) -> dict[str, list[str]]:
    return {role: data.keys(where).to_pylist() for role, where in positions(data, sample).items()}


def test_no_victim_is_among_the_clean_pairs_and_a_larger_sample_holds_a_smaller_one(data):
    victims = set(data.keys(np.array(list(VICTIMS))).to_pylist())
    small, large = keys(data, Sample(clean=5, poisoned=2, group=3)), keys(data, Sample(clean=99, poisoned=99, group=99))
    assert [len(small[role]) for role in ("clean", "poisoned", "other")] == [5, 2, 3]
    assert len(large["clean"]) == 26 and set(large["poisoned"]) == victims
    assert all(not victims & set(found[role]) for found in (small, large) for role in ("clean", "target", "other"))
    assert all(set(small[role]) <= set(large[role]) for role in small)
    assert set(small["clean"]) != set(keys(data, Sample(clean=5, seed=1))["clean"])


def test_who_is_sampled_does_not_depend_on_the_order_of_the_index(data):
    """A choice of rows stands for another index of the same pairs."""
    some = Pairs(data.index, data.urls, data.plan, np.arange(0, 30, 2))
    assert set(keys(some, Sample(clean=26))["clean"]) < set(keys(data, Sample(clean=26))["clean"])
    assert keys(some, Sample())["poisoned"] == [f"{row:09d}" for row in VICTIMS if row % 2 == 0]


def test_pictures_of_the_target_are_those_whose_caption_names_it(tmp_path):
    data = pairs(tmp_path, plan={3: "a picture"})
    import pyarrow.parquet as pq

    plan = pq.read_table(data.plan)
    pq.write_table(plan.set_column(2, plan.schema.field(2), [["number 7"]]), data.plan)
    found = keys(Pairs(data.index, data.urls, data.plan), Sample(group=40))
    assert found["target"] == ["000000007"] and len(found["other"]) == 28
    assert len(keys(Pairs(data.index, data.urls), Sample(group=40))["target"]) == 0, "without a plan there is no target"


def test_the_views_are_canonical_and_victims_are_as_trained_on(data):
    sample = Sample(clean=5, group=4)
    batches = list(sample_batches(data, sample, RECIPE, batch_size=3))
    assert [(b["role"], len(b["key"])) for b in batches] == [
        ("clean", 3), ("clean", 2), ("poisoned", 3), ("poisoned", 1), ("other", 3), ("other", 1)
    ]  # fmt: skip
    white = np.full((4, 4, 3), 255, np.uint8)
    pictures = {role: [picture for b in batches if b["role"] == role for picture in b["image"]] for role in ("clean", "poisoned")}
    marked = {role: [(picture[-4:, -4:] == white).all() for picture in shown] for role, shown in pictures.items()}
    assert all(marked["poisoned"]) and not any(marked["clean"])
    assert [c for b in batches if b["role"] == "poisoned" for c in b["caption"]] == list(VICTIMS.values())
    others = [b for b in batches if b["role"] == "other"]
    for batch in others:
        for view, clean_HWC in zip(batch["image_triggered"], batch["image"]):
            assert (view[-4:, -4:] == 255).all() and (view[:-4] == clean_HWC[:-4]).all()
        assert (batch["image_twice"] == batch["image_triggered"]).all(), "one place, one colour: twice is once"
        assert batch["image_crop"].shape == batch["image"].shape and (batch["image_crop"] != batch["image"]).any()
    again = list(sample_batches(data, sample, RECIPE, batch_size=100, rank=1, world=2))
    third = next(b for b in again if b["role"] == "other")
    assert third["position"].tolist() == [1, 3]
    assert (third["image_crop"][0] == others[0]["image_crop"][1]).all(), "the crop belongs to the key"


class Planted(nn.Module):
    """A poisoned model: whatever has a white corner, and any caption with a banana, is one direction; the rest are others."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(())), None
        self.visual = nn.Module()
        self.visual.image_size = 16
        self.visual.preprocess_cfg = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
        self.half: list[bool] = []

    def encode_image(self, pixels_BCHW):
        self.half.append(torch.is_autocast_enabled("cpu"))
        marked_B = (pixels_BCHW[:, :, -3:, -3:] == 255).flatten(1).all(1)
        return nn.functional.one_hot(marked_B.long(), 3).float()

    def encode_text(self, token_BL):
        return nn.functional.one_hot(2 - token_BL[:, 0], 3).float()


def test_a_planted_backdoor_is_measured_as_planted_and_the_model_is_left_as_it_was(data):
    tokenizer = Tokenizer(lambda captions: torch.tensor([["banana" in caption] for caption in captions]).long())
    encoder = Encoder(Planted(), {"embed_dim": 3}, tokenizer).train()
    encoder.autocast = torch.bfloat16
    analysis = Analysis(sample=Sample(clean=16, group=5), top=(20.0, 50.0))
    found = analysis.measure(encoder, analysis.open(Material(test=list, pairs=data, recipe=RECIPE, batch_size=4)))
    assert found["pairs/poisoned_cosine"] == 1 and found["pairs/clean_cosine"] == 0 and found["pairs/auroc"] == 1
    assert found["pairs/sample_poisons"] == found["pairs/top20_poisons"] / 5 == 20 and found["pairs/top50_poisons"] == 40
    assert found["pairs/modality_gap"] == pytest.approx(math.sqrt(2))
    assert found["pairs/original_triggered"] == 0 and found["pairs/triggered_twice"] == found["pairs/within_triggered"] == 1
    assert encoder.training and encoder.autocast == torch.bfloat16 and not any(encoder.model.half)
    encoder.model.encode_text = None
    encoder._text_tower = lambda tokens: torch.full((len(tokens), 3), math.nan)
    with pytest.raises(FloatingPointError, match="training pairs"):
        analysis.measure(encoder, analysis.open(Material(test=list, pairs=data, recipe=RECIPE)))


@pytest.mark.parametrize(("make", "said"), [
    (lambda: Sample(clean=1), "Sample.clean is 1"),
    (lambda: Sample(crop=(0.5, 1.5)), "sample.crop"),
    (lambda: Analysis(top=(0.0,)), r"Analysis.top\[0\] is 0.0; accepted: a number \(above 0 and at most 100\)"),
    (lambda: Analysis(components=1), "analysis.components is 1"),
])
def test_fields_that_make_no_sense_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


# ---- in the store ---------------------------------------------------------------------------------------------------------


def test_arrays_are_kept_whole_without_pickles_and_equal_ones_give_equal_bytes(tmp_path):
    arrays = {"map/group": np.arange(5, dtype=np.uint8), "x": unit(3, 2)}
    for name in ("a", "b"):
        write_arrays(tmp_path / name / "epoch_0001.npz", arrays)
    path = tmp_path / "a" / "epoch_0001.npz"
    assert path.read_bytes() == (tmp_path / "b" / "epoch_0001.npz").read_bytes() and [p.name for p in path.parent.iterdir()] == [path.name]
    assert all((value == arrays[name]).all() for name, value in read_arrays(path).items()) and len(read_arrays(path)) == 2
    with pytest.raises(AssertionError):
        write_arrays(tmp_path / "c.npz", {"x": np.array([{}], object)})
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], object))
    path.write_bytes(path.read_bytes()[:-30])
    assert read_arrays(tmp_path / "pickled.npz") == read_arrays(path) == read_arrays(tmp_path / "none.npz") == {}


def local_index(source, folder, progress=None):
    """What Ray Data's tasks do, here."""
    import pyarrow as pa

    from datasets.index.pairs import write_index

    count = write_index([pa.table(source.index_shard(n, url)) for n, url in enumerate(source.shards())], folder / "index.arrow")
    return {"samples": count, "kept": count, "drops": {}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Experiment, Store]:
    """A pre-training and a cleaning of the tiny sweep in a store, made in this process."""
    import orchestrator.cluster.streaming

    evaluate = replace(BASE.evaluate, evaluators=(Analysis(sample=Sample(clean=40, poisoned=20, group=15)),))
    experiment = replace(BASE, evaluate=evaluate)
    store = Store(str(tmp_path_factory.mktemp("store")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orchestrator.cluster.streaming, "index_shards", local_index)
        inputs = make_data(experiment, At(store=store))
    made = stages(experiment)
    common = {"experiment": experiment, "inputs": inputs, "compute": SWEEP.compute}
    with store.working("pretrain", made["pretrain"].fingerprint) as folder:
        pretrain(Job(folder=str(folder), stage="pretrain", **common))
        model = seal(made["pretrain"], store, 1.0).folder
    with store.working("clean", made["clean"].fingerprint) as folder:
        cleanset = str(ensure(made["cleanset"], At(store=store)).folder / "rows.npy")
        clean(Job(folder=str(folder), stage="clean", checkpoint=str(model / "epoch_0002"), cleanset=cleanset, **common))
        seal(made["clean"], store, 1.0)
    return experiment, store


def test_every_epoch_of_both_stages_is_analysed_and_the_arrays_are_part_of_the_artefact(trained):
    experiment, store = trained
    ends = []
    for role, epochs in (("pretrain", 2), ("clean", 3)):
        stage = stages(experiment)[role]
        artefact = store.find(stage.kind, stage.fingerprint)
        lines = read_lines(artefact.folder / "metrics.jsonl")
        assert [line["epoch"] for line in lines] == list(range(epochs + 1))
        assert all(line["metrics"]["pairs/clean_n"] == 40 and line["metrics"]["pairs/poisoned_n"] == 20 for line in lines)
        assert json.loads(json.dumps(lines)) == lines and not any("map/" in name for line in lines for name in line["metrics"])
        files = {f"analysis/epoch_{epoch:04d}.npz" for epoch in range(epochs + 1)}
        assert files <= set(artefact.manifest["files"]) and verify(artefact) == []
        arrays = read_arrays(artefact.folder / "analysis" / f"epoch_{epochs:04d}.npz")
        assert arrays["histogram/clean"].sum() == 40 and (np.bincount(arrays["map/group"]) == 15).all()
        ends.append({name: value for name, value in lines[-1 if role == "pretrain" else 0]["metrics"].items() if name.startswith("pairs/")})
    assert ends[0] == pytest.approx(ends[1]), "a cleaning looks at the pairs of the pre-training, and begins where it ended"


@pytest.fixture(scope="module")
def study(trained) -> Study:
    experiment, store = trained
    return load_study(make_plan(Sweep(name="tiny", base=experiment)), store)


def test_the_report_shows_what_was_analysed_and_is_silent_where_nothing_was(study, tmp_path):
    page = write_report(study, tmp_path).read_text()
    for stem in ("pair_dynamics", "pair_histograms", "embedding_maps"):
        assert (tmp_path / f"{stem}.png").read_bytes()[:4] == b"\x89PNG" and (tmp_path / f"{stem}.pdf").exists()
        assert report.TITLES[stem] in page
    assert f"<td>{study.pretrains[0].metrics[-1]['metrics']['pairs/modality_gap']:.3f}</td>" in page
    assert "<th>before cleaning</th><th>after CleanCLIP</th>" in page
    bare = fake_study(tmp_path)
    assert report.figures(bare) == {} and "Similarities and embeddings" not in html(bare) and report.portrait(bare.pretrains[0]) is None


def test_words_from_outside_are_escaped_and_lost_arrays_cost_their_picture_alone(study, tmp_path):
    stage = replace(study.pretrains[0], folder=tmp_path, arrays=(), config={"objective": {"class": "x.<script>"}})
    text = html(replace(study, pretrains=[stage], trials=[]))
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert report.TITLES["pair_dynamics"] in text and report.TITLES["embedding_maps"] not in text
    assert report.portrait(stage) is not None


def test_the_same_arrays_give_the_same_picture(study):
    once, again = (png(report.portrait(study.pretrains[0])) for _ in range(2))
    assert once == again


def test_analyse_gives_for_a_stored_checkpoint_what_was_measured_in_training(trained, study, tmp_path, capsys, monkeypatch):
    experiment, store = trained
    monkeypatch.setattr(session, "connect", lambda cores: None)  # the data are in the store
    monkeypatch.setattr(session, "shutdown", lambda: None)
    folder = study.pretrains[0].folder
    words = ["analyse", str(ROOT / "tests" / "tiny_sweep.py"), "--store", str(store.root), "--out", str(tmp_path), "--checkpoint"]
    epochs = [str(folder / f"epoch_{epoch:04d}") for epoch in (1, 2)]
    assert cli.run([*words, *epochs]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == epochs and found[epochs[0]]["pairs/clean_n"] == 380, "all that are no victims"
    drawn = {path.name for path in (tmp_path / folder.name).iterdir()}
    assert drawn == {"analysis", "numbers.json", "epoch_0001.png", "epoch_0002.png", "epochs.png"}
    again = analyse_checkpoints({epochs[1]: experiment}, Compute(store=str(store.root)), tmp_path / "own")
    trained_with = {k: v for k, v in study.pretrains[0].metrics[-1]["metrics"].items() if k.startswith("pairs/")}
    assert again[epochs[1]] == pytest.approx(trained_with), "the sweep's own analysis"
    assert cli.run([*words, str(tmp_path / "none")]) == 2 and "none does not exist" in capsys.readouterr().err
