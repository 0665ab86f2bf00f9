"""CLIP as other programs lay it out, computed on its own: what their checkpoints hold, and the features that they must give.

`OpenAILayout` has the module names of OpenAI's model class, in its order of registration; CleanCLIP, attack-cleanclip and SafeCLIP train
that class. `HuggingFaceLayout` has the tensors of `CLIPModel.save_pretrained` by their names, with separate projections of queries,
keys and values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from trainers.encoder import Encoder, Tokenizer
from trainers.weights.load import load_weights

SIZE, EMBED, TEXT, CONTEXT, VOCABULARY = 32, 16, 32, 10, 49408
PATCH, VISION, HEAD = 8, 32, 16
"""Side of a patch, channels of the vision transformer, channels of an attention head in both towers."""


def config(tower: str, quick_gelu: bool = True) -> dict[str, Any]:
    """open_clip's configuration of the same model; `tower` is "resnet" or "vit"."""
    vision = (
        {"image_size": SIZE, "layers": 2, "width": VISION, "head_width": HEAD, "patch_size": PATCH}
        if tower == "vit"
        else {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 8}
    )
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": TEXT, "heads": TEXT // HEAD, "layers": 2}
    return {"embed_dim": EMBED, "vision_cfg": vision, "text_cfg": text} | ({"quick_gelu": True} if quick_gelu else {})


def tokenizer() -> Tokenizer:
    return Tokenizer(open_clip.SimpleTokenizer(context_length=CONTEXT))


def encoder(tower: str, quick_gelu: bool = True, seed: int = 0, twin: str = "") -> Encoder:
    """The same model as open_clip computes it."""
    own = config(tower, quick_gelu)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**own)
    return Encoder(model, own, tokenizer(), twin)


def same_weights(one: Encoder, state: dict[str, Tensor]) -> bool:
    """Whether the model holds exactly these tensors."""
    own = one.model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in own.items())


def said_by(one: Encoder, path: Path) -> list[str]:
    """What loading this checkpoint says."""
    said: list[str] = []
    load_weights(one, path, say=said.append)
    return said


def as_encoder(model: nn.Module) -> Encoder:
    """Another program's model, to be measured by the same evaluators."""
    return Encoder(model, {"embed_dim": EMBED}, tokenizer()).eval()


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


class _Block(nn.Module):
    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // HEAD, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", _QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)
        self.causal = causal

    def forward(self, x_BLD: Tensor) -> Tensor:
        length = x_BLD.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1) if self.causal else None
        y_BLD = self.ln_1(x_BLD)
        x_BLD = x_BLD + self.attn(y_BLD, y_BLD, y_BLD, need_weights=False, attn_mask=mask)[0]
        return x_BLD + self.mlp(self.ln_2(x_BLD))


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, causal: bool) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(_Block(width, causal) for _ in range(layers)))


