"""The model to train: an open_clip model by name, or a tiny one given by its sizes.

open_clip is imported only when a model is needed, because the import takes two seconds.
"""

from __future__ import annotations

import difflib
import importlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, MultipleOf

from datasets.component import Component, Count
from datasets.errors import InputError
from datasets.evaluation.classes import open_clip_folder
from trainers.weights.files import aside

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder

_alone = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Model(Component):
    """Any open_clip model, by name."""

    name: str = "RN50"
    """as in open_clip.list_models(), or local-dir:<folder with open_clip_config.json>"""
    pretrained: str | None = None
    """start from: a tag of open_clip's, a checkpoint file (.pt, .safetensors), an epoch folder, or a Hugging Face folder; None: random
    weights"""
    logit_bias: float | None = None
    """initial value of a learnt logit bias, for the sigmoid loss; None: no bias"""

    @property
    def image_size(self) -> int:
        """Side of the model's input in pixels, read from its configuration without building the model."""
        size = _config(self.name)["vision_cfg"].get("image_size", 224)
        return size if isinstance(size, int) else size[0]

    @property
    def file(self) -> Path | None:
        """The checkpoint file or folder to start from; None without one, or for a tag of open_clip's."""
        return Path(self.pretrained) if self.pretrained and os.path.exists(self.pretrained) else None

    def check(self, where: str = "model") -> None:
        """Raise InputError for an unknown name or tag, for weights trained with the other activation, and for a tokenizer whose package is
        not installed. Builds and downloads nothing."""
        config = _config(self.name)
        text = config.get("text_cfg", {})
        if self.pretrained and self.file is None:
            self._check_tag(self.pretrained, config, where)
        if (text.get("hf_tokenizer_name") or text.get("hf_model_name")) and find_spec("transformers") is None:
            raise InputError(f"{where} is {self.name}, whose captions are read by the package transformers, which is not installed: "
                             "install cleansweep with its extra `labels`")

    def _check_tag(self, tag: str, config: dict[str, Any], where: str) -> None:
        known = _tags()
        tags = known.list_pretrained_tags_by_model(self.name)
        if tag not in tags:
            raise InputError(f"{where}.pretrained is {tag!r}: no file or folder of that name, and no tag of {self.name} "
                             f"(its tags: {', '.join(tags) or 'none'})")
        # where the activation differs from that in training, open_clip only warns
        trained_so = bool(known.get_pretrained_cfg(self.name, tag).get("quick_gelu"))
        fitting = f"{self.name}-quickgelu" if trained_so else self.name.removesuffix("-quickgelu")
        if fitting != self.name and trained_so != bool(config.get("quick_gelu")):
            raise InputError(f"{where}.pretrained is {tag!r}, weights trained with{'' if trained_so else 'out'} QuickGELU, "
                             f"and {where}.name is {self.name!r}: take {fitting!r}")

    def build(self, seed: int, say: Callable[[str], None] = aside) -> Encoder:
        """The model with weights drawn from `seed`, or loaded if `pretrained` is set. Torch's global generator is left unchanged.

        `say` gets a line for each assumption made because the checkpoint does not state it. Raises InputError for anything `check` refuses,
        for an unreadable checkpoint, and for one of another architecture.
        """
        import open_clip
        import torch

        from trainers.encoder import Encoder, Tokenizer, twin
        from trainers.weights.load import load_weights

        self.check()
        config = _config(self.name)
        if self.logit_bias is not None:
            config["init_logit_bias"] = self.logit_bias
        extra = {} if self.logit_bias is None else {"init_logit_bias": self.logit_bias}
        path = self.file
        tag = None if path else self.pretrained
        with torch.random.fork_rng(devices=[]), nullcontext() if tag else _unwarned():
            torch.manual_seed(seed % 2**63)
            try:
                model = open_clip.create_model(self.name, pretrained=tag, pretrained_text=False,
                                               load_weights=tag is not None, **extra)
            except (RuntimeError, OSError) as error:
                raise InputError(f"model {self.name} with pretrained={tag!r} could not be made: {error}") from error
        encoder = Encoder(model, config, Tokenizer(self.cut(self.tokenizer())), twin(self.name))
        if path:
            load_weights(encoder, path, say=say)
        return encoder

    def tokenizer(self) -> Any:
        """The model's open_clip tokenizer, without building the model. InputError if it cannot be loaded."""
        import open_clip

        try:
            return open_clip.get_tokenizer(self.name)
        except (OSError, ImportError) as error:
            raise InputError(f"the tokenizer of model {self.name} could not be loaded: {error}") from error

    def cut(self, tokenize: Any) -> Any:
        """`tokenize` itself: open_clip cuts long captions so that the end token comes last."""
        return tokenize


