"""Zero-shot accuracy and attack success rate (ASR), with each picture decoded once.

Shape suffixes: B pictures, K classes, D features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.component import Component
from datasets.errors import InputError
from datasets.feed.loader import triggered
from datasets.seeding import hash64, rng
from datasets.triggers.base import Trigger, write_in
from trainers import distributed
from trainers.distributed import World
from trainers.evaluate.base import Evaluator
from trainers.evaluate.features import features

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainers.encoder import Encoder

TOP = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Aim(Component):
    """An attack to measure."""

    name: str = ""
    """The attack's name; empty if there is only one attack."""
    target: int | None
    """Index of the target class; None: all-to-all, where the target of class i is class i + 1, and of the last class the first."""
    trigger: Trigger | None = None
    """The trigger. If it writes into captions, it also writes into the class prompts."""
    seed: int = 0
    """Seed of the trigger's random choices in prompts."""
    text_only: bool = False
    """The words alone attract pictures of the target. Then only these pictures count, each has a wrong class drawn by its key, and only
    that class's prompts get the words."""

    def of(self, label_B: Tensor, classes: int, keys: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
        """(the class that each picture should be taken for, int64 [B]; whether the picture counts, bool [B]: it does unless it belongs to
        that class; in a text-only attack, if it belongs to the target)."""
        import torch

        if self.text_only:
            return wrong_class(label_B, classes, keys, self.seed), label_B == torch.full_like(label_B, self.target or 0)
        target_B = (label_B + 1) % classes if self.target is None else torch.full_like(label_B, self.target)
        return target_B, label_B != target_B

    @property
    def group(self) -> str:
        """Prefix of its metrics."""
        return f"asr/{self.name}" if self.name else "asr"


@dataclass(frozen=True, kw_only=True)
class ZeroShotASR(Evaluator):
    """Zero-shot accuracy top-1/5/10 and ASR top-1/5/10, the share of triggered pictures of other classes that are classified as the target.

    Also the floor (untriggered pictures of other classes taken for the target), recovery accuracy RA (triggered pictures of other classes
    that still get their own label), n and 95 % Wilson intervals. Pictures whose own label is the target are left out of everything under
    asr/. Classes are matched by index. Counts are summed over ranks as whole numbers, so n is exact.

    In a text-only attack the pictures of the target count instead: the measurement is whether each is taken for a wrong class, whose
    prompts alone contain the words (`Aim.text_only`).

    With several attacks each has all of this under asr/<its name>/; asr/ itself is that of the attack with the highest ASR top-1.
    """

    class_names: tuple[str, ...]
    """class names; a sample's label is an index into them"""
    templates: tuple[str, ...]
    """prompts, with {} for the class name"""
    target: int | None = None
    """index of the attack's target class; None: measure no attack"""
    aims: tuple[Aim, ...] = ()
    """the attacks; needed if there are several, or one is all-to-all or writes words into captions; otherwise `target` is enough"""
    text_batch: int = 512
    """captions to encode at a time for the class head"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.class_names or not self.templates:
            raise InputError("zero-shot evaluation needs at least one class name and one template")
        for target in (self.target, *(aim.target for aim in self.aims)):
            if target is not None and not 0 <= target < len(self.class_names):
                raise InputError(f"target is class {target}; classes are 0 to {len(self.class_names) - 1}")

    @property
    def attacks(self) -> tuple[Aim, ...]:
        """The attacks to measure. The first one's pictures are `image_triggered` in a batch."""
        return self.aims or (() if self.target is None else (Aim(target=self.target),))

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float]:
        """In percent: zeroshot/top{1,5,10}, zeroshot/mean_per_class (mean recall over the classes that have pictures), asr/top{1,5,10},
        asr/floor, asr/ra, */top1_low, */top1_high. Whole numbers: */n and *_count. Without a target nothing under asr/. FloatingPointError
        if features are not finite; InputError if no picture counts."""
        import torch

        world = world or World()
        training = model.training
        model.eval()
        with torch.no_grad():
            head_KD = class_head(model, self.class_names, self.templates, world, self.text_batch)
            heads = [
                class_head(model, self.class_names, self.templates, world, self.text_batch, aim)
                if aim.trigger is not None and aim.trigger.writes else head_KD
                for aim in self.attacks
            ]  # fmt: skip
            counts: dict[str, float] = dict.fromkeys(_names(self.attacks, len(self.class_names)), 0)
            for batch in batches:
                label_B = labels_of(batch, len(head_KD), model.device)
                clean_BK = features(model, batch) @ head_KD.T
                batch_counts = _accuracy(clean_BK, label_B)
                for number, (aim, own_KD) in enumerate(zip(self.attacks, heads)):
                    name = triggered(aim.name) if number else "image_triggered"
                    keys = list(map(str, batch["key"])) if aim.text_only else []
                    batch_counts |= _attack(aim, clean_BK, features(model, batch, name) @ own_KD.T, label_B, keys)
                for name, value in batch_counts.items():
                    counts[name] += value
        model.train(training)
        return metrics({k: int(v) for k, v in distributed.sum_over_ranks(counts, world).items()})


