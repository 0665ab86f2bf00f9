"""The canonical view: shorter side to the model's input size, then the centre square.

Shape legend: H height, W width, C = 3 channels, S side of the view.
"""

from __future__ import annotations

import functools

import numpy as np


def resize(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic antialiased resize of uint8 RGB, as PIL's BICUBIC within a level here and there.

    torch's kernel on a channels_last uint8 tensor is many times as fast as PIL; it is imported here, not above, so that
    processes which never resize stay light.
    """
    import torch

    if not (image_HWC.flags.c_contiguous and image_HWC.flags.writeable):  # torch warns of what it could write to and must not
        image_HWC = image_HWC.copy()
    h, w, c = image_HWC.shape
    # `[None]` gives a batch a stride by which torch does not recognise channels_last: it transposes the result, we transpose it back, and
    # that is twice the work of resizing. This stride it recognises. (For a result one pixel wide it is then wrong without AVX2.)
    batch = image_HWC.size if width > 1 else c
    image_1CHW = torch.from_numpy(image_HWC).as_strided((1, c, h, w), (batch, 1, w * c, c))
    out_1CHW = torch.nn.functional.interpolate(image_1CHW, size=(height, width), mode="bicubic", antialias=True)
    return np.ascontiguousarray(out_1CHW.permute(0, 2, 3, 1).numpy()[0])


def canonical(image_HWC: np.ndarray, size: int) -> np.ndarray:
    """uint8 [S, S, 3]: shorter side to `size`, centre crop, rounded as torchvision's Resize and CenterCrop do.

    A picture that is `size` × `size` already comes back unchanged (the same array). Of the longer side only the part
    that the crop can see is resized, so a 1 × 10 000 picture costs no more than a square one.
    """
    return np.ascontiguousarray(canonical_part(image_HWC, size))


def canonical_part(image_HWC: np.ndarray, size: int) -> np.ndarray:
    """The same as `canonical`, but perhaps a part of a larger array, which it costs a copy to turn into one of its own."""
    height, width = image_HWC.shape[:2]
    if height == width == size:
        return image_HWC
    short = min(height, width)
    out_height, out_width = int(size * height / short), int(size * width / short)
    y0, y1, top, out_y = _span(height, out_height, size)
    x0, x1, left, out_x = _span(width, out_width, size)
    out_HWC = resize(image_HWC[y0:y1, x0:x1], out_y, out_x)
    return out_HWC[top : top + size, left : left + size]


@functools.lru_cache(maxsize=4096)
def _span(n_in: int, n_out: int, size: int) -> tuple[int, int, int, int]:
    """What part of an axis to resize: source pixels [a, b), where the crop begins in its output, its output length.

    The range of output cells that the crop needs, with the kernel's reach on both sides, is widened until both ends fall (nearly) on whole
    source pixels. Then resizing the part alone samples the same places as resizing all: the ends are off by less than 1/32 source pixel, or
    exact at the picture's own edges.
    """
    first = round((n_out - size) / 2)
    if n_out < 1.15 * size:  # nothing worth cutting
        return 0, n_in, first, n_out
    scale = n_in / n_out
    reach = int(np.ceil(2 * max(scale, 1.0) / scale)) + 1
    search = max(48, int(np.ceil(1 / scale)) + 1)
    low = np.arange(max(0, first - reach), max(-1, first - reach - search), -1)
    high = np.arange(min(n_out, first + size + reach), min(n_out + 1, first + size + reach + search))
    start, end = _nearest_whole(low, scale), _nearest_whole(high, scale)
    return round(start * scale), round(end * scale), first - start, end - start


def _nearest_whole(candidates: np.ndarray, scale: float) -> int:
    """The first candidate whose place in the source is whole to 1/64 pixel, else the best one."""
    off = np.abs(candidates * scale - np.rint(candidates * scale))
    good = np.flatnonzero(off < 1 / 64)
    return int(candidates[good[0] if len(good) else int(np.argmin(off))])