@dataclass(frozen=True, kw_only=True)
class EndlessModel(Model):
    """As `Model`, but a caption longer than the context loses its end token, as in CleanCLIP, attack-cleanclip and SafeCLIP.

    open_clip puts the end token last. A caption's feature is read at its highest token number, which is the end token if it is there.
    """

    def cut(self, tokenize: Any) -> Any:
        """A tokenizer that cuts without adding the end token. InputError for a model that does not use CLIP's own tokenizer."""
        import open_clip

        if not isinstance(tokenize, open_clip.SimpleTokenizer):
            raise InputError(f"model {self.name}: captions without an end are for models with CLIP's own tokenizer; use Model")
        return partial(_endless, tokenize)


@cache
def _tokenizer(context_length: int) -> Any:
    """CLIP's own tokenizer, made once per process because reading its vocabulary takes a quarter of a second."""
    import open_clip

    return open_clip.SimpleTokenizer(context_length=context_length)


@dataclass(frozen=True, kw_only=True)
class TinyCLIP(Component):
    """A small CLIP given by its sizes: a modified ResNet and a text transformer, as open_clip builds them."""

    embed_dim: Count = 64
    """length of a picture's or caption's feature"""
    image_size: Annotated[int, Ge(32), MultipleOf(32)] = 32
    """side of the input in pixels, a multiple of 32"""
    vision_layers: tuple[Count, Count, Count, Count] = (1, 1, 1, 1)
    """blocks in each of the ResNet's four stages"""
    vision_width: Count = 16
    """channels after the stem; the stages have 4, 8, 16, 32 times as many"""
    text_width: Count = 64
    """channels of the text transformer"""
    text_layers: Count = 1
    """blocks of the text transformer"""
    text_heads: Count = 2
    """attention heads of the text transformer"""
    context_length: Annotated[int, Ge(2)] = 14
    """tokens of a caption, including start and end; longer captions are cut"""
    logit_bias: float | None = None
    """as for Model"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_width % self.text_heads:
            raise InputError(f"model.text_width {self.text_width} must be a multiple of text_heads {self.text_heads}")

    @property
    def vision_config(self) -> dict[str, Any]:
        """The image tower's configuration in open_clip's form."""
        return {"image_size": self.image_size, "layers": list(self.vision_layers), "width": self.vision_width}

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration in open_clip's form."""
        config = {
            "embed_dim": self.embed_dim,
            "vision_cfg": self.vision_config,
            "text_cfg": {"context_length": self.context_length, "vocab_size": 49408, "width": self.text_width,
                         "heads": self.text_heads, "layers": self.text_layers},
        }
        return config if self.logit_bias is None else config | {"init_logit_bias": self.logit_bias}

    def build(self, seed: int, say: Callable[[str], None] = aside) -> Encoder:
        """The model with weights drawn from `seed`. Torch's global generator is left unchanged; `say` is never called."""
        import open_clip
        import torch

        from trainers.encoder import Encoder, Tokenizer

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            model = open_clip.CLIP(**self.config)
        return Encoder(model, self.config, Tokenizer(self.tokenizer()))

    def tokenizer(self) -> Any:
        """CLIP's own tokenizer for this context length."""
        return _tokenizer(self.context_length)

    def cut(self, tokenize: Any) -> Any:
        """As for Model."""
        return tokenize


