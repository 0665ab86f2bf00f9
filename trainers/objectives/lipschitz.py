"""MMCL with a penalty on how fast the loss changes with the pixels.

Shape suffixes: B this rank's rows, N all ranks' rows, D features, H and W height and width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datasets import seeding
from datasets.component import Count, NotNegative
from trainers import distributed
from trainers.objectives.adversarial import mmcl
from trainers.objectives.base import Features, Loss, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Smooth(Objective):
    """MMCL + weight · mean over pictures of g + spectral_weight · ½ Σ_W σ(W)².

    g is the squared L2 length, or the L1 length, of ∂ℓ/∂x, with pixels in 0 … 1 and ℓ the sum over pictures of −log softmax(s·I·Tᵀ) of the
    own caption among those of the whole batch. Its gradient is a second derivative of the model (Drucker and Le Cun 1992; squared L2: Ross
    and Doshi-Velez 2018; L1, which with weight ε is adversarial training in L∞ to first order: Simon-Gabriel et al. 2019).

    σ(W) is the largest singular value of a weight of the image tower (Yoshida and Miyato 2017), by power iteration from a fixed start. A
    kernel counts as the matrix [out, in · height · width]. That is no bound of the whole tower's Lipschitz constant: norms, attention and
    residuals are left out, and embeddings too.

    A term of weight 0 is not computed.
    """

    weight: NotNegative = 1.0
    """of the gradients' lengths"""
    norm: Literal["l2", "l1"] = "l2"
    """l2: the squared L2 length | l1: the L1 length"""
    spectral_weight: NotNegative = 0.0
    """of the singular values"""
    iterations: Count = 10
    """of the power iteration, each step of training anew"""
    two_views = False

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        return Flat(self, encoder)

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        raise NotImplementedError("the loss needs the model's weights: call `begin` first")


@dataclass(frozen=True)
class Flat:
    """The loss of `Smooth`; holds the model that is trained, for its weights."""

    objective: Smooth
    encoder: Encoder

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """Parts: mmcl; gradient and spectral (before their weights), unless the weight is 0."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        parts: dict[str, Tensor] = {}
        own = self.objective
        if own.weight:
            image_BHWC = batch["image"].to(self.encoder.mean.dtype).requires_grad_()
            with sdpa_kernel(SDPBackend.MATH):  # faster attention has no second derivative
                f = model({**batch, "image": image_BHWC})
            parts["gradient"] = steepness(f, image_BHWC, own.norm)
        else:
            f = model(batch)
        if own.spectral_weight:
            parts["spectral"] = torch.stack([largest(*one, own.iterations).square() for one in matrices(self.encoder)]).sum() / 2
        parts["mmcl"] = mmcl(f)
        weights = {"mmcl": 1.0, "gradient": own.weight, "spectral": own.spectral_weight}
        return {"loss": torch.stack([weights[name] * part for name, part in parts.items()]).sum(), **parts}


def steepness(f: Features, image_BHWC: Tensor, norm: str) -> Tensor:
    """Mean over this rank's pictures of g, the length of the gradient of ℓ with respect to pixels in 0 … 1; differentiable."""
    import torch
    from torch.nn import functional as F

    logits_BN = f["logit_scale"] * f["image"] @ distributed.gather_rows(f["text"]).T
    rows = len(logits_BN)
    target_B = torch.arange(rows, device=logits_BN.device) + distributed.rank() * rows
    summed = F.cross_entropy(logits_BN, target_B, reduction="sum")
    (gradient_BHWC,) = torch.autograd.grad(summed, image_BHWC, create_graph=True)
    flat_BM = 255 * gradient_BHWC.flatten(1)
    return (flat_BM.square() if norm == "l2" else flat_BM.abs()).sum(dim=1).mean()


def matrices(encoder: Encoder) -> Iterable[tuple[str, Tensor]]:
    """(name, [out, in]) of the image tower's weights that multiply: kernels flattened to matrices, embeddings left out."""
    for name, weight in encoder.model.named_parameters():
        if name.startswith("visual.") and weight.ndim >= 2 and "embedding" not in name:
            yield name, weight.flatten(1)


def largest(name: str, matrix_OI: Tensor, iterations: int) -> Tensor:
    """The largest singular value σ = uᵀWv, with a gradient for W. u and v are constants, found from a start that the name decides; where
    the first two values are close, some iterations too few give a lower σ."""
    import torch
    from torch.nn import functional as F

    start_I = torch.from_numpy(seeding.rng("spectral", name).standard_normal(matrix_OI.shape[1])).to(matrix_OI)
    with torch.no_grad():
        right_I = F.normalize(start_I, dim=0)
        for _ in range(iterations):
            left_O = F.normalize(matrix_OI @ right_I, dim=0)
            right_I = F.normalize(matrix_OI.T @ left_O, dim=0)
    return left_O @ matrix_OI @ right_I
