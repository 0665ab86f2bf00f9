"""`protect`: noise for one picture against an inpainting model, and what an editor would get with it and without.

Shape suffixes: H and W height and width, 3 colours; B1HW and BCHW as in `trainers.audit.protect`, with B = 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from datasets.errors import InputError, said
from datasets.images.view import DecodeError, pillow_errors
from datasets.storage import write_whole
from orchestrator import failures
from orchestrator.experiment.fingerprint import encode
from trainers.audit.classifier import as_bytes, as_floats
from trainers.audit.protect.base import Inpainter, grown
from trainers.audit.protect.evaluate import Evaluation, psnr
from trainers.audit.protect.harmonic import Harmonic
from trainers.audit.protect.lama_jit import LamaJit
from trainers.audit.protect.linear_gain import LinearGain
from trainers.audit.protect.protect import Protect, Protected, random_noise
from trainers.audit.protect.small_net import SmallNetTraining

PICTURE, SHEET, NUMBERS, EXIF, WEIGHTS = "protected.png", "sheet.png", "numbers.json", "protected.exif", "inpainter.safetensors"
LEAST_SIDE, MOST_PIXELS, MOST_BYTES = 32, 1 << 20, 64 << 20
"""Of a picture: pixels a side, pixels, bytes of its file."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MODES = ("RGB", "RGBA", "L", "LA", "1", "P", "PA")
ORIENTATION = 274
"""EXIF's number of the field that says how the picture is turned."""
TILE, COLUMNS, TITLE = 256, 4, 22
"""Side of a picture on the sheet, pictures in a row, height of a title, in pixels."""
ACCEPTED = "black (0) and white (255) alone, white for what is protected, with sharp edges and not as JPEG, which blurs them"
PAIRS = ({0, 255}, {0, 1})
"""What values black and white have in masks."""
TRAINING = SmallNetTraining(width=8, crop=48, lr=5e-3)


@dataclass(frozen=True)
class Given:
    """A picture as it was read, upright."""

    image_HW3: np.ndarray
    """uint8"""
    alpha_HW: np.ndarray | None
    """uint8; None: it has no transparency."""
    exif: bytes
    """Without the orientation, which the pixels follow already; empty: there is none."""
    icc: bytes | None
    """The colour profile; None also where it does not fit RGB."""


def protect(options: argparse.Namespace) -> int:
    """Run the command; it prints where the results are and the most important numbers, as JSON."""
    if (options.inpainter == "lama") != bool(options.lama):
        raise InputError("--lama names the file of `--inpainter lama`; accepted: both or neither.")
    given = read_picture(options.picture)
    mask_HW = read_mask(options.mask, given.image_HW3.shape[:2])
    out = (options.out or Path(options.picture).with_name(f"{Path(options.picture).stem}-protected")).absolute()
    for path in (options.picture, options.mask, options.lama):
        if path and Path(path).resolve() in [(out / name).resolve() for name in (PICTURE, SHEET, NUMBERS, EXIF, WEIGHTS)]:
            raise InputError(f"--out {out}: {path} would be overwritten; name another folder.")
    new = _writable(out)
    if "OMP_NUM_THREADS" not in os.environ:  # a thread more than free cores costs tenfold
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    try:
        files, told = _made(options, given, mask_HW)
        _write(out, files)
    except BaseException as error:
        if new:
            with suppress(OSError):  # it holds something now
                out.rmdir()
        if failures.kind_of(error) == failures.OUT_OF_MEMORY:
            raise InputError(f"{options.picture}: there is not enough memory for a picture of this size; shrink it first.") from error
        raise
    print(json.dumps({name: str(out / name) for name in files} | told, indent=1))
    return 0


def read_picture(path: str) -> Given:
    """InputError for whatever is no single picture of 8 bits a channel in RGB, grey or a palette, and for one too small or too large."""
    try:
        if (size := os.path.getsize(path)) > MOST_BYTES:
            raise InputError(f"{path} has {size} bytes; accepted: pictures of at most {MOST_BYTES}.")
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no file can have the name
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {said(error) if isinstance(error, OSError) else error}.") from None
    try:
        with pillow_errors(), Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return _read(path, picture)
    except DecodeError as error:
        raise InputError(f"{path} cannot be read as a picture: {str(error).rstrip('.')}.") from None


