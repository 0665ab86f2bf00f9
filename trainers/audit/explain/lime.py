"""LIME (Ribeiro et al. 2016): a linear model of how a class's probability changes as parts of the picture are covered.

Shape suffixes: N samples, B of a batch, S segments, C channels, H and W height and width, M values of a picture.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from datasets.component import NEUTRAL, Count, NotNegative, Positive, Share
from datasets.seeding import rng
from trainers.audit.classifier import Classifier
from trainers.audit.explain.base import Explainer, Explanation
from trainers.audit.explain.segments import grid, means, slic
from trainers.encoder import Encoder

ROUNDING = 1e-6
"""Answers that differ by less than this share of the largest one count as equal: floats are not more exact."""


@dataclass(frozen=True)
class Fit:
    """A weighted linear model of the answers."""

    coefficient_S: np.ndarray
    """float64 [S]; 0 for a segment that was not chosen"""
    intercept: float
    r2: float
    """weighted R²; NaN if all answers are equal"""


@dataclass(frozen=True, kw_only=True)
class LIME(Explainer):
    """Covers random halves of the segments, asks the classifier each time, and fits a linear model whose coefficients are the heat.

    z ∈ {0, 1}^S says which segments are seen: the first sample sees all, the others each one with probability ½. A sample weighs
    exp(−d²/(2·width²)), where d = 1 − √(Σz/S) is the cosine distance of z to all ones. This is the kernel √exp(−d²/width²) of the authors'
    package `lime`; in the form exp(−D²/σ²) of the paper it is σ = √2·width.

    A segment of one colour is not changed by a fill of its mean colour, so its coefficient says nothing: take another `fill` for
    triggers of a single colour.
    """

    segments: Literal["grid", "slic"] = "grid"
    """grid: equal rectangles; slic: connected parts of like colour (Achanta et al. 2012)"""
    across: Count = 8
    """rows and columns of the grid; for slic, the square root of the number of segments that it is asked for"""
    samples: Annotated[int, Ge(2)] = 1000
    """how many covered pictures are classified"""
    fill: Literal["mean"] | Share = "mean"
    """what covers a segment: its mean colour, or a grey of this value (0 black … 1 white)"""
    width: Positive = 0.25
    """width of the kernel"""
    fit: Literal["ridge", "k-lasso"] = "ridge"
    """ridge: ridge regression on all segments; k-lasso: least squares on the `kept` segments that the LASSO's path chooses"""
    penalty: NotNegative = 1.0
    """of the ridge: λ in Σ w(y − ŷ)² + λ‖coefficients‖²"""
    kept: Count = 6
    """K: at most so many segments are chosen by k-lasso"""
    answer: Literal["probability", "logit"] = "probability"
    """what is explained: the class's softmax probability or its logit"""
    batch_size: Count | None = dataclasses.field(default=None, metadata=NEUTRAL)
    """covered pictures at a time, which changes no result; None: 128, on a CPU fewer if they are large"""

    @property
    def label(self) -> str:
        """Method, segments, and what is not as usual."""
        method = "LIME" if self.fit == "ridge" else f"LIME {self.kept}-LASSO"
        fill = "" if self.fill == "mean" else f" fill {self.fill:g}"
        return f"{method} {self.segments} {self.across}{fill}{'' if self.answer == 'probability' else ' logit'}"

    def explain(self, classifier: Classifier, encoder: Encoder | None, picture_CHW: Tensor, of: int, key: str) -> Explanation:
        """The heat of a pixel is its segment's coefficient: the change of the answer when the segment is seen instead of covered."""
        segment_HW = self.segment(picture_CHW)
        on_NS = self.masks(int(segment_HW.max()) + 1, key)
        answer_N = self.answers(classifier, picture_CHW, segment_HW, on_NS, of, key)
        fit = self.fitted(on_NS, answer_N)
        return Explanation(fit.coefficient_S[segment_HW], segment_HW, fit.r2)

    def segment(self, picture_CHW: Tensor) -> np.ndarray:
        """int64 [H, W]: the superpixel of each pixel."""
        height, width = picture_CHW.shape[1:]
        if self.segments == "grid":
            return grid(height, width, self.across)
        return slic(_numpy(picture_CHW).transpose(1, 2, 0), self.across**2)

    def masks(self, segments: int, key: str) -> np.ndarray:
        """uint8 [N, S]: which segments each sample sees; the first row sees all."""
        on_NS = rng(self.seed, type(self).id, key).integers(0, 2, (self.samples, segments), dtype=np.uint8)
        on_NS[0] = 1
        return on_NS

    @torch.no_grad()
    def answers(
        self, classifier: Classifier, picture_CHW: Tensor, segment_HW: np.ndarray, on_NS: np.ndarray, of: int, key: str
    ) -> np.ndarray:
        """float64 [N]: the classifier's answer for class `of` to each sample. FloatingPointError if one is not finite."""
        picture_HWC = picture_CHW.to(classifier.device, classifier.dtype).permute(1, 2, 0).contiguous()
        if self.fill == "mean":
            fill_CHW = torch.from_numpy(means(_numpy(picture_CHW), segment_HW))
            fill_HWC = fill_CHW.to(picture_HWC).permute(1, 2, 0).contiguous()
        else:
            fill_HWC = torch.full_like(picture_HWC, self.fill)
        at_M = torch.from_numpy(segment_HW.repeat(len(picture_CHW), 1).ravel()).to(classifier.device)
        found = []
        for on_BS in torch.from_numpy(on_NS).to(classifier.device).split(self.batch_size or fitting(picture_HWC)):
            covered_BHWC = covered(picture_HWC, fill_HWC, at_M, on_BS)
            logit_BK = classifier(covered_BHWC.permute(0, 3, 1, 2), [key] * len(on_BS)).double()
            found.append(logit_BK[:, of] if self.answer == "logit" else logit_BK.softmax(1)[:, of])
        answer_N = torch.cat(found).cpu().numpy()
        if not np.isfinite(answer_N).all():
            raise FloatingPointError("the model's logits of the audited pictures are not finite")
        return answer_N

    def fitted(self, on_NS: np.ndarray, answer_N: np.ndarray) -> Fit:
        """The linear model of these answers. If they are all equal, every coefficient is 0."""
        if np.ptp(answer_N) <= ROUNDING * np.abs(answer_N).max():
            return Fit(np.zeros(on_NS.shape[1]), float(answer_N.mean()), float("nan"))
        x_NS, weight_N = on_NS.astype(np.float64), kernel(on_NS, self.width)
        if self.fit == "ridge":
            return ridge(x_NS, answer_N, weight_N, self.penalty)
        return k_lasso(x_NS, answer_N, weight_N, self.kept)