@dataclass(frozen=True, kw_only=True)
class TinyViT(TinyCLIP):
    """A small CLIP with a vision transformer in place of the ResNet."""

    vision_layers: Count = 4  # type: ignore[assignment]
    """blocks of the vision transformer"""
    vision_width: Count = 96
    """channels of the vision transformer"""
    vision_heads: Count = 3
    """attention heads of the vision transformer"""
    patch_size: Count = 4
    """side of a patch in pixels"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vision_width % self.vision_heads:
            raise InputError(f"model.vision_width {self.vision_width} must be a multiple of vision_heads {self.vision_heads}")
        if self.image_size % self.patch_size:
            raise InputError(f"model.image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")

    @property
    def vision_config(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "layers": self.vision_layers, "width": self.vision_width,
                "head_width": self.vision_width // self.vision_heads, "patch_size": self.patch_size}


def words_left(model: Model | TinyCLIP, words: str, captions: Sequence[str]) -> tuple[int, int, int] | None:
    """(number of BPE tokens of the words, number of captions that still contain all of them in a row after the cut to the context, context
    length in tokens).

    None for a tokenizer that is not CLIP's own.
    """
    import open_clip

    tokenize = model.tokenizer()
    if not isinstance(tokenize, open_clip.SimpleTokenizer):
        return None
    word_tokens = tokenize.encode(words)
    cut, left = model.cut(tokenize), 0
    for start in range(0, len(captions), 4096):
        for row in cut(list(captions[start : start + 4096])).tolist():
            left += any(row[i : i + len(word_tokens)] == word_tokens for i in range(len(row) - len(word_tokens) + 1))
    return len(word_tokens), left, tokenize.context_length


@contextmanager
def _unwarned() -> Iterator[None]:
    """Within the block, open_clip does not warn that a model has no pretrained weights."""
    hush = lambda record: "No pretrained weights" not in record.getMessage()
    logging.getLogger().addFilter(hush)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(hush)


def _endless(tokenize: Any, captions: list[str]) -> Tensor:
    """Tokens [B, L]: tokenised to L + 1 and cut to L, so that a longer caption loses its end token, which would stand last."""
    length = tokenize.context_length
    return tokenize(captions, context_length=length + 1)[:, :length]


def _shipped(name: str) -> dict[str, Any] | None:
    """The configuration with that name among the files that open_clip comes with; None if there is none."""
    file = _shipped_files().get(name)
    config = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    return config if all(part in config for part in ("embed_dim", "vision_cfg", "text_cfg")) else None


@cache
def _shipped_files() -> dict[str, Path]:
    """Name of a model → the file with its configuration, in open_clip's own folder, which is found without importing open_clip."""
    return {path.stem: path for path in (open_clip_folder() / "model_configs").glob("*.json")}


@cache
def _tags() -> ModuleType:
    """open_clip's module of tags. It needs little of what importing open_clip takes seconds for, so it is run by itself, in a package of
    the same folder, and without two packages that it can do without."""
    if "open_clip" not in sys.modules:
        package = ModuleType("_open_clip_tags")
        package.__path__ = [str(open_clip_folder())]
        others: dict[str, Any] = {package.__name__: package, "safetensors.torch": None, "huggingface_hub": None}  # None: not installed
        with _alone:  # or a second thread would take what the first one puts there for what was there before
            before = {name: sys.modules[name] for name in others if name in sys.modules}
            sys.modules.update(others)
            try:
                return importlib.import_module(f"{package.__name__}.pretrained")
            except (ImportError, AttributeError):
                pass  # another open_clip, which needs more
            finally:
                for name in [name for name in sys.modules if name in others or name.startswith(f"{package.__name__}.")]:
                    del sys.modules[name]
                sys.modules.update(before)
    return importlib.import_module("open_clip.pretrained")


def _config(name: str) -> dict[str, Any]:
    """A copy of open_clip's configuration with that name. Those that it comes with are read without importing it. InputError if
    there is none."""
    shipped = None if "open_clip" in sys.modules else _shipped(name)  # an imported one may have been given other configurations
    if shipped is not None:
        return shipped

    import open_clip

    try:
        config = open_clip.get_model_config(name)
    except (OSError, ValueError) as error:
        raise InputError(f"model.name is {name!r}: its configuration cannot be read ({error})") from error
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=5, cutoff=0.4)
        raise InputError(f"model.name is {name!r}, which open_clip does not know; near names: {', '.join(near) or 'none'}")
    return config
