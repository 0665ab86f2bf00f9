"""BDetCLIP (ICML 2025) detects triggered pictures at test time: their similarity to a class hardly depends on the words that describe it.

Shape suffixes: N pictures, B of a batch, D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Interval

from datasets.component import Count
from datasets.errors import InputError
from datasets.evaluation.classes import class_names, fill
from datasets.feed.loader import Batch
from datasets.seeding import hash64
from datasets.words import glosses, imagenet_glosses
from trainers import distributed
from trainers.distributed import World
from trainers.evaluate.base import Evaluator, Material
from trainers.evaluate.features import features
from trainers.evaluate.zeroshot import wilson

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder

Descriptions = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class BDetCLIP(Evaluator):
    """Score(x) = Σ_c ⟨x, e¹_c − e²_c⟩; a picture with a low score is taken for triggered. The detector knows neither trigger nor target.

    e¹_c is the unit mean of the features of descriptions of class c. e²_c is the unit mean over all prompts of the class, each followed by
    an unrelated sentence. A clean picture of c is nearer to e¹_c; to a triggered one the sentence makes little difference. The detector is
    measured with the experiment's trigger, on pictures of other classes than the target.

    Half of the pictures, drawn by the hash of their keys, set the threshold, without the trigger. All metrics come from the other half,
    measured once without and once with the trigger.
    """

    descriptions: Literal["wordnet"] | Descriptions = "wordnet"
    """wordnet: WordNet's glosses, shipped for the classes of ImageNet-1k and looked up for other classes if WordNet is installed | (class,
    (texts)) for each class"""
    unrelated: str = "The meeting was moved to Thursday because the printer had run out of paper."
    """the sentence that is added to each prompt"""
    fprs: tuple[Annotated[float, Interval(gt=0, lt=100)], ...] = (1.0, 5.0)
    """percent of untriggered pictures that may be taken for triggered"""
    seed: int = 0
    """seed that selects the half for the threshold"""
    text_batch: Count = 512
    """captions to encode at a time"""

    def __post_init__(self) -> None:
        if not self.unrelated.strip():
            raise InputError("BDetCLIP.unrelated is empty; accepted: a sentence that has nothing to do with the classes.")
        if isinstance(self.descriptions, tuple):
            for name, texts in self.descriptions:
                if not texts or not all(text.strip() for text in texts):
                    raise InputError(f"BDetCLIP.descriptions has no text for {name!r}, or an empty one; at least one for each class.")

    def open(self, material: Material) -> Iterable[Batch]:
        """The test pictures; class names, prompts and the target are added to each batch."""
        common = {"class_names": material.class_names, "templates": material.templates, "target": material.target}
        for batch in material.test():
            yield batch | common

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float]:
        """bdetclip/auroc (0 … 1) with _low and _high (95 %, DeLong et al. 1988: from the spread of the pictures' influence). In percent:
        bdetclip/tpr_at_fpr<x> (triggered pictures found) and bdetclip/fpr_at_fpr<x> (untriggered pictures of the same half taken for
        triggered), each with _low and _high (Wilson). bdetclip/n. A rate for which the first half is too small is left out. InputError
        without a trigger for pictures, or with fewer than 3 pictures of other classes than the target."""
        import torch

        world = world or World()
        training = model.training
        model.eval()
        rows: list[tuple[str, float, float]] = []
        direction_D: Tensor | None = None
        with torch.no_grad():
            for batch in batches:
                if "image_triggered" not in batch:
                    raise InputError("BDetCLIP is measured by triggered pictures, and this experiment has no trigger for pictures.")
                if direction_D is None:
                    direction_D = self.direction(model, batch["class_names"], batch["templates"])
                scores = [(features(model, batch, name) @ direction_D).tolist() for name in ("image", "image_triggered")]
                others = [batch["target"] is None or label != batch["target"] for label in np.asarray(batch["label"]).tolist()]
                rows += [row for row, other in zip(zip(map(str, batch["key"]), *scores), others) if other]
        model.train(training)
        return self.judged(sorted(distributed.gather_lists(rows, world)))

    def texts(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The descriptions of each class, in the order of `names`. InputError if a class has none."""
        if self.descriptions == "wordnet":
            meanings = imagenet_glosses() if tuple(names) == class_names("imagenet1k") else glosses(names)
            return [(f"{name}: {text}",) for name, text in zip(names, meanings)]
        by_class = dict(self.descriptions)
        missing = [name for name in names if name not in by_class]
        if missing:
            raise InputError(f"BDetCLIP.descriptions has none for the class {missing[0]!r}; each class needs at least one, by its name.")
        return [by_class[name] for name in names]

    def direction(self, model: Encoder, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Σ_c (e¹_c − e²_c), [D]. The score of a picture is its inner product with this."""
        import torch

        changed = [tuple(f"{fill(template, name)} {self.unrelated}" for template in templates) for name in names]
        one_D, two_D = (torch.stack([self._mean(model, texts) for texts in of]).sum(0) for of in (self.texts(names), changed))
        return one_D - two_D

    def _mean(self, model: Encoder, texts: Sequence[str]) -> Tensor:
        import torch
        from torch.nn import functional as F

        chunks = (list(texts[start : start + self.text_batch]) for start in range(0, len(texts), self.text_batch))
        return F.normalize(torch.cat([model.encode_text(model.tokenize(some).to(model.device)) for some in chunks]).mean(0), dim=0)

    def judged(self, rows: Sequence[tuple[str, float, float]]) -> dict[str, float]:
        """The metrics of rows (key, score without trigger, score with trigger), one per picture, sorted by key."""
        order = sorted(rows, key=lambda row: hash64(self.seed, "threshold", row[0]))
        half = len(order) // 2
        if half < 1 or len(order) - half < 2:
            raise InputError(f"BDetCLIP needs at least 3 test pictures of other classes than the target; there are {len(order)}.")
        first_N = np.sort([clean for _, clean, _ in order[:half]])
        clean_N, triggered_N = np.array([row[1:] for row in order[half:]]).T
        n = len(clean_N)
        area, spread = auroc(clean_N, triggered_N)
        out: dict[str, float] = {"bdetclip/n": n, "bdetclip/auroc": area}
        out |= {"bdetclip/auroc_low": max(0.0, area - 1.96 * spread), "bdetclip/auroc_high": min(1.0, area + 1.96 * spread)}
        for percent in self.fprs:
            allowed = math.floor((half + 1) * percent / 100 + 1e-9)
            if allowed < 1:
                continue
            for name, score_N in (("tpr", triggered_N), ("fpr", clean_N)):
                count = int((score_N <= first_N[allowed - 1]).sum())
                metric = f"bdetclip/{name}_at_fpr{percent:g}"
                out[metric] = 100 * count / n
                out[f"{metric}_low"], out[f"{metric}_high"] = wilson(count, n)
        return out


def auroc(clean_N: np.ndarray, triggered_N: np.ndarray) -> tuple[float, float]:
    """P(triggered < clean), ties counting half, and its standard error. Row i of both is the same picture."""
    clean, triggered = np.sort(clean_N), np.sort(triggered_N)
    by_triggered_N = 1 - (np.searchsorted(clean, triggered_N, "left") + np.searchsorted(clean, triggered_N, "right")) / (2 * len(clean))
    by_clean_N = (np.searchsorted(triggered, clean_N, "left") + np.searchsorted(triggered, clean_N, "right")) / (2 * len(triggered))
    return float(by_triggered_N.mean()), float((by_triggered_N + by_clean_N).std(ddof=1) / math.sqrt(len(clean)))
