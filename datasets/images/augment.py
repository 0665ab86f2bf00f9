"""Random changes to a picture, as lists of steps drawn from one generator; the same draws can be replayed on another picture.

Shape legend: H height, W width, S side of the view, C = 3 channels; pictures are uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from datasets.images.resize import resize


class Step(NamedTuple):
    """One change with its draws already made."""

    change: Callable[[Any], Any]
    """A function of a Pillow picture or, with `array`, of an array."""
    zoom: float = 0.0
    """Magnification in area of a step that moves pixels; 0 for one that changes their values in place."""
    array: bool = False
    """Whether `change` takes and returns uint8 [H, W, 3]; this is cheaper for changes that NumPy can express."""


def apply(steps: list[Step], image_HWC: np.ndarray) -> np.ndarray:
    """Apply the steps to uint8 [H, W, 3], one after the other. Do not write to the result: without steps it is the input itself."""
    picture: Any = image_HWC
    for step in steps:
        if step.array:
            picture = step.change(np.asarray(picture))
        else:
            picture = step.change(picture if isinstance(picture, Image.Image) else Image.fromarray(picture))
    return np.asarray(picture)


def second_view_steps(name: str, size: int, rng: np.random.Generator) -> list[Step]:
    """The steps of the in-modal loss's second view: `autoaugment`, `simclr` or `none`."""
    if name == "none":
        return []
    assert name in ("autoaugment", "simclr"), name
    return autoaugment(rng) if name == "autoaugment" else simclr(size, rng)


def crop_and_flip(size: int, area: tuple[float, float] | None, flip: float, rng: np.random.Generator) -> list[Step]:
    """Steps of a random resized crop (`area`: its range as a share of the picture; aspect 3/4…4/3) and of mirroring with chance `flip`."""
    steps = []
    if area is not None:
        for _ in range(10):  # torchvision's rule: ten attempts, then the whole picture
            pixels = size * size * rng.uniform(*area)
            aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if 0 < width <= size and 0 < height <= size:
                top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
                steps.append(_crop(top, left, height, width, size))
                break
    if flip and rng.random() < flip:
        steps.append(Step(ImageOps.mirror, zoom=1.0))
    return steps


def _crop(top: int, left: int, height: int, width: int, size: int) -> Step:
    def change(image_HWC: np.ndarray) -> np.ndarray:
        return resize(image_HWC[top : top + height, left : left + width], size, size)

    return Step(change, zoom=size * size / (height * width), array=True)


def simclr(size: int, rng: np.random.Generator) -> list[Step]:
    """Flip, crop of 8…100 % of the area, colour jitter (.5, .5, .5, .1) with chance .8, grey with chance .2, blur.

    The blur's standard deviation is drawn from .1…2 pixels at a view of 224, in proportion at other sizes.
    """
    steps = crop_and_flip(size, (0.08, 1.0), 0.5, rng)
    if rng.random() < 0.8:
        jitter = [
            _enhance(ImageEnhance.Brightness, rng.uniform(0.5, 1.5)),
            _enhance(ImageEnhance.Contrast, rng.uniform(0.5, 1.5)),
            _enhance(ImageEnhance.Color, rng.uniform(0.5, 1.5)),
            _hue(rng.uniform(-0.1, 0.1)),
        ]
        steps += [jitter[i] for i in rng.permutation(4)]
    if rng.random() < 0.2:
        steps.append(Step(lambda picture: picture.convert("L").convert("RGB")))
    deviation = rng.uniform(0.1, 2.0) * size / 224
    steps.append(Step(lambda picture: picture.filter(ImageFilter.GaussianBlur(deviation))))
    return steps


def _hue(turn: float) -> Step:
    def change(picture: Image.Image) -> Image.Image:
        hue, saturation, value = picture.convert("HSV").split()
        hue = Image.fromarray(np.asarray(hue) + np.uint8(round(turn * 255) % 256))  # wraps around, as hues do
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")

    return Step(change)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance], factor: float) -> Step:
    return Step(lambda picture: kind(picture).enhance(factor))


AUTOAUGMENT_IMAGENET = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, None), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, None)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, None)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, None), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, None)),
    (("Equalize", 0.0, None), ("Equalize", 0.8, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, None)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, None)),
    (("Color", 0.4, 0), ("Equalize", 0.6, None)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
)
"""The policy learnt on ImageNet (Cubuk et al. 2019, "AutoAugment", table 9): pairs of (operation, chance, magnitude 0…9)."""


def autoaugment(rng: np.random.Generator) -> list[Step]:
    """One of the 25 sub-policies of AUTOAUGMENT_IMAGENET, with torchvision's magnitudes, nearest-pixel moves, black fill."""
    chosen = AUTOAUGMENT_IMAGENET[int(rng.integers(len(AUTOAUGMENT_IMAGENET)))]
    steps = []
    for name, chance, level in chosen:
        happens, negative = rng.random() < chance, rng.random() < 0.5
        if happens:
            steps.append(autoaugment_step(name, level or 0, negative))
    return steps


def autoaugment_step(name: str, level: int, negative: bool) -> Step:
    """One operation at magnitude `level` 0…9; `negative` reverses those that have a direction."""
    signed = (-1 if negative else 1) * level / 9
    match name:
        case "Posterize":
            mask = np.uint8(0xFF << round(level / (9 / 4)) & 0xFF)
            return Step(lambda image_HWC: image_HWC & mask, array=True)
        case "Solarize":
            least = math.ceil(255 - 255 * level / 9)
            return Step(lambda image_HWC: image_HWC ^ (image_HWC >= least) * np.uint8(255), array=True)
        case "AutoContrast":
            return Step(ImageOps.autocontrast)
        case "Equalize":
            return Step(ImageOps.equalize)
        case "Invert":
            return Step(lambda image_HWC: 255 - image_HWC, array=True)
        case "Color":
            return _enhance(ImageEnhance.Color, 1 + 0.9 * signed)
        case "Contrast":
            return _enhance(ImageEnhance.Contrast, 1 + 0.9 * signed)
        case "Sharpness":
            return _enhance(ImageEnhance.Sharpness, 1 + 0.9 * signed)
        case "Rotate":
            return Step(lambda picture: picture.rotate(30 * signed), zoom=1.0)
        case "ShearX":
            shear = (1, 0.3 * signed, 0, 0, 1, 0)
            return Step(lambda picture: picture.transform(picture.size, Image.Transform.AFFINE, shear), zoom=1.0)
    raise AssertionError(name)
