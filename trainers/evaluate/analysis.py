"""How a model sees its training pairs: similarity of clean and of poisoned pairs, groups of pictures, crops, the modality gap.

`Analysis` embeds a sample once and passes the features of all ranks to plain functions of arrays, one per question. To ask another
question, add a function to `QUESTIONS`. Shape suffixes: N samples, M others, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Interval

from datasets.component import Natural
from datasets.errors import InputError
from datasets.feed.loader import Batch
from datasets.feed.watched_pairs import Sample, sample_batches
from trainers import distributed
from trainers.batch import image_tensor
from trainers.distributed import World
from trainers.evaluate.base import Evaluator, Material

if TYPE_CHECKING:
    from trainers.encoder import Encoder

Features = Mapping[str, np.ndarray]
"""`role/view` → float64 [N, D], unit rows in the sample's order. Views that the sample lacks are left out."""
Values = dict[str, float | np.ndarray]

EDGES = np.linspace(-1, 1, 101)
"""Bin edges of the histograms of cosines."""
GROUPS = ("other", "target", "triggered")
"""Names of the numbers in `map/group`: pictures without the target, pictures of the target, and the former with the trigger."""


@dataclass(frozen=True, kw_only=True)
class Analysis(Evaluator):
    """How a model sees a sample of its pre-training pairs, clean and poisoned. All metrics are under pairs/.

    Cosines, their standard deviations (`…_sd`), the area under the ROC curve and the modality gap are plain numbers; shares are in percent.
    Computed in fp32 or better, whatever the training's precision.
    """

    sample: Sample = field(default_factory=Sample)
    """which pairs to look at"""
    top: tuple[Annotated[float, Interval(gt=0, le=100)], ...] = (1.0, 5.0, 10.0)
    """percentages: poisons are counted among the most similar pairs, this percent of all; tpr_at_fpr takes them as percent of the clean
    pairs"""
    components: Natural = 50
    """how many principal components of the pictures' features to keep for maps; 0: none"""

    def __post_init__(self) -> None:
        if self.components == 1:
            raise InputError(f"analysis.components is {self.components}; at least 2, or 0 for no map.")

    def open(self, material: Material) -> Iterable[Batch]:
        world = material.world
        return sample_batches(material.pairs, self.sample, material.recipe, material.batch_size, world.rank, world.size)

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> Values:
        """Metrics as named in docs/metrics.md; a metric whose pairs the sample lacks is left out. FloatingPointError if features are not
        finite."""
        features = embed(model, batches, world or World())
        return {name: value for question in QUESTIONS for name, value in question(features, self).items()}


def embed(model: Encoder, batches: Iterable[dict[str, Any]], world: World) -> dict[str, np.ndarray]:
    """The features of all ranks, on every rank. The model is left unchanged."""
    parts: list[tuple[str, np.ndarray, np.ndarray]] = []
    with looking(model):
        for batch in batches:
            views = {name: model.encode_image(image_tensor(batch[name], model.device)) for name in batch if name.startswith("image")}
            if "caption" in batch:
                views["text"] = model.encode_text(model.tokenize(list(batch["caption"])).to(model.device))
            parts += [(f"{batch['role']}/{name}", batch["position"], value.cpu().numpy()) for name, value in views.items()]
    by_view: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, position_B, feature_BD in distributed.gather_lists(parts, world):
        by_view.setdefault(name, []).append((position_B, feature_BD))
    features = {}
    for name, pieces in by_view.items():
        feature_ND = np.concatenate([feature_BD for _, feature_BD in pieces]).astype(np.float64)
        if not np.isfinite(feature_ND).all():
            raise FloatingPointError("the model's features of training pairs are not finite")
        features[name] = feature_ND[np.argsort(np.concatenate([position_B for position_B, _ in pieces]))]
    return features


@contextmanager
def looking(model: Encoder) -> Iterator[None]:
    """Within the block the model is in evaluation mode, without gradients, in fp32 or better. Afterwards it is as before."""
    import torch
    import torch.backends.cudnn

    training, autocast = model.training, model.autocast
    model.eval()
    model.autocast = None
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        model.autocast = autocast
        model.train(training)


def pair_similarity(features: Features, analysis: Analysis) -> Values:
    """Cosine of picture and caption for clean and for poisoned pairs, how well it separates them, and its histograms."""
    values: Values = {}
    cosines = {kind: _rowwise(features, f"{kind}/image", f"{kind}/text") for kind in ("clean", "poisoned")}
    for kind, cosine_N in cosines.items():
        values[f"pairs/{kind}_n"] = len(cosine_N)
        if len(cosine_N):
            values |= {f"pairs/{kind}_cosine": cosine_N.mean(), f"pairs/{kind}_cosine_sd": cosine_N.std()}
        values[f"histogram/{kind}"] = np.histogram(cosine_N.clip(-1, 1), EDGES)[0]
    if all(map(len, cosines.values())):
        from sklearn.metrics import roc_auc_score

        cosine_N = np.concatenate(list(cosines.values()))
        poisoned_N = np.repeat([False, True], [len(c) for c in cosines.values()])
        values["pairs/auroc"] = float(roc_auc_score(poisoned_N, cosine_N))
        values["pairs/sample_poisons"] = 100 * float(poisoned_N.mean())
        for percent in analysis.top:
            values[f"pairs/top{percent:g}_poisons"] = 100 * share_of_top(cosine_N, poisoned_N, percent)
            threshold = np.quantile(cosines["clean"], 1 - percent / 100, method="higher")
            values[f"pairs/tpr_at_fpr{percent:g}"] = 100 * float((cosines["poisoned"] > threshold).mean())
    return values