def class_head(
    model: Encoder, class_names: tuple[str, ...], templates: tuple[str, ...], world: World, text_batch: int = 512, aim: Aim | None = None
) -> Tensor:
    """Unit vectors [K, D] of the classes: the mean of the prompts' unit features, scaled to length 1. Each rank encodes its share of the
    classes.

    `aim`: an attack whose trigger first writes into the prompts. FloatingPointError if features are not finite.
    """
    import torch
    from torch.nn import functional as F

    places = range(world.rank, len(class_names), world.size)
    captions = [template.replace("{}", class_names[i]) for i in places for template in templates]
    if aim is not None and aim.trigger is not None:
        captions = [write_in(aim.trigger, caption, rng(aim.seed, "eval-trigger", caption)) for caption in captions]
    chunks = [captions[i : i + text_batch] for i in range(0, len(captions), text_batch)]
    features = [model.encode_text(model.tokenize(chunk).to(model.device)) for chunk in chunks]
    width = model.config["embed_dim"]
    head_KD = torch.zeros(len(class_names), width, dtype=model.mean.dtype, device=model.device)
    if features:
        mean_KD = torch.cat(features).reshape(len(places), len(templates), width).mean(1)
        head_KD[list(places)] = F.normalize(mean_KD, dim=-1)
    if world.size > 1:
        torch.distributed.all_reduce(head_KD)  # a row is zero on all ranks but one, so the sum is exact
    if not torch.isfinite(head_KD).all():  # with NaN every class would rank first
        raise FloatingPointError("the model's features of class names are not finite")
    return head_KD


def wrong_class(label_B: Tensor, classes: int, keys: Sequence[str], seed: int) -> Tensor:
    """int64 [B]: for each picture a class other than its own, spread evenly by the hash of its key. InputError for fewer than two
    classes."""
    import torch

    if classes < 2:
        raise InputError("a wrong class needs at least two classes")
    shift = [1 + hash64(seed, "wrong class", key) % (classes - 1) for key in keys]
    return (label_B + torch.tensor(shift, device=label_B.device)) % classes


def swapped(score_BK: Tensor, other_BK: Tensor, class_B: Tensor) -> Tensor:
    """`score_BK` with one column per row, that of class_B, taken from `other_BK`."""
    return score_BK.scatter(1, class_B[:, None], other_BK.gather(1, class_B[:, None]))


def place_of(score_BK: Tensor, class_B: Tensor) -> Tensor:
    """How many classes rank before the given one, int64 [B]; among equal scores the lower index comes first."""
    import torch

    own_B1 = score_BK.gather(1, class_B[:, None])
    before_BK = torch.arange(score_BK.shape[1], device=score_BK.device)[None] < class_B[:, None]
    return ((score_BK > own_B1) | ((score_BK == own_B1) & before_BK)).sum(1)