def _read(path: str, picture: Any) -> Given:
    width, height = picture.size
    if min(width, height) < LEAST_SIDE:
        raise InputError(f"{path} has {width}×{height} pixels; accepted: at least {LEAST_SIDE} a side.")
    if width * height > MOST_PIXELS:
        raise InputError(f"{path} has {width}×{height} pixels; accepted: at most {MOST_PIXELS} in all, so shrink it first.")
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:  # MPO: a JPEG with a preview
        raise InputError(f"{path} holds {picture.n_frames} pictures; accepted: one.")
    deep = any(";16" in str(tile) for tile in picture.tile)  # Pillow would drop half of the bits without a word
    if picture.mode not in MODES or deep:
        what = "16 bits a channel" if deep or picture.mode.startswith("I") else f"the mode {picture.mode}"
        raise InputError(f"{path} has {what}; accepted: RGB, grey and palette pictures of 8 bits, with or without transparency.")
    exif, colours, icc = picture.info.get("exif", b""), picture.mode in ("RGB", "RGBA", "P"), picture.info.get("icc_profile")
    picture.load()
    if picture.getexif().get(ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
        exif = picture.getexif().tobytes() if len(picture.getexif()) else b""
    rgba_HW4 = np.asarray(picture.convert("RGBA")) if picture.has_transparency_data else None
    image_HW3 = np.asarray(picture.convert("RGB")) if rgba_HW4 is None else rgba_HW4[..., :3]
    return Given(image_HW3.copy(), None if rgba_HW4 is None else rgba_HW4[..., 3].copy(), exif, icc if colours else None)


def read_mask(path: str, size: tuple[int, ...]) -> np.ndarray:
    """bool [H, W], true where the picture is protected. InputError for a mask that cannot be one for a picture of this size."""
    given, (height, width) = read_picture(path), size
    found = given.image_HW3.shape
    if found[:2] != size:
        raise InputError(f"--mask {path} has {found[1]}×{found[0]} pixels; accepted: those of the picture, {width}×{height}.")
    if given.alpha_HW is not None:
        raise InputError(f"--mask {path} is transparent in places; accepted: {ACCEPTED}.")
    if (strange := _neither(given.image_HW3)) is not None:
        raise InputError(f"--mask {path} {strange}; accepted: {ACCEPTED}.")
    mask_HW = given.image_HW3[..., 0] > 0
    if not mask_HW.any():
        raise InputError(f"--mask {path} is black all over, so nothing would be protected; accepted: white for what is protected.")
    large_B1HW = grown(torch.from_numpy(mask_HW)[None, None].float())
    if large_B1HW.all():
        grows = "" if mask_HW.all() else " when it is grown by 8 pixels"
        raise InputError(f"--mask {path} covers the whole picture{grows}; accepted: masks that leave a part of it to paint from.")
    return mask_HW


def _neither(mask_HW3: np.ndarray) -> str | None:
    """What is neither black nor white in a mask, uint8; None: nothing."""
    coloured_HW = (mask_HW3 != mask_HW3[..., :1]).any(-1)
    if coloured_HW.any():
        return f"has colours in {coloured_HW.sum()} of its {coloured_HW.size} pixels"
    value_HW = mask_HW3[..., 0]
    if any(set(np.unique(value_HW).tolist()) <= pair for pair in PAIRS):
        return None
    grey_HW = (value_HW != 0) & (value_HW != 255)
    row, column = (int(at[0]) for at in grey_HW.nonzero())
    where = f"row {row + 1}, column {column + 1} with the value {value_HW[row, column]}"
    return f"is grey in {grey_HW.sum()} of its {grey_HW.size} pixels, the first in {where}"


def _made(options: argparse.Namespace, given: Given, mask_HW: np.ndarray) -> tuple[dict[str, bytes], dict[str, Any]]:
    """(name → content of each file, what is printed)."""
    picture_BCHW = as_floats(torch.from_numpy(given.image_HW3)[None])
    mask_B1HW = torch.from_numpy(mask_HW)[None, None].float()
    with tempfile.TemporaryDirectory() as folder:
        return _computed(options, given, mask_HW, picture_BCHW, mask_B1HW, Path(folder) / WEIGHTS)


def _computed(
    options: argparse.Namespace, given: Given, mask_HW: np.ndarray, picture_BCHW: Tensor, mask_B1HW: Tensor, weights: Path
) -> tuple[dict[str, bytes], dict[str, Any]]:
    keys = [hashlib.sha256(given.image_HW3.tobytes()).hexdigest()]
    inpainter = _inpainter(options, given, mask_B1HW, weights)
    settings, evaluation = Protect(eps=options.eps, seed=options.seed), Evaluation(seed=options.seed)
    found = settings.run(inpainter, picture_BCHW, mask_B1HW, keys)
    saved_HW3 = within(as_bytes(found.picture_BCHW)[0].numpy(), given.image_HW3, options.eps)
    saved_BCHW = as_floats(torch.from_numpy(saved_HW3)[None])
    saved = Protected(saved_BCHW, saved_BCHW - picture_BCHW, found.target_BCHW)
    rows = evaluation.rows(inpainter, picture_BCHW, mask_B1HW, saved, options.eps, keys)
    random_BCHW = random_noise(picture_BCHW, options.eps, keys, options.seed)
    gains = {row["noise"]: row["gain"] for row in rows if (row["treatment"], row["mask"]) == ("8bit", "malicious")}
    told = {
        "gain": gains["protected"],
        "gain_random": gains["random"],
        "largest_change": int(np.abs(saved_HW3.astype(int) - given.image_HW3).max()),
        "psnr": psnr(saved_BCHW, picture_BCHW)[0],
    }
    numbers = {
        "picture": Path(options.picture).name,
        "sha256": keys[0],
        "width": mask_HW.shape[1],
        "height": mask_HW.shape[0],
        "masked": float(mask_HW.mean()),
        "protect": encode(settings),
        "inpainter": encode(inpainter),
        "evaluation": encode(evaluation),
        **told,
        "rows": rows,
    }
    files = {PICTURE: _png(given, saved_HW3), SHEET: _sheet(inpainter, picture_BCHW, mask_B1HW, saved, random_BCHW, options.eps)}
    files |= {NUMBERS: (json.dumps(numbers, indent=1) + "\n").encode()}
    files |= ({EXIF: given.exif} if given.exif else {}) | ({WEIGHTS: weights.read_bytes()} if weights.exists() else {})
    return files, told


def _inpainter(options: argparse.Namespace, given: Given, mask_B1HW: Tensor, weights: Path) -> Inpainter:
    """The model; one that is trained here learns what is visible of the picture, outside E(m), and is written to `weights`."""
    if options.inpainter == "small":
        training = dataclasses.replace(TRAINING, seed=options.seed)
        return training.make([given.image_HW3], weights, [grown(mask_B1HW)[0, 0].bool().numpy()])
    if options.inpainter == "lama":
        lama = LamaJit(path=options.lama)
        lama.check()
        return lama
    return Harmonic() if options.inpainter == "harmonic" else LinearGain(seed=options.seed)


def within(noisy_HW3: np.ndarray, image_HW3: np.ndarray, eps: float) -> np.ndarray:
    """The noisy picture, uint8, no value further than ε from the original: rounding may add up to half a step."""
    most = math.floor(255 * eps + 1e-6)
    change_HW3 = (noisy_HW3.astype(int) - image_HW3).clip(-most, most)
    return (image_HW3 + change_HW3).astype(np.uint8)


def _png(given: Given, image_HW3: np.ndarray) -> bytes:
    whole = image_HW3 if given.alpha_HW is None else np.dstack([image_HW3, given.alpha_HW])
    return _encoded(Image.fromarray(whole), icc_profile=given.icc)


def _encoded(picture: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG", **{name: value for name, value in options.items() if value})
    return data.getvalue()


@torch.no_grad()
def _sheet(
    inpainter: Inpainter, picture_BCHW: Tensor, mask_B1HW: Tensor, saved: Protected, random_BCHW: Tensor, eps: float
) -> bytes:
    """A PNG of eight pictures: what there is, and what the model paints into it."""
    edited = [as_bytes(inpainter(one_BCHW, mask_B1HW)) for one_BCHW in (picture_BCHW, saved.picture_BCHW, random_BCHW)]
    tiles = [
        ("original", as_bytes(picture_BCHW)),
        ("mask", as_bytes(mask_B1HW.expand_as(picture_BCHW))),
        ("edited", edited[0]),
        ("random noise, edited", edited[2]),
        ("protected", as_bytes(saved.picture_BCHW)),
        (f"its noise, times {0.5 / eps:.0f}", as_bytes(0.5 + 0.5 * saved.noise_BCHW / eps)),
        ("protected, edited", edited[1]),
        ("what it aims at", as_bytes(torch.where(mask_B1HW > 0, saved.target_BCHW, picture_BCHW))),
    ]
    return _drawn([(title, image_BHWC[0].numpy()) for title, image_BHWC in tiles])


def _drawn(tiles: Sequence[tuple[str, np.ndarray]]) -> bytes:
    height, width = tiles[0][1].shape[:2]
    scale = TILE / max(height, width)
    tall, wide = max(1, round(scale * height)), max(1, round(scale * width))
    font = ImageFont.load_default(14)
    whole = Image.new("RGB", (COLUMNS * (TILE + 8) + 8, -(-len(tiles) // COLUMNS) * (tall + TITLE + 8) + 8), "white")
    for number, (title, image_HW3) in enumerate(tiles):
        left, top = 8 + number % COLUMNS * (TILE + 8), 8 + number // COLUMNS * (tall + TITLE + 8)
        way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        whole.paste(Image.fromarray(image_HW3).resize((wide, tall), way), (left, top + TITLE))
        ImageDraw.Draw(whole).text((left, top), title, fill="black", font=font)
    return _encoded(whole)


def _writable(out: Path) -> bool:
    """Make the folder, if there is none, and see whether it can be written to. Returns whether it is new."""
    trial, new = out / f".{PICTURE}.{os.getpid()}.trial", not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise InputError(f"--out {out} cannot be written to: {said(error)}; accepted: a folder.") from None
    return new


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Write all files, or none where one fails."""
    written = []
    try:
        for name, content in files.items():
            written.append(write_whole(out / name, content))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
