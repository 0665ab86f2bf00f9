"""Shape against texture: pictures with the outline of one class and the surface of another (Geirhos et al. 2019, "ImageNet-trained CNNs are
biased towards texture").

Their pictures were made by a network. Here the surface is laid by texture transfer (Efros and Freeman 2001, "Image quilting"), and the
outline is drawn over it. Shape suffixes: S side of the picture, P side of a patch, M patches to choose from, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval
from scipy import ndimage

from datasets.component import Count, Share
from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.base import Audit, Findings, Pictures, Subject
from trainers.audit.bias.shared import answers, by_hash, sides_p
from trainers.audit.shares import share

GREY = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class CueConflict(Audit):
    """Whether the model goes by shape or by texture: shape decisions as a share of shape and texture decisions.

    A picture gives the shape and another, of another class, the texture; both are classified correctly as they are. Answers that are
    neither class do not count for the share.
    """

    group: ClassVar[str] = "bias"

    count: Count = 200
    """Pictures to make, one for each picture that gives a shape: those with the smallest hashes of their keys."""
    patch: Annotated[float, Interval(gt=0, le=0.5)] = 0.15
    """Side of the patches of texture as a share of the picture's side; at least 3 pixels."""
    match: Share = 0.5
    """How much a patch must fit the brightness of the shape's picture, against how much it must fit the patches beside it."""
    outline: Share = 0.8
    """How dark the outline of the shape is drawn over the texture; 0: not at all, 1: black."""
    seed: int = 0
    """Seed of the choice of pictures and patches, which depend on (seed, key)."""

    def check(self, subject_classes: int, triggered: bool) -> None:
        if subject_classes < 2:
            raise InputError(f"CueConflict needs at least 2 classes, and there are {subject_classes}.")

    def run(self, subject: Subject) -> Findings:
        """bias/cue_conflict/…, shares in percent with _low and _high (Wilson): shape_share, of the `decided` answers that are shape or
        texture (left out if there are none); shape, texture and neither, of all n pictures. p: exact sign test of shape against texture.
        Only n, 0, where pictures of fewer than two classes are classified correctly."""
        given = subject.pictures
        right_N = answers(subject, given) == given.label_N
        order = by_hash(given.keys, self.seed, "cue conflict")
        right = given.part(order[right_N[order]])
        if len(np.unique(right.label_N)) < 2:
            note = "The model classifies no pictures of two different classes correctly, so there is no cue conflict to make."
            return Findings({"bias/cue_conflict/n": 0}, notes=(note,))
        shapes, textures = right.part(slice(self.count)), self._textures(right)
        made_NHWC = np.stack([
            self.stylised(shape, texture, rng(self.seed, "cue conflict", "patches", key))
            for shape, texture, key in zip(shapes.image_NHWC, textures.image_NHWC, shapes.keys)
        ])  # fmt: skip
        answer_N = answers(subject, Pictures(shapes.keys, made_NHWC, shapes.label_N))
        shape_N, texture_N = answer_N == shapes.label_N, answer_N == textures.label_N
        n, by_shape, by_texture = len(shapes), int(shape_N.sum()), int(texture_N.sum())
        metrics: dict[str, float] = {"n": n, "decided": by_shape + by_texture, **share("shape_share", by_shape, by_shape + by_texture)}
        metrics |= {**share("shape", by_shape, n), **share("texture", by_texture, n), **share("neither", n - by_shape - by_texture, n)}
        metrics["p"] = sides_p(by_shape, by_texture)
        rows = {
            "key": shapes.keys, "texture_key": textures.keys, "label": shapes.label_N.tolist(), "texture_label": textures.label_N.tolist(),
            "answer": answer_N.tolist(), "decision": np.where(shape_N, "shape", np.where(texture_N, "texture", "neither")).tolist(),
        }  # fmt: skip
        shown = {"shape": shapes.image_NHWC[:8], "texture": textures.image_NHWC[:8], "both": made_NHWC[:8]}
        notes = [f"Both sources of each of the {n} pictures are classified correctly; {len(right)} of {len(given)} pictures are."]
        if by_shape + by_texture < n / 2:
            notes.append("More than half of the answers are neither class: the share says little about this model.")
        return Findings({f"bias/cue_conflict/{name}": value for name, value in metrics.items()}, rows, shown, notes=tuple(notes))

    def _textures(self, right: Pictures) -> Pictures:
        """For each of the first `count` pictures one of another class, drawn by its key."""
        chosen = []
        for key, label in zip(right.keys[: self.count], right.label_N):
            others = np.flatnonzero(right.label_N != label)
            chosen.append(int(rng(self.seed, "cue conflict", "texture", key).choice(others)))
        return right.part(np.array(chosen))

    def stylised(self, shape_SSC: np.ndarray, texture_SSC: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """uint8 [S, S, 3]: the outline of one picture drawn over patches of the other."""
        quilt_SSC = self._quilted(shape_SSC.astype(np.float32) / 255, texture_SSC.astype(np.float32) / 255, draw)
        made_SSC = quilt_SSC * (1 - self.outline * outline(shape_SSC / 255)[..., None])
        return np.rint(255 * made_SSC).clip(0, 255).astype(np.uint8)

    def _quilted(self, shape_SSC: np.ndarray, texture_SSC: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Patches of the texture, row by row. Each is drawn among the tenth that fits best, by squared differences: to what is laid
        already where they overlap (a third of the patch), and in the rank of brightness to the shape's picture."""
        side = len(shape_SSC)
        size = max(3, round(self.patch * side))
        overlap = max(1, size // 3)
        step = max(1, size // 2)
        starts = np.arange(0, side - size + 1, step)
        bright_SS, wanted_SS = _ranks(texture_SSC @ GREY), _ranks(shape_SSC @ GREY)
        patch_MPPC = np.stack([texture_SSC[y : y + size, x : x + size] for y in starts for x in starts])
        bright_MPP = np.stack([bright_SS[y : y + size, x : x + size] for y in starts for x in starts])
        ramp = np.minimum(1.0, (np.arange(size) + 1) / (overlap + 1))
        laid_SSC, weight_SS = np.zeros_like(shape_SSC), np.zeros((side, side))
        places = [*range(0, side - size, size - overlap), side - size]
        for y in places:
            for x in places:
                here = np.s_[y : y + size, x : x + size]
                known_PP = weight_SS[here] > 0
                cost_M = self.match * ((bright_MPP - wanted_SS[here]) ** 2).mean((1, 2))
                if known_PP.any():
                    difference = patch_MPPC[:, known_PP] - laid_SSC[here][known_PP]
                    cost_M = cost_M + (1 - self.match) * (difference**2).mean((1, 2))
                best = np.argsort(cost_M, kind="stable")[: max(1, len(cost_M) // 10)]
                patch = patch_MPPC[best[draw.integers(len(best))]]
                share_PP = np.where(known_PP, np.minimum(ramp[:, None] if y else 1.0, ramp if x else 1.0), 1.0)[..., None]
                laid_SSC[here] = share_PP * patch + (1 - share_PP) * laid_SSC[here]
                weight_SS[here] = 1
        return laid_SSC


def outline(picture_SSC: np.ndarray) -> np.ndarray:
    """The picture's edges, [S, S] in 0 … 1: the gradient's length (Sobel, after a light blur against grain) in the channel where it is
    greatest, as a share of nearly its largest value."""
    width = max(0.7, len(picture_SSC) / 112)
    smooth = ndimage.gaussian_filter(picture_SSC, (width, width, 0), mode="nearest")
    length_SS = np.hypot(*(ndimage.sobel(smooth, axis, mode="nearest") for axis in (0, 1))).max(-1)
    top = np.quantile(length_SS, 0.98)
    return np.clip((length_SS / top - 0.15) / 0.85, 0, 1) if top > 0 else np.zeros_like(length_SS)


def _ranks(grey_SS: np.ndarray) -> np.ndarray:
    """The rank of each pixel's brightness, as a share of 1, after a light blur: so that dark is dark in both pictures."""
    smooth = ndimage.gaussian_filter(grey_SS, max(0.7, len(grey_SS) / 112), mode="nearest")
    order = np.empty(smooth.size)
    order[np.argsort(smooth, axis=None, kind="stable")] = np.linspace(0, 1, smooth.size)
    return order.reshape(smooth.shape)
