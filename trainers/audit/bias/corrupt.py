"""The 15 corruptions of pictures, after Hendrycks and Dietterich (2019).

Each takes a picture (floats [S, S, 3] in 0 … 1), a severity of 1 … 5 and random numbers, and gives a picture that may leave 0 … 1. Lengths
are given in pixels of a picture of 224 × 224 and scaled by S/224, so that a severity takes about the same share of a small picture. The
five values of each parameter stand in the order of the severities.

Shape suffixes: S side of the picture, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage, signal
from skimage.color import hsv2rgb, rgb2gray, rgb2hsv

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def gaussian_noise(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """Normal noise with this standard deviation."""
    return x + draw.normal(0, _of(severity, 0.08, 0.12, 0.18, 0.26, 0.38), x.shape)


def shot_noise(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """Poisson noise of a sensor that counts this many photons at full brightness."""
    photons = _of(severity, 60, 25, 12, 5, 3)
    return draw.poisson(x * photons) / photons


def impulse_noise(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """This share of all values becomes 0 or 1, each half of the time."""
    hit = draw.random(x.shape) < _of(severity, 0.03, 0.06, 0.09, 0.17, 0.27)
    return np.where(hit, draw.random(x.shape) < 0.5, x)


def defocus_blur(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """The mean over a disk of this radius."""
    radius = _of(severity, 3, 4, 6, 8, 10) * _scale(x)
    fine = np.linspace(-radius, radius, 8 * int(np.ceil(radius)) + 9)
    down, across = (plane.ravel() for plane in np.meshgrid(fine, fine))
    inside = down**2 + across**2 <= radius**2
    return _filtered(x, _kernel(down[inside], across[inside]))


def glass_blur(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """Each pixel is taken from a random place at most `reach` away, between two normal blurs of `width`."""
    width, reach = _of(severity, 0.7, 0.9, 1.1, 1.4, 1.8) * _scale(x), _of(severity, 2, 3, 4, 6, 8) * _scale(x)
    blurred = ndimage.gaussian_filter(x, (width, width, 0), mode="reflect")
    return ndimage.gaussian_filter(_moved(blurred, draw.uniform(-reach, reach, (2, *x.shape[:2]))), (width, width, 0), mode="reflect")


def motion_blur(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """The mean over a line of this length in a random direction."""
    return _filtered(x, _line(_of(severity, 10, 15, 20, 28, 38) * _scale(x), draw.uniform(0, np.pi)))


def zoom_blur(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """The mean over magnifications about the centre, from 1 to this one in steps of .02."""
    largest = _of(severity, 1.10, 1.16, 1.22, 1.28, 1.36)
    place = np.indices(x.shape[:2]) - (len(x) - 1) / 2
    steps = np.arange(1, largest + 0.001, 0.02)
    return np.mean([_moved(x, place / zoom - place) for zoom in steps], axis=0)


def snow(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """Flakes, drawn out along their fall, on about this share of a picture that is paler by `pale`."""
    cover, pale = _of(severity, 0.05, 0.10, 0.16, 0.23, 0.31), _of(severity, 0.1, 0.18, 0.26, 0.34, 0.42)
    width, length = 1.6 * max(_scale(x), 0.25), 12 * max(_scale(x), 0.25)
    begun = draw.random(x.shape[:2]) < cover / (2.5 * width * (length + 2.5 * width))
    flake = _filtered(ndimage.gaussian_filter(begun.astype(float), width)[..., None], _line(length, np.pi / 2 + draw.uniform(-0.6, 0.6)))
    peak = 1 / (2.5 * width * length)
    grey = 0.5 + 0.5 * rgb2gray(x)[..., None]
    return (1 - pale) * x + pale * np.maximum(x, grey) + 0.8 * np.clip(flake / peak, 0, 1)


def frost(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """Ice over a darkened picture: bright ridges where a cloud is near its middle, in two sizes, with the picture kept by this factor and
    the ice added by the other."""
    keep, ice = _of(severity, 1.0, 0.85, 0.75, 0.65, 0.55), _of(severity, 0.3, 0.42, 0.54, 0.64, 0.75)
    ridges = [(1 - np.abs(2 * _cloud(len(x), slope, draw) - 1)) ** power for slope, power in ((1.6, 4), (1.0, 2))]
    cover = np.clip(0.9 * ridges[0] + 0.6 * ridges[1], 0, 1)[..., None]
    return keep * x + ice * cover * np.array([0.85, 0.93, 1.0])


def fog(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """A cloud times this factor is added, and the sum scaled back to the picture's own maximum."""
    thick, top = _of(severity, 0.4, 0.7, 1.1, 1.7, 2.8), x.max()
    return (x + thick * _cloud(len(x), 2.0, draw)[..., None]) * top / (top + thick)