def share_of_top(score_N: np.ndarray, marked_N: np.ndarray, percent: float) -> float:
    """Share (0 … 1) of marked items among the top `percent` by score. Items tied at the edge count as the mean over all ways to cut
    them."""
    count = max(1, round(len(score_N) * percent / 100))
    edge = np.sort(score_N)[-count]
    above_N, tied_N = score_N > edge, score_N == edge
    return float((marked_N[above_N].sum() + (count - above_N.sum()) * marked_N[tied_N].mean()) / count)


def modality_gap(features: Features, analysis: Analysis) -> Values:
    """‖mean(I) − mean(T)‖ of the clean pairs' unit features (Liang et al. 2022, "Mind the gap", section 2)."""
    if "clean/image" not in features:
        return {}
    return {"pairs/modality_gap": float(np.linalg.norm(features["clean/image"].mean(axis=0) - features["clean/text"].mean(axis=0)))}


def group_similarity(features: Features, analysis: Analysis) -> Values:
    """Mean cosine of different pictures within and between the groups, and of a picture with itself without, with one and with two
    triggers."""
    groups = _groups(features)
    values: Values = {}
    for name, feature_ND in groups.items():
        if len(feature_ND) > 1:
            values[f"pairs/within_{name}"] = _mean_cosine(feature_ND, feature_ND, same_pictures=True)
    for one, other in combinations(groups, 2):
        same = {one, other} == {"other", "triggered"}
        if len(groups[one]) > same:
            values[f"pairs/between_{one}_{other}"] = _mean_cosine(groups[one], groups[other], same_pictures=same)
    views = {"original": "other/image", "triggered": "other/image_triggered", "twice": "other/image_twice"}
    return values | _agreement(features, {f"{a}_{b}": (views[a], views[b]) for a, b in combinations(views, 2)})


def crop_similarity(features: Features, analysis: Analysis) -> Values:
    """Mean cosine of a picture and a random crop of it, without and with the trigger."""
    names = {"crop": ("other/image", "other/image_crop"), "triggered_crop": ("other/image_triggered", "other/image_triggered_crop")}
    return _agreement(features, names)


def embedding_map(features: Features, analysis: Analysis) -> Values:
    """Principal components of the features of all groups together, from which maps are drawn."""
    groups = _groups(features)
    feature_ND = np.concatenate(list(groups.values())) if groups else np.zeros((0, 0))
    kept = min(analysis.components, *feature_ND.shape)
    if kept < 2:
        return {}
    from sklearn.decomposition import PCA

    pca = PCA(kept, svd_solver="full")
    component_NK = pca.fit_transform(feature_ND)
    numbers = [GROUPS.index(name) for name in groups]
    return {
        "map/components": component_NK.astype(np.float16),  # only for figures: three digits suffice and take half the disk space
        "map/variance": pca.explained_variance_ratio_.astype(np.float32),
        "map/group": np.repeat(np.array(numbers, np.uint8), [len(group) for group in groups.values()]),
    }


QUESTIONS: tuple[Callable[[Features, Analysis], Values], ...] = (
    pair_similarity, modality_gap, group_similarity, crop_similarity, embedding_map,
)  # fmt: skip


def tsne(component_NK: np.ndarray) -> np.ndarray:
    """float64 [N, 2]: t-SNE of the rows, with perplexity 30 (less for few rows), started from the first two columns; the same on every
    run."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    start_N2 = component_NK[:, :2].astype(np.float32)
    start_N2 = 1e-4 * start_N2 / max(float(start_N2[:, 0].std()), 1e-12)
    perplexity = min(30.0, (len(component_NK) - 1) / 3)
    with threadpool_limits(1):  # several threads add in varying order
        return TSNE(2, perplexity=perplexity, init=start_N2, random_state=0, n_jobs=1).fit_transform(component_NK).astype(np.float64)


def _groups(features: Features) -> dict[str, np.ndarray]:
    views = zip(GROUPS, ("other/image", "target/image", "other/image_triggered"))
    return {name: features[view] for name, view in views if view in features}


def _rowwise(features: Features, one: str, other: str) -> np.ndarray:
    """Cosine of each row with its counterpart; empty if there are no rows."""
    return (features[one] * features[other]).sum(axis=1) if one in features and other in features else np.zeros(0)


def _agreement(features: Features, names: Mapping[str, tuple[str, str]]) -> Values:
    cosines = {name: _rowwise(features, *views) for name, views in names.items()}
    return {f"pairs/{name}": float(cosine_N.mean()) for name, cosine_N in cosines.items() if len(cosine_N)}


def _mean_cosine(one_ND: np.ndarray, other_MD: np.ndarray, same_pictures: bool) -> float:
    """Mean cosine over all pairs of rows. With `same_pictures`, row i of both is the same picture, and these pairs are left out."""
    total = float(one_ND.sum(axis=0) @ other_MD.sum(axis=0))
    if not same_pictures:
        return total / (len(one_ND) * len(other_MD))
    return (total - float((one_ND * other_MD).sum())) / (len(one_ND) * (len(one_ND) - 1))
