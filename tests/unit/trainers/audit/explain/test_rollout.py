"""Attention rollout against a vision transformer written out in NumPy."""

from collections import OrderedDict

import numpy as np
import open_clip
import pytest
import torch
from scipy.special import erf, softmax

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.classifier import Classifier
from trainers.audit.explain.rollout import AttentionRollout, rolled, spread
from trainers.encoder import Encoder
from trainers.model import TinyCLIP, TinyViT

MODEL = TinyViT(vision_layers=3, vision_width=24, vision_heads=3, patch_size=8, text_width=16)


def encoder(**vision: object) -> Encoder:
    """In float64, with weights so large that attention is far from even."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MODEL.config | {"vision_cfg": MODEL.vision_config | vision}
        made = Encoder(open_clip.CLIP(**config), config, lambda captions: None).double().eval()
        for name, value in made.model.visual.named_parameters():
            if "in_proj_weight" in name or "ln_" in name:
                torch.nn.init.normal_(value, 0, 2.0 if "ln_q" in name or "ln_k" in name else 0.5)
    return made


def classifier() -> Classifier:
    return Classifier(lambda x, _: x.mean((2, 3)), 3, dtype=torch.float64)


def picture() -> torch.Tensor:
    return torch.from_numpy(rng("picture").random((3, 32, 32)))


def normed(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def by_hand(model: Encoder, picture_CHW: np.ndarray, custom: bool) -> tuple[np.ndarray, np.ndarray]:
    """(attention [blocks, L, L], feature [D]) of the tower."""
    visual = model.model.visual
    w: OrderedDict[str, np.ndarray] = OrderedDict((name, value.detach().numpy()) for name, value in visual.named_parameters())
    mean, std = (value.numpy()[:, None, None] / 255 for value in (model.mean, model.std))
    x = (picture_CHW - mean) / std
    patches = x.reshape(3, 4, 8, 4, 8).transpose(1, 3, 0, 2, 4).reshape(16, -1)
    tokens = np.vstack([w["class_embedding"], patches @ w["conv1.weight"].reshape(24, -1).T]) + w["positional_embedding"]
    tokens, seen = normed(tokens, w, "ln_pre"), []
    for block in range(3):
        at = f"transformer.resblocks.{block}."
        qkv = normed(tokens, w, at + "ln_1") @ w[at + "attn.in_proj_weight"].T + w[at + "attn.in_proj_bias"]
        q, k, v = (part.reshape(17, 3, 8).transpose(1, 0, 2) for part in np.split(qkv, 3, axis=1))
        if custom:
            q, k = normed(q, w, at + "attn.ln_q"), normed(k, w, at + "attn.ln_k")
        attention = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(8), axis=-1)
        seen.append(attention.mean(0))
        mixed = (attention @ v).transpose(1, 0, 2).reshape(17, 24)
        tokens = tokens + mixed @ w[at + "attn.out_proj.weight"].T + w[at + "attn.out_proj.bias"]
        hidden = normed(tokens, w, at + "ln_2") @ w[at + "mlp.c_fc.weight"].T + w[at + "mlp.c_fc.bias"]
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        tokens = tokens + hidden @ w[at + "mlp.c_proj.weight"].T + w[at + "mlp.c_proj.bias"]
    return np.stack(seen), normed(tokens, w, "ln_post")[0] @ w["proj"]


@pytest.mark.parametrize("custom", [False, True])
def test_the_product_of_the_blocks_attention(custom: bool) -> None:
    model = encoder(qk_norm=True) if custom else encoder()
    seen, feature_D = by_hand(model, picture().numpy(), custom)
    before_1D = model.encode_image(255 * picture().permute(1, 2, 0)[None], unit=False).detach()
    np.testing.assert_allclose(before_1D[0], feature_D, rtol=1e-9, atol=1e-12, err_msg="the hand-written tower is another one")
    assert np.abs(seen - 1 / 17).max() > 0.05
    found = AttentionRollout().explain(classifier(), model, picture(), 1, "a")
    one, two, three = (0.5 * attention + 0.5 * np.eye(17) for attention in seen)
    known_GG = (three @ two @ one)[0, 1:].reshape(4, 4)
    np.testing.assert_allclose(found.heat_HW, known_GG.repeat(8, 0).repeat(8, 1), rtol=1e-9)
    assert found.r2 is None and (found.segment_HW == np.arange(16).reshape(4, 4).repeat(8, 0).repeat(8, 1)).all()
    assert torch.equal(model.encode_image(255 * picture().permute(1, 2, 0)[None], unit=False), before_1D), "the model is as before"
    other = AttentionRollout().explain(classifier(), model, picture(), 2, "a")
    assert (other.heat_HW == found.heat_HW).all(), "the same for every class"


def test_a_mean_of_patches_takes_the_mean_row() -> None:
    model = encoder(pool_type="avg")
    seen, _ = by_hand(model, picture().numpy(), False)
    one, two, three = (0.5 * attention + 0.5 * np.eye(17) for attention in seen)
    known_GG = (three @ two @ one)[1:, 1:].mean(0).reshape(4, 4)
    found = AttentionRollout().explain(classifier(), model, picture(), 1, "a")
    np.testing.assert_allclose(found.heat_HW[::8, ::8], known_GG, rtol=1e-9)


def test_the_order_of_the_blocks() -> None:
    """The last block looks at token 1 alone, the first lets token 1 look at token 2 alone: half of the half goes there."""
    last, first = np.eye(3), np.eye(3)
    last[0], first[1] = (0, 1, 0), (0, 0, 1)
    np.testing.assert_allclose(rolled([first, last])[0], (0.5, 0.25, 0.25))
    np.testing.assert_allclose(rolled([last, first])[0], (0.5, 0.5, 0))


def test_pixels_beyond_the_last_patch_have_no_heat() -> None:
    heat_HW, segment_HW = spread(np.array([[1.0, 2.0], [3.0, 4.0]]), (2, 2), (5, 4))
    assert (heat_HW == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4], [0, 0, 0, 0]]).all()
    assert (segment_HW == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3], [4, 4, 5, 5]]).all()


def test_towers_without_such_attention_are_refused() -> None:
    pooled = encoder(attentional_pool=True, attn_pooler_heads=2)
    cases = (None, "no model to look into"), (TinyCLIP().build(0), "ModifiedResNet"), (pooled, "pools its patches by attention")
    for model, words in cases:
        with pytest.raises(InputError, match=f"AttentionRollout.*{words}.*accepted"):
            AttentionRollout().explain(classifier(), model, picture(), 1, "a")