class _Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, VISION, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(VISION) / 4)
        self.positional_embedding = nn.Parameter(torch.randn((SIZE // PATCH) ** 2 + 1, VISION) / 4)
        self.ln_pre = nn.LayerNorm(VISION)
        self.transformer = _Transformer(VISION, 2, causal=False)
        self.ln_post = nn.LayerNorm(VISION)
        self.proj = nn.Parameter(torch.randn(VISION, EMBED) / 4)
        self.image_size = SIZE

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        patch_BLD = self.conv1(pixels_BCHW).flatten(2).mT
        x_BLD = torch.cat([self.class_embedding.expand(len(patch_BLD), 1, -1), patch_BLD], 1) + self.positional_embedding
        return self.ln_post(self.transformer.resblocks(self.ln_pre(x_BLD))[:, 0]) @ self.proj


class OpenAILayout(nn.Module):
    """OpenAI's model class; for a ResNet the image tower is open_clip's own, which has the same names."""

    def __init__(self, tower: str, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.visual = _Vision() if tower == "vit" else open_clip.CLIP(**config("resnet")).visual
            self.transformer = _Transformer(TEXT, 2, causal=True)
            self.token_embedding = nn.Embedding(VOCABULARY, TEXT)
            self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, TEXT) / 4)
            self.ln_final = nn.LayerNorm(TEXT)
            self.text_projection = nn.Parameter(torch.randn(TEXT, EMBED) / 4)
            self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.logit_bias = None

    def encode_image(self, pixels_BCHW: Tensor) -> Tensor:
        return self.visual(pixels_BCHW)

    def encode_text(self, token_BL: Tensor) -> Tensor:
        x_BLD = self.ln_final(self.transformer.resblocks(self.token_embedding(token_BL) + self.positional_embedding))
        return x_BLD[torch.arange(len(token_BL)), token_BL.argmax(1)] @ self.text_projection


class HuggingFaceLayout(nn.Module):
    """`CLIPModel` of a vision transformer: `tensors` as its state dict names them."""

    def __init__(self, seed: int, act: str = "quick_gelu") -> None:
        super().__init__()
        self.act = {"quick_gelu": quick_gelu, "gelu": nn.functional.gelu}[act]
        self.configuration = {
            "model_type": "clip",
            "projection_dim": EMBED,
            "text_config": {"hidden_size": TEXT, "num_attention_heads": TEXT // HEAD, "num_hidden_layers": 2, "hidden_act": act},
            "vision_config": {"hidden_size": VISION, "num_attention_heads": VISION // HEAD, "num_hidden_layers": 2, "hidden_act": act,
                              "image_size": SIZE, "patch_size": PATCH},
        }  # fmt: skip
        draw = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=draw) / 4
        self.tensors = {
            "logit_scale": torch.tensor(3.0),
            "text_model.embeddings.token_embedding.weight": normal(VOCABULARY, TEXT),
            "text_model.embeddings.position_embedding.weight": normal(CONTEXT, TEXT),
            "text_model.embeddings.position_ids": torch.arange(CONTEXT)[None],
            "vision_model.embeddings.class_embedding": normal(VISION),
            "vision_model.embeddings.patch_embedding.weight": normal(VISION, 3, PATCH, PATCH),
            "vision_model.embeddings.position_embedding.weight": normal((SIZE // PATCH) ** 2 + 1, VISION),
            "vision_model.embeddings.position_ids": torch.arange((SIZE // PATCH) ** 2 + 1)[None],
            "text_projection.weight": normal(EMBED, TEXT),
            "visual_projection.weight": normal(EMBED, VISION),
        }
        for tower, width in (("text", TEXT), ("vision", VISION)):
            layers = [f"{tower}_model.encoder.layers.{number}" for number in range(2)]
            ends = ["text_model.final_layer_norm"] if tower == "text" else ["vision_model.pre_layrnorm", "vision_model.post_layernorm"]
            sizes = {f"self_attn.{part}_proj": (width, width) for part in ("k", "v", "q", "out")}
            sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            for layer in layers:
                for part, shape in sizes.items():
                    self.tensors |= {f"{layer}.{part}.weight": normal(*shape), f"{layer}.{part}.bias": normal(shape[0])}
            for norm in [*ends, *(f"{layer}.layer_norm{i}" for layer in layers for i in (1, 2))]:
                self.tensors |= {f"{norm}.weight": 1 + normal(width), f"{norm}.bias": normal(width)}
        self.logit_scale, self.logit_bias = nn.Parameter(self.tensors["logit_scale"]), None
        self.visual = nn.Module()
        self.visual.image_size = SIZE

    def _of(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        if weight.ndim == 1:
            return nn.functional.layer_norm(x, weight.shape, weight, bias)
        return x @ weight.T + bias

    def _layers(self, tower: str, x_BLD: Tensor) -> Tensor:
        batch, length, width = x_BLD.shape
        mask_LL = torch.full((length, length), -torch.inf).triu(1) if tower == "text" else torch.zeros(length, length)
        for number in range(2):
            layer = f"{tower}_model.encoder.layers.{number}"
            y_BLD = self._of(f"{layer}.layer_norm1", x_BLD)
            q, k, v = (self._of(f"{layer}.self_attn.{part}_proj", y_BLD).view(batch, length, -1, HEAD).transpose(1, 2) for part in "qkv")
            share_BHLL = (q @ k.mT / HEAD**0.5 + mask_LL).softmax(-1)
            x_BLD = x_BLD + self._of(f"{layer}.self_attn.out_proj", (share_BHLL @ v).transpose(1, 2).reshape(batch, length, width))
            y_BLD = self._of(f"{layer}.mlp.fc1", self._of(f"{layer}.layer_norm2", x_BLD))
            x_BLD = x_BLD + self._of(f"{layer}.mlp.fc2", self.act(y_BLD))
        return x_BLD

    def encode_image(self, pixels_BCHW: Tensor) -> Tensor:
        places = "vision_model.embeddings"
        patch_BLD = nn.functional.conv2d(pixels_BCHW, self.tensors[f"{places}.patch_embedding.weight"], stride=PATCH).flatten(2).mT
        x_BLD = torch.cat([self.tensors[f"{places}.class_embedding"].expand(len(patch_BLD), 1, -1), patch_BLD], 1)
        x_BLD = self._of("vision_model.pre_layrnorm", x_BLD + self.tensors[f"{places}.position_embedding.weight"])
        return self._of("vision_model.post_layernorm", self._layers("vision", x_BLD)[:, 0]) @ self.tensors["visual_projection.weight"].T

    def encode_text(self, token_BL: Tensor) -> Tensor:
        places = "text_model.embeddings"
        x_BLD = self.tensors[f"{places}.token_embedding.weight"][token_BL] + self.tensors[f"{places}.position_embedding.weight"]
        x_BLD = self._of("text_model.final_layer_norm", self._layers("text", x_BLD))
        return x_BLD[torch.arange(len(token_BL)), token_BL.argmax(1)] @ self.tensors["text_projection.weight"].T
