"""Integrated gradients (Sundararajan et al. 2017): the gradient along the straight line from an empty picture to this one.

Shape suffixes: B points of a batch, T steps, C channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from datasets.component import NEUTRAL, Count, Positive
from trainers.audit.attacks.base import gradient
from trainers.audit.classifier import Classifier
from trainers.audit.explain.base import Explainer, Explanation
from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(Explainer):
    """heat = Σ_c (x − x⁰)·∫₀¹ ∂f(x⁰ + α(x − x⁰))/∂x dα, where x⁰ is the baseline and f the class's answer.

    The heat's sum is f(x) − f(x⁰) as far as the steps suffice (completeness). A pixel that equals the baseline has no heat.
    """

    baseline: Literal["black", "mean", "blurred"] = "black"
    """x⁰: black, the picture's mean colour, or the picture after a Gaussian blur"""
    blur: Positive = 0.1
    """standard deviation of the blur, as a share of the picture's height"""
    steps: Annotated[int, Ge(2)] = 50
    """points on the line at which the gradient is computed"""
    rule: Literal["gauss-legendre", "trapezoid"] = "gauss-legendre"
    """how the integral is approximated"""
    answer: Literal["logit", "probability"] = "logit"
    """f: the class's logit or its softmax probability, whose gradient vanishes where the model is sure"""
    batch_size: Count = dataclasses.field(default=32, metadata=NEUTRAL)
    """points at a time; changes no result"""

    @property
    def label(self) -> str:
        """Method, baseline, and what is not as usual."""
        return f"integrated gradients {self.baseline}{'' if self.answer == 'logit' else ' probability'}"

    def explain(self, classifier: Classifier, encoder: Encoder | None, picture_CHW: Tensor, of: int, key: str) -> Explanation:
        """By pixels. FloatingPointError if a gradient is not finite."""
        picture_CHW = picture_CHW.detach().to(classifier.device, classifier.dtype)
        change_CHW = picture_CHW - (start_CHW := self.start(picture_CHW))
        point_T, weight_T = (torch.from_numpy(value).to(picture_CHW) for value in rule(self.rule, self.steps))
        sum_CHW = torch.zeros_like(picture_CHW, dtype=torch.float64)
        for point_B, weight_B in zip(point_T.split(self.batch_size), weight_T.split(self.batch_size)):
            with torch.enable_grad():
                on_line_BCHW = (start_CHW + point_B[:, None, None, None] * change_CHW).requires_grad_()
                logit_BK = classifier(on_line_BCHW, [key] * len(point_B))
                answer_B = logit_BK[:, of] if self.answer == "logit" else logit_BK.softmax(1)[:, of]
                gradient_BCHW = gradient(answer_B, on_line_BCHW)
            sum_CHW += torch.einsum("b,bchw->chw", weight_B.double(), gradient_BCHW.double())
        heat_HW = (change_CHW * sum_CHW).sum(0).cpu().numpy()
        if not np.isfinite(heat_HW).all():
            raise FloatingPointError("the model's gradients with respect to the audited pictures are not finite")
        return Explanation(heat_HW)

    def start(self, picture_CHW: Tensor) -> Tensor:
        """The baseline x⁰ of a picture, [C, H, W]."""
        if self.baseline == "black":
            return torch.zeros_like(picture_CHW)
        if self.baseline == "mean":
            return picture_CHW.mean((1, 2), keepdim=True).expand_as(picture_CHW)
        from scipy.ndimage import gaussian_filter

        sigma = self.blur * picture_CHW.shape[1]
        blurred_CHW = gaussian_filter(picture_CHW.cpu().double().numpy(), (0, sigma, sigma), mode="nearest")
        return torch.from_numpy(blurred_CHW).to(picture_CHW)


def rule(name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(points, weights) of an integral over 0 … 1, float64 [T] each; the weights' sum is 1."""
    if name == "gauss-legendre":
        point_T, weight_T = np.polynomial.legendre.leggauss(steps)
        return (point_T + 1) / 2, weight_T / 2
    weight_T = np.full(steps, 1 / (steps - 1))
    weight_T[[0, -1]] /= 2
    return np.linspace(0, 1, steps), weight_T