def brightness(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """The value in HSV plus this."""
    hsv = rgb2hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + _of(severity, 0.1, 0.2, 0.3, 0.4, 0.5), 0, 1)
    return hsv2rgb(hsv)


def contrast(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """The distance from each channel's mean times this factor."""
    mean = x.mean((0, 1))
    return (x - mean) * _of(severity, 0.4, 0.3, 0.2, 0.1, 0.05) + mean


def elastic_transform(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """Pixels are taken from places that a smooth random field moves by this much (root mean square, along each axis)."""
    field = ndimage.gaussian_filter(draw.normal(size=(2, *x.shape[:2])), (0, 12 * _scale(x), 12 * _scale(x)), mode="wrap")
    return _moved(x, field / field.std() * _of(severity, 2, 3.5, 5, 7, 9.5) * _scale(x))


def pixelate(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """The picture in this share of its side, in squares of one colour."""
    small = max(1, round(len(x) * _of(severity, 0.6, 0.5, 0.4, 0.3, 0.2)))
    down = _bytes(x).resize((small, small), Image.Resampling.BOX)
    return np.asarray(down.resize(x.shape[1::-1], Image.Resampling.NEAREST)) / 255


def jpeg_compression(x: np.ndarray, severity: int, draw: np.random.Generator) -> np.ndarray:
    """JPEG of this quality."""
    out = io.BytesIO()
    _bytes(x).save(out, "JPEG", quality=int(_of(severity, 25, 18, 15, 10, 7)))
    return np.asarray(Image.open(out).convert("RGB")) / 255


CORRUPTIONS: dict[str, Corruption] = {
    f.__name__: f for f in (gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
                            brightness, contrast, elastic_transform, pixelate, jpeg_compression)
}  # fmt: skip
"""By name, in the order of the publication."""


def _of(severity: int, *values: float) -> float:
    return values[severity - 1]


def _scale(x: np.ndarray) -> float:
    return len(x) / 224


def _bytes(x: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(255 * x).astype(np.uint8))


def _filtered(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolution of each channel with an odd kernel, whose sum becomes 1; the picture is mirrored at its edges."""
    reach = len(kernel) // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    return signal.fftconvolve(padded, (kernel / kernel.sum())[..., None], mode="valid", axes=(0, 1))


def _line(length: float, angle: float) -> np.ndarray:
    """The kernel of a line through the middle."""
    along = np.linspace(-length / 2, length / 2, 4 * int(np.ceil(length)) + 9)
    return _kernel(along * np.sin(angle), along * np.cos(angle))


def _kernel(down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """The odd kernel of points at these distances from its middle, each shared among the four nearest pixels."""
    reach = int(np.ceil(max(np.abs(down).max(), np.abs(across).max()))) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row, column = np.floor(down) + y, np.floor(across) + x
        np.add.at(kernel, (row.astype(int) + reach, column.astype(int) + reach), (1 - np.abs(down - row)) * (1 - np.abs(across - column)))
    return kernel


def _moved(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Each pixel taken from its place plus `by` [2, S, S] (down, across), linearly between pixels; the picture is mirrored at its edges."""
    place = np.indices(x.shape[:2]) + by
    return np.stack([ndimage.map_coordinates(channel, place, order=1, mode="reflect") for channel in np.moveaxis(x, -1, 0)], axis=-1)


def _cloud(side: int, slope: float, draw: np.random.Generator) -> np.ndarray:
    """A random field [S, S] in 0 … 1 whose amplitudes fall with frequency to this power, as a plasma fractal's do."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(draw.normal(size=(side, side))) / frequency**slope).real
    return (field - field.min()) / (field.max() - field.min())
