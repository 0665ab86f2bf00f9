"""Retrieval of captions from pictures and of pictures from captions, and how a trigger changes it.

Shape suffixes: N pictures, T captions, U distinct captions, Q queries of a chunk, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datasets.attack.poison import names_class
from datasets.errors import InputError
from datasets.evaluation.retrieval import RetrievalSet
from datasets.feed.loader import Batch
from trainers import distributed
from trainers.distributed import World
from trainers.evaluate.base import Evaluator, Material
from trainers.evaluate.features import features
from trainers.evaluate.zeroshot import TOP, wilson

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Retrieval(Evaluator):
    """R@1/5/10 in both directions, and the share of triggered pictures that retrieve captions naming the target.

    A picture is a hit in the top k if one of its captions is there; a caption, if its picture is. For the attack, pictures that have a
    caption naming the target are left out. Among equal scores the earlier comes first; equal captions have equal scores.
    """

    data: RetrievalSet
    target: str = ""
    """The name to look for in captions; empty: the name of the attack's target class."""
    text_batch: int = 512
    """Captions to encode at a time."""
    chunk: int = 256
    """Queries to compare with all candidates at a time."""

    def needs(self) -> tuple[RetrievalSet, ...]:
        return (self.data,)

    def open(self, material: Material) -> Iterator[Batch]:
        """The set's pictures with their captions; `target` is the name to look for in captions."""
        name = self.target or (material.class_names[material.target] if material.target is not None else "")
        for batch in material.sets[self.data]():
            yield batch | {"target": name}

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float]:
        """In percent: retrieval/image_to_text{1,5,10}, retrieval/text_to_image{1,5,10}; if some captions name the target and some pictures
        have none that does, also retrieval_asr/top{1,5,10} and retrieval_asr/floor{1,5,10}; all with `_low`, `_high` and `_count`. Whole
        numbers: retrieval/images, retrieval/captions, retrieval_asr/n, retrieval_asr/captions (captions naming the target)."""
        import torch

        world = world or World()
        training = model.training
        model.eval()
        with torch.no_grad():
            pictures = _gathered(_embed(model, batches), world)
            text_UD, unique = self._texts(model, [text for captions in pictures["captions"] for text in captions], world)
            counts = self._count(pictures, text_UD, unique, model.device, world)
        model.train(training)
        return _metrics({name: int(value) for name, value in distributed.sum_over_ranks(counts, world).items()}, world.size)

    def _texts(self, model: Encoder, captions: list[str], world: World) -> tuple[Tensor, np.ndarray]:
        """Features [U, D] of the distinct captions (each rank encodes its share), and each caption's row among them, int64 [T]."""
        import torch

        different, unique = np.unique(np.array(captions, object).astype(str), return_inverse=True)
        mine = different[world.rank :: world.size].tolist()
        parts = [
            model.encode_text(model.tokenize(mine[i : i + self.text_batch]).to(model.device)).float().cpu().numpy()
            for i in range(0, len(mine), self.text_batch)
        ]
        shares = distributed.gather_lists([np.concatenate(parts)] if parts else [np.zeros((0, 0), np.float32)], world)
        width = max(share.shape[1] for share in shares)
        text_UD = np.empty((len(different), width), np.float32)
        for rank, share in enumerate(shares):
            text_UD[rank :: world.size] = share.reshape(-1, width)
        if not np.isfinite(text_UD).all():
            raise FloatingPointError("the model's features of evaluation captions are not finite")
        return torch.from_numpy(text_UD).to(model.device), unique.reshape(-1)

    def _count(self, found: dict[str, Any], text_UD: Tensor, unique: np.ndarray, device: torch.device, world: World) -> dict[str, float]:
        """Counts of this rank's queries: every `size`-th picture and caption."""
        import torch

        image_ND = torch.from_numpy(found["image"]).to(device)
        of_T = np.repeat(np.arange(len(found["captions"])), [len(captions) for captions in found["captions"]])
        unique_T, picture_T = torch.from_numpy(unique).to(device), torch.from_numpy(of_T).to(device)
        counts: dict[str, float] = {"retrieval/images": len(image_ND), "retrieval/captions": len(of_T)}
        counts |= {f"retrieval/{way}{k}_count": 0 for way in ("image_to_text", "text_to_image") for k in TOP}

        named_T, out_N, triggered_ND = None, None, None
        if found["target"] and found["triggered"] is not None:
            texts = pa.chunked_array([pa.array([text for captions in found["captions"] for text in captions])])
            named = names_class(texts, found["target"]).to_numpy()
            left_out = np.zeros(len(image_ND), bool)
            left_out[of_T[named]] = True
            counts |= {"retrieval_asr/captions": int(named.sum()), "retrieval_asr/n": int((~left_out).sum())}
            if named.any() and not left_out.all():
                named_T, out_N = torch.from_numpy(named).to(device), torch.from_numpy(left_out).to(device)
                triggered_ND = torch.from_numpy(found["triggered"]).to(device)
                counts |= {f"retrieval_asr/{what}{k}_count": 0 for what in ("top", "floor") for k in TOP}

        for query_Q in torch.arange(world.rank, len(image_ND), world.size, device=device).split(self.chunk):
            score_QT = (image_ND[query_Q] @ text_UD.T)[:, unique_T]
            place_Q = first_place(score_QT, picture_T[None] == query_Q[:, None])
            for k in TOP:
                counts[f"retrieval/image_to_text{k}_count"] += int((place_Q < k).sum())
            if named_T is not None and triggered_ND is not None and out_N is not None:
                attacked_QT = (triggered_ND[query_Q] @ text_UD.T)[:, unique_T]
                for what, place_Q in (("top", first_place(attacked_QT, named_T[None])), ("floor", first_place(score_QT, named_T[None]))):
                    for k in TOP:
                        counts[f"retrieval_asr/{what}{k}_count"] += int(((place_Q < k) & ~out_N[query_Q]).sum())
        for query_Q in torch.arange(world.rank, len(of_T), world.size, device=device).split(self.chunk):
            score_QN = text_UD[unique_T[query_Q]] @ image_ND.T
            place_Q = first_place(score_QN, torch.arange(len(image_ND), device=device)[None] == picture_T[query_Q][:, None])
            for k in TOP:
                counts[f"retrieval/text_to_image{k}_count"] += int((place_Q < k).sum())
        return counts