def fitting(picture_HWC: Tensor) -> int:
    """How many such pictures to classify at a time: 128, but on a CPU at least 8 and no more than half a million pixels, which its cache
    holds."""
    height, width, _ = picture_HWC.shape
    return 128 if picture_HWC.is_cuda else min(128, max(8, 2**19 // (height * width)))


def covered(picture_HWC: Tensor, fill_HWC: Tensor, at_M: Tensor, on_BS: Tensor) -> Tensor:
    """[B, H, W, C]: the picture where its segment is on, `fill` elsewhere. `at_M`: the segment of each of the M = H·W·C values in turn."""
    on_BM = on_BS.gather(1, at_M.expand(len(on_BS), -1)).bool()  # on a CPU far faster than an index over pixels
    return torch.where(on_BM, picture_HWC.flatten(), fill_HWC.flatten()).view(-1, *picture_HWC.shape)


def kernel(on_NS: np.ndarray, width: float) -> np.ndarray:
    """float64 [N]: exp(−d²/(2·width²)), d the cosine distance of each row to all ones; 1 for a row of zeros."""
    distance_N = 1 - np.sqrt(on_NS.mean(1, dtype=np.float64))
    return np.exp(-(distance_N**2) / (2 * width**2))


def ridge(x_NS: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray, penalty: float) -> Fit:
    """Minimises Σ w(y − xβ − b)² + penalty·‖β‖²; of several minima the shortest β."""
    mean_S, mean = weight_N @ x_NS / weight_N.sum(), weight_N @ y_N / weight_N.sum()
    root_N = np.sqrt(weight_N)
    scaled_NS, scaled_N = root_N[:, None] * (x_NS - mean_S), root_N * (y_N - mean)
    if penalty:
        gram_SS = scaled_NS.T @ scaled_NS
        gram_SS[np.diag_indices_from(gram_SS)] += penalty
        coefficient_S = np.linalg.solve(gram_SS, scaled_NS.T @ scaled_N)
    else:
        coefficient_S = np.linalg.lstsq(scaled_NS, scaled_N, rcond=None)[0]
    r2 = 1 - np.square(scaled_N - scaled_NS @ coefficient_S).sum() / np.square(scaled_N).sum()
    return Fit(coefficient_S, float(mean - mean_S @ coefficient_S), float(r2))


def k_lasso(x_NS: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray, kept: int) -> Fit:
    """Weighted least squares on the columns at the last point of the LASSO's path (LARS) with at most `kept` coefficients that are not 0
    (Ribeiro et al. 2016, algorithm 1)."""
    from sklearn.linear_model import lars_path

    root_N = np.sqrt(weight_N)
    centred_NS, centred_N = (value - np.average(value, axis=0, weights=weight_N) for value in (x_NS, y_N))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns that are all but equal, which the path then leaves out
        _, _, path_SL = lars_path(root_N[:, None] * centred_NS, root_N * centred_N, method="lasso")
    few_L = np.flatnonzero((path_SL != 0).sum(0) <= kept)
    chosen_S = path_SL[:, few_L[-1]] != 0
    coefficient_S = np.zeros(x_NS.shape[1])
    fit = ridge(x_NS[:, chosen_S], y_N, weight_N, 0.0)
    coefficient_S[chosen_S] = fit.coefficient_S
    return Fit(coefficient_S, fit.intercept, fit.r2)


def _numpy(picture_CHW: Tensor) -> np.ndarray:
    return picture_CHW.detach().cpu().double().numpy()
