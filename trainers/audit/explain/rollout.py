"""Attention rollout (Abnar and Zuidema 2020): which patches the attention of a vision transformer draws on.

Shape suffixes: B pictures, L tokens, D channels of tokens, G patches of a side, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.errors import InputError, its_type
from trainers.audit.classifier import Classifier
from trainers.audit.explain.base import Explainer, Explanation
from trainers.encoder import Encoder
from trainers.evaluate.inputs import by_pixels


@dataclass(frozen=True, kw_only=True)
class AttentionRollout(Explainer):
    """R = Ã_L ⋯ Ã_1, where Ã = ½(A + 1) and A is a block's attention, averaged over its heads. The heat of a patch is its share in the
    token that becomes the picture's feature: the class token's row of R, or the mean row of the patches if these are averaged.

    It is the same for every class, and never below 0: it says where the model looks, not what for.
    """

    @property
    def label(self) -> str:
        """The method."""
        return "attention rollout"

    def explain(self, classifier: Classifier, encoder: Encoder | None, picture_CHW: Tensor, of: int, key: str) -> Explanation:
        """By patches, which are the segments. Pixels beyond the last whole patch, which the model does not see, have heat 0. InputError for
        a tower that is not open_clip's vision transformer with a class token or mean of the patches."""
        visual = tower(encoder)
        assert encoder is not None
        pixel_HWC = 255 * picture_CHW.detach().to(encoder.device, encoder.mean.dtype).permute(1, 2, 0)
        with by_pixels(encoder), torch.no_grad(), attentions(visual) as seen:
            visual(((pixel_HWC - encoder.mean) / encoder.std).permute(2, 0, 1)[None])
        together_LL = rolled([attention_BLL[0].double().cpu().numpy() for attention_BLL in seen])
        share_P = together_LL[0, 1:] if visual.pool_type == "tok" else together_LL[1:, 1:].mean(0)
        if not np.isfinite(share_P).all():
            raise FloatingPointError("the model's attention to the audited pictures is not finite")
        height, width = picture_CHW.shape[1:]
        return Explanation(*spread(share_P.reshape(visual.grid_size), visual.patch_size, (height, width)))


def tower(encoder: Encoder | None) -> Any:
    """The encoder's vision transformer. InputError if it has none of the accepted kind."""
    accepted = "accepted: open_clip's vision transformers (ViT-…, TinyViT) whose feature is the class token or the mean of the patches"
    if encoder is None:
        raise InputError(f"AttentionRollout: there is no model to look into; {accepted}.")
    visual = encoder.model.visual
    if not (hasattr(visual, "grid_size") and hasattr(getattr(visual, "transformer", None), "resblocks")):
        raise InputError(f"AttentionRollout: the picture tower is {its_type(visual)}, which has no blocks of attention between "
                         f"patches; {accepted}.")
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
        raise InputError(f"AttentionRollout: the picture tower pools its patches by attention; {accepted}.")
    return visual


@contextmanager
def attentions(visual: Any) -> Iterator[list[Tensor]]:
    """Within the block: a list to which each forward pass adds the attention of each of its blocks, averaged over heads, [B, L, L]."""
    seen: list[Tensor] = []

    def ask(module: nn.Module, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return given, named | {"need_weights": True, "average_attn_weights": True}

    hooks = []
    for block in visual.transformer.resblocks:
        if isinstance(block.attn, nn.MultiheadAttention):
            hooks.append(block.attn.register_forward_pre_hook(ask, with_kwargs=True))
            hooks.append(block.attn.register_forward_hook(lambda module, given, found: seen.append(found[1])))
        else:  # open_clip's own attention, which does not tell its weights
            hooks.append(block.attn.register_forward_pre_hook(lambda module, given: seen.append(weights(module, given[0]))))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def weights(attention: Any, token_BLD: Tensor) -> Tensor:
    """The weights of open_clip's `Attention`, averaged over heads, [B, L, L]. InputError for its cosine form."""
    if attention.logit_scale is not None:
        raise InputError("AttentionRollout: the picture tower has cosine attention; accepted: scaled dot products.")
    qkv_BLD3 = F.linear(token_BLD, attention.in_proj_weight, attention.in_proj_bias)
    q_BhLd, k_BhLd, _ = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in qkv_BLD3.chunk(3, dim=-1))
    score_BhLL = attention.ln_q(q_BhLd) * attention.scale @ attention.ln_k(k_BhLd).transpose(-1, -2)
    return score_BhLL.softmax(-1).mean(1)


def rolled(attention: list[np.ndarray]) -> np.ndarray:
    """float64 [L, L]: the product of (A + 1), rows scaled to sum 1, of the blocks in their order; the first block's is the rightmost."""
    together_LL = np.eye(len(attention[0]))
    for one_LL in attention:
        with_itself_LL = one_LL + np.eye(len(one_LL))
        together_LL = with_itself_LL / with_itself_LL.sum(1, keepdims=True) @ together_LL
    return together_LL


def spread(share_GG: np.ndarray, patch: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(heat [H, W], segment [H, W]) of shares by patch. Pixels beyond the last whole patch have heat 0 and segments of their own."""
    row_H, column_W = (np.arange(side) // of for side, of in zip(size, patch))
    rows, columns = int(row_H[-1]) + 1, int(column_W[-1]) + 1
    padded_GG = np.pad(share_GG, ((0, rows - share_GG.shape[0]), (0, columns - share_GG.shape[1])))
    return padded_GG[row_H[:, None], column_W[None]], (row_H[:, None] * columns + column_W[None]).astype(np.int64)