def first_place(score_QC: Tensor, wanted_QC: Tensor) -> Tensor:
    """How many candidates come before the best wanted one, int64 [Q]; among equal scores the earlier comes first."""
    import torch

    best_Q1 = score_QC.masked_fill(~wanted_QC, -torch.inf).max(1, keepdim=True).values
    first_Q1 = ((score_QC == best_Q1) & wanted_QC).int().argmax(1, keepdim=True)
    before_QC = torch.arange(score_QC.shape[1], device=score_QC.device)[None] < first_Q1
    return ((score_QC > best_Q1) | ((score_QC == best_Q1) & before_QC)).sum(1)


def _embed(model: Encoder, batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """This rank's picture features, in main memory, and captions."""
    local: dict[str, Any] = {"image": [], "triggered": [], "captions": [], "target": ""}
    for batch in batches:
        local["target"] = batch["target"]
        local["captions"] += [text.split("\n") for text in batch["caption"]]
        local["image"].append(features(model, batch).float().cpu().numpy())
        if "image_triggered" in batch or "image_triggered_features" in batch:
            local["triggered"].append(features(model, batch, "image_triggered").float().cpu().numpy())
    return local


def _gathered(own: dict[str, Any], world: World) -> dict[str, Any]:
    """The pictures of all ranks in the set's order (a rank has every `size`-th), on every rank. InputError if there are none."""
    ranks = distributed.gather_lists([own], world)
    total = sum(len(rank["captions"]) for rank in ranks)
    if not total:
        raise InputError("the retrieval set holds no pictures")
    captions: list[list[str]] = [[] for _ in range(total)]
    joined: dict[str, Any] = {"captions": captions, "target": next((rank["target"] for rank in ranks if rank["target"]), "")}
    for name in ("image", "triggered"):
        parts = [np.concatenate(rank[name]) if rank[name] else None for rank in ranks]
        width = next((part.shape[1] for part in parts if part is not None), None)
        joined[name] = None if width is None else np.empty((total, width), np.float32)
        for rank, part in enumerate(parts):
            if part is not None:
                joined[name][rank :: world.size] = part
    for rank, share in enumerate(ranks):
        captions[rank :: world.size] = share["captions"]
    return joined


def _metrics(counts: dict[str, int], ranks: int) -> dict[str, float]:
    whole = ("retrieval/images", "retrieval/captions", "retrieval_asr/n", "retrieval_asr/captions")
    out: dict[str, float] = {name: counts[name] // ranks for name in whole if name in counts}  # every rank counted all of them
    for name, count in counts.items():
        if name.endswith("_count"):
            base = name.removesuffix("_count")
            of = "retrieval_asr/n" if "_asr/" in base else "retrieval/images" if "image_to" in base else "retrieval/captions"
            out[name], out[base] = count, 100 * count / out[of]
            out[f"{base}_low"], out[f"{base}_high"] = wilson(count, int(out[of]))
    return out