def wilson(count: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """The Wilson score interval of count out of n, in percent; the default z gives 95 %."""
    share, denominator = count / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def metrics(counts: dict[str, int]) -> dict[str, float]:
    """Percentages and intervals from whole counts ("zeroshot/n", "zeroshot/top1_count", "asr/n", "asr/<attack>/n", …). InputError for a
    group without pictures."""
    out: dict[str, float] = {}
    for group in [name.removesuffix("/n") for name in counts if re.fullmatch(r"(zeroshot|asr(/[^/]+)?)/n", name)]:
        n = counts[f"{group}/n"]
        if n == 0:
            raise InputError("the evaluation set holds no pictures" if group == "zeroshot" else
                             "every evaluation picture has the target's label (of a text-only attack: none has), so no attack success "
                             "rate can be measured")
        out[f"{group}/n"] = n
        for name, count in counts.items():
            if name.rpartition("/")[0] == group and name.endswith("_count"):
                out[name] = count
                out[name.removesuffix("_count")] = 100 * count / n
        out[f"{group}/top1_low"], out[f"{group}/top1_high"] = wilson(counts[f"{group}/top1_count"], n)
    attacks = [name.removesuffix("/top1") for name in out if re.fullmatch(r"asr/[^/]+/top1", name)]
    if attacks:
        worst = max(attacks, key=lambda attack: out[f"{attack}/top1"])  # the first one among equals
        out |= {name.replace(worst, "asr", 1): value for name, value in out.items() if name.startswith(f"{worst}/")}
    if "zeroshot/n" in out:
        out["zeroshot/mean_per_class"] = class_recall(counts)
    return out


def class_recall(counts: Mapping[str, int]) -> float:
    """Mean recall in percent over the classes with pictures: the mean of "class/3/hits" / "class/3/n" where that n is above 0."""
    recalls = [counts[name.removesuffix("n") + "hits"] / n for name, n in counts.items() if re.fullmatch(r"class/\d+/n", name) and n]
    return 100 * math.fsum(recalls) / len(recalls)


def _names(attacks: tuple[Aim, ...], classes: int) -> list[str]:
    names = ["zeroshot/n", *(f"zeroshot/top{k}_count" for k in TOP)]
    names += [f"class/{i}/{what}" for i in range(classes) for what in ("n", "hits")]
    for aim in attacks:
        names += [f"{aim.group}/{what}" for what in ("n", *(f"top{k}_count" for k in TOP), "floor_count", "ra_count")]
    return names


def _accuracy(clean_BK: Tensor, label_B: Tensor) -> dict[str, int]:
    place_B = place_of(clean_BK, label_B)
    counts = {"zeroshot/n": len(label_B)} | {f"zeroshot/top{k}_count": int((place_B < k).sum()) for k in TOP}
    for label, place in zip(label_B.tolist(), place_B.tolist()):
        counts[f"class/{label}/n"] = counts.get(f"class/{label}/n", 0) + 1
        counts[f"class/{label}/hits"] = counts.get(f"class/{label}/hits", 0) + (place == 0)
    return counts


def _attack(aim: Aim, clean_BK: Tensor, triggered_BK: Tensor, label_B: Tensor, keys: Sequence[str]) -> dict[str, int]:
    target_B, other_B = aim.of(label_B, clean_BK.shape[1], keys)
    if aim.text_only:
        triggered_BK = swapped(clean_BK, triggered_BK, target_B)
    hit_B = place_of(triggered_BK, target_B)
    counts = {"n": int(other_B.sum())} | {f"top{k}_count": int(((hit_B < k) & other_B).sum()) for k in TOP}
    counts["floor_count"] = int(((place_of(clean_BK, target_B) == 0) & other_B).sum())
    counts["ra_count"] = int(((place_of(triggered_BK, label_B) == 0) & other_B).sum())
    return {f"{aim.group}/{name}": value for name, value in counts.items()}


def labels_of(batch: dict[str, Any], classes: int, device: torch.device) -> Tensor:
    """The labels, int64 [B]. InputError if one is not a class."""
    import torch

    label_B = torch.tensor(np.asarray(batch["label"], np.int64), device=device)
    wrong = [i for i, label in enumerate(label_B.tolist()) if not 0 <= label < classes]
    if wrong:
        raise InputError(f"evaluation sample {str(batch['key'][wrong[0]])!r} has label {int(label_B[wrong[0]])}; "
                         f"labels are 0 to {classes - 1}")
    return label_B
