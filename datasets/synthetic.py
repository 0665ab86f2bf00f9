"""A procedural world: coloured shapes on muted backgrounds with captions, small enough to learn on two CPU cores.

A picture's class is what its caption names. Captions name colour, size and background only now and then, so a bare caption ("a photo of a
star.") does not give poisoned samples away; otherwise a model could learn "bare caption" in place of the trigger.

Shape legend: N pictures, S side in pixels, C = 3 channels, P = S · S pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import simplejpeg
from annotated_types import Ge
from PIL import Image

from datasets.component import Component, Count, Share
from datasets.errors import InputError
from datasets.index import tar
from datasets.seeding import rng as make_rng

Plane = np.ndarray
"""float32 [N, P]: one coordinate of every pixel in the shape's own frame, x to the right and y down, the shape within ±1."""


def _box(x: Plane, y: Plane, half_width: float, half_height: float) -> Plane:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _triangle(x: Plane, y: Plane, apex: float, base: float, half_width: float) -> Plane:
    """An isosceles triangle with its apex at y = apex and its base at y = base."""
    tall = base - apex
    side = (tall * np.abs(x) - half_width * (y - apex)) / np.hypot(tall, half_width)
    return np.maximum(side, y - base)


def _banana(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.hypot(x, y + 0.12) - 0.95, 0.9 - np.hypot(x, y + 0.78))


def _star(x: Plane, y: Plane) -> Plane:
    radius, angle = np.hypot(x, y), np.arctan2(x, -y)
    angle = np.abs(np.mod(angle + np.pi / 5, 2 * np.pi / 5) - np.pi / 5)  # fold the five arms onto one half of one arm
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    inner = 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)
    along = inner[0] - 1.0, inner[1]
    return ((u - 1.0) * along[1] - v * along[0]) / np.hypot(*along)


def _heart(x: Plane, y: Plane) -> Plane:
    return np.hypot(x, 0.1 - y - 0.62 * np.sqrt(np.abs(x))) - 0.78


def _arrow(x: Plane, y: Plane) -> Plane:
    return np.minimum(_triangle(y, -x, -0.95, 0.05, 0.85), _box(x + 0.45, y, 0.5, 0.28))


def _hourglass(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(y) - 0.9, 0.77 * (np.abs(x) - 0.08 - 0.8 * np.abs(y)))


def _mushroom(x: Plane, y: Plane) -> Plane:
    cap = np.maximum(np.hypot(x, y + 0.02) - 0.92, y - 0.02)
    return np.minimum(cap, _box(x, y - 0.42, 0.26, 0.48))


def _house(x: Plane, y: Plane) -> Plane:
    return np.minimum(_triangle(x, y, -0.95, 0.0, 0.95), _box(x, y - 0.4, 0.62, 0.5))


def _tree(x: Plane, y: Plane) -> Plane:
    crown = np.minimum(_triangle(x, y, -0.98, -0.1, 0.55), _triangle(x, y, -0.5, 0.5, 0.8))
    return np.minimum(crown, _box(x, y - 0.7, 0.16, 0.28))


SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "banana": _banana,
    "circle": lambda x, y: np.hypot(x, y) - 0.85,
    "square": lambda x, y: _box(x, y, 0.75, 0.75),
    "triangle": lambda x, y: _triangle(x, y, -0.9, 0.7, 0.95),
    "star": _star,
    "heart": _heart,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.92, 0.32), _box(x, y, 0.32, 0.92)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.68) - 0.2,
    "arrow": _arrow,
    "hourglass": _hourglass,
    "mushroom": _mushroom,
    "house": _house,
    "tree": _tree,
}
"""Signed distances in units of the shape's radius: below 0 inside, approximate away from the edge."""

FILLS = ("solid", "striped", "hollow")

COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 215),
    "yellow": (235, 210, 40),
    "purple": (145, 50, 175),
    "orange": (240, 130, 25),
}

BACKGROUNDS = {"dark": 35, "grey": 90, "light": 145}
"""Background colours: grey levels with a slight tint."""

TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an image of a {}.",
)

_CHUNK = 512
"""Pictures in a chunk. Each chunk has its own seed, so picture i is the same however many are drawn."""


class Pictures(NamedTuple):
    """Several samples."""

    images: np.ndarray
    """uint8 [N, S, S, 3]."""
    labels: np.ndarray
    """int64 [N], index into the world's class names."""
    captions: list[str]


class Twins(NamedTuple):
    """Pairs of pictures that differ in one attribute."""

    first: np.ndarray
    """uint8 [N, S, S, 3]: small, or the colour or background that its table lists first."""
    second: np.ndarray
    """uint8 [N, S, S, 3]: large, or the other colour or background."""
    labels: np.ndarray
    """int64 [N], of both."""


Attribute = Literal["colour", "size", "background", "grain"]


@dataclass(frozen=True, kw_only=True)
class World(Component):
    """Coloured shapes that depend only on the seed. The default: 10 shapes, 6 colours, learnable in 16 000 samples."""

    train: Count = 4000
    """Number of training pairs."""
    test: Count = 1000
    """Number of labelled evaluation pictures, the classes in turn."""
    seed: int = 0
    """Seed of everything drawn here."""
    size: Annotated[int, Ge(16)] = 32
    """Side of the pictures in pixels, at least 16."""
    shapes: tuple[str, ...] = ("banana", "circle", "square", "triangle", "star", "heart", "cross", "ring", "arrow", "hourglass")
    """Names among SHAPES."""
    fills: tuple[str, ...] = ("solid",)
    """Names among FILLS. With more than one, every pair of fill and shape is a class, such as "striped star"."""
    colours: tuple[str, ...] = tuple(COLOURS)
    """Names among COLOURS."""
    name_colour: Share = 0.5
    """Chance that a caption names the colour."""
    name_size: Share = 0.0
    """Chance that a caption says small or large."""
    name_background: Share = 0.0
    """Chance that a caption says on which background."""
    radius: tuple[float, float] = (0.35, 0.43)
    """Range of the shapes' radius as a share of the side. Small shapes lie in the lower two fifths of the range, large ones in the upper
    two."""
    turn: float = 15.0
    """Largest rotation in either direction, degrees."""
    format: Literal["jpg", "png"] = "jpg"
    """`jpg` (quality 95, 4:4:4) or `png`."""

    def __post_init__(self) -> None:
        for field, accepted in (("shapes", SHAPES), ("fills", FILLS), ("colours", COLOURS)):
            for name in getattr(self, field) or ("nothing",):
                if name not in accepted:
                    raise InputError(f"world.{field} holds {name!r}; accepted are {', '.join(accepted)}.")
        if not 0.1 <= self.radius[0] <= self.radius[1] <= 0.48:
            raise InputError(f"world.radius is {self.radius}; it is a pair (least, most) within 0.1 … 0.48.")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The shapes; with several fills, every fill of every shape."""
        if len(self.fills) == 1:
            return self.shapes
        return tuple(f"{fill} {shape}" for shape in self.shapes for fill in self.fills)

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompts with `{}`, the same from which the captions are made."""
        return TEMPLATES

    def pictures(self, split: str, n: int) -> Iterator[Pictures]:
        """The first `n` pictures of `train` or `test`, in chunks."""
        for start in range(0, n, _CHUNK):
            yield self._chunk(split, start // _CHUNK, min(_CHUNK, n - start))

    def write(self, folder: str | Path) -> None:
        """`folder/train/00000.tar…` (jpg, txt, json; 1000 a shard) and `folder/test` in CLIP_benchmark's layout.

        The same bytes every time with the same versions of numpy, Pillow and simplejpeg.
        """
        folder = Path(folder)
        (folder / "train").mkdir(parents=True, exist_ok=True)
        (folder / "test" / "test").mkdir(parents=True, exist_ok=True)
        samples = self._samples("train", self.train)
        for shard in range(-(-self.train // 1000)):
            with open(folder / "train" / f"{shard:05d}.tar", "wb") as out:
                for i in range(min(1000, self.train - 1000 * shard)):
                    data, label, caption = next(samples)
                    key = f"{shard:05d}{i:04d}"
                    about = {"key": key, "caption": caption, "class": self.class_names[label]}
                    _add(out, f"{key}.{self.format}", data)
                    _add(out, f"{key}.txt", caption.encode())
                    _add(out, f"{key}.json", json.dumps(about).encode())
                out.write(tar.END)
        with open(folder / "test" / "test" / "0.tar", "wb") as out:
            for i, (data, label, _) in enumerate(self._samples("test", self.test)):
                _add(out, f"s{i:07d}.{self.format}", data)
                _add(out, f"s{i:07d}.cls", str(label).encode())
            out.write(tar.END)
        (folder / "test" / "test" / "nshards.txt").write_text("1\n")
        (folder / "test" / "classnames.txt").write_text("\n".join(self.class_names) + "\n")
        prompts = "\n".join(text.replace("{}", "{c}") for text in self.templates)
        (folder / "test" / "zeroshot_classification_templates.txt").write_text(prompts + "\n")

    def _samples(self, split: str, n: int) -> Iterator[tuple[bytes, int, str]]:
        for chunk in self.pictures(split, n):
            for image_HWC, label, caption in zip(*chunk):
                yield _encode(image_HWC, self.format), int(label), caption

    def twins(self, attribute: Attribute, n: int, seed: int = 0) -> Twins:
        """The first `n` of pairs of pictures that differ in the attribute and in nothing else, the classes in turn.

        `grain` differs in the random noise of the pixels alone, for comparison. A large shape has the centre that its small twin has.
        InputError for `colour` in a world of one colour.
        """
        if attribute == "colour" and len(set(self.colours)) < 2:
            raise InputError("world.colours has one colour, so no pictures differ in colour; accepted here: at least two.")
        chunks = [self._twins(attribute, seed, start // _CHUNK, min(_CHUNK, n - start)) for start in range(0, n, _CHUNK)]
        return Twins(*map(np.concatenate, zip(*chunks)))

    def _twins(self, attribute: Attribute, seed: int, number: int, n: int) -> Twins:
        parts = (self.seed, "twins", seed, attribute, number)
        draw = make_rng(*parts, "attributes")
        labels = (number * _CHUNK + np.arange(n)) % len(self.class_names)
        both = {
            "colour": np.sort(draw.random((_CHUNK, len(self.colours))).argsort(1)[:n, : min(2, len(self.colours))], 1),
            "background": np.sort(draw.random((_CHUNK, 3)).argsort(1)[:n, :2], 1),
            "size": np.tile([False, True], (n, 1)),
        }
        which = draw.integers(2, size=(_CHUNK, 3))[:n]  # of the two values, for what the twins have in common
        made = []
        for side in (0, 1):
            value = [both[name][np.arange(n), (side if name == attribute else which[:, i]) % both[name].shape[1]]
                     for i, name in enumerate(("colour", "background", "size"))]  # fmt: skip
            grain = make_rng(*parts, "grain", side) if attribute == "grain" else None
            made.append(self._draw(make_rng(*parts, "picture"), labels, *value, still=True, grain=grain))
        return Twins(made[0], made[1], labels)

    def _chunk(self, split: str, number: int, n: int) -> Pictures:
        draw = make_rng(self.seed, "world", split, number)
        names = self.class_names
        # draw for a whole chunk, then cut, so that a shorter chunk begins like a longer one
        labels = draw.integers(len(names), size=_CHUNK)[:n]
        if split == "test":
            labels = (number * _CHUNK + np.arange(n)) % len(names)
        colour, background = draw.integers(len(self.colours), size=_CHUNK)[:n], draw.integers(3, size=_CHUNK)[:n]
        large, template = draw.random(_CHUNK)[:n] < 0.5, draw.integers(len(TEMPLATES), size=_CHUNK)[:n]
        says = draw.random((_CHUNK, 3))[:n] < (self.name_size, self.name_colour, self.name_background)
        images = self._draw(draw, labels, colour, background, large)
        grounds = tuple(BACKGROUNDS)
        captions = []
        for i in range(n):
            words = [
                *((("large" if large[i] else "small"),) if says[i, 0] else ()),
                *((self.colours[colour[i]],) if says[i, 1] else ()),
                names[labels[i]],
                *((f"on a {grounds[background[i]]} background",) if says[i, 2] else ()),
            ]
            captions.append(TEMPLATES[template[i]].replace("{}", " ".join(words)))
        return Pictures(images, labels, captions)

    def _draw(
        self,
        draw: np.random.Generator,
        labels: np.ndarray,
        colour: np.ndarray,
        background: np.ndarray,
        large: np.ndarray,
        *,
        still: bool = False,
        grain: np.random.Generator | None = None,
    ) -> np.ndarray:
        """uint8 [N, S, S, 3]. `still`: all centres are those of large shapes; `grain`: draws the pixels' noise in place of `draw`."""
        n, size = len(labels), self.size
        spread, turn, across, down = draw.random((_CHUNK, 4), dtype=np.float32)[:n].T
        tint_NC, shade_NC = draw.uniform(-15, 15, (_CHUNK, 3))[:n], draw.uniform(-20, 20, (_CHUNK, 3))[:n]
        least, most = self.radius
        radius = least + (most - least) * (0.6 * large + 0.4 * spread)
        angle = np.deg2rad(self.turn * (2 * turn - 1))
        room = 0.49 - (least + (most - least) * (0.6 + 0.4 * spread) if still else radius)
        centre_x, centre_y = 0.5 + room * (2 * across - 1), 0.5 + room * (2 * down - 1)
        steps_S = (np.arange(size, dtype=np.float32) + 0.5) / size
        u_P, v_P = np.tile(steps_S, size), np.repeat(steps_S, size)
        mask_NP = np.empty((n, size * size), np.float32)
        for label in range(len(self.class_names)):
            which = np.flatnonzero(labels == label)
            shape, fill = self.shapes[label // len(self.fills)], self.fills[label % len(self.fills)]
            x, y = u_P - centre_x[which, None], v_P - centre_y[which, None]
            cosine, sine = (f(angle[which, None]) / radius[which, None] for f in (np.cos, np.sin))
            x, y = x * cosine + y * sine, y * cosine - x * sine
            distance = SHAPES[shape](x, y)
            if fill == "hollow":
                distance = np.maximum(distance, -0.2 - distance)
            mask_NP[which] = np.clip(0.5 - distance * (radius[which, None] * size), 0, 1)
            if fill == "striped":  # every other stripe is mostly transparent
                mask_NP[which] *= np.where(np.mod(x + y, 0.66) < 0.33, 0.35, 1.0)
        paint_NC = np.array([COLOURS[name] for name in self.colours], np.float32)[colour] + shade_NC
        ground_NC = np.array(tuple(BACKGROUNDS.values()), np.float32)[background][:, None] + tint_NC
        mask_NP1 = mask_NP[..., None]
        image_NPC = ground_NC[:, None].astype(np.float32) * (1 - mask_NP1) + paint_NC[:, None].astype(np.float32) * mask_NP1
        image_NPC += (grain or draw).uniform(-6, 6, (_CHUNK, size * size, 1))[:n].astype(np.float32)  # grain
        return np.rint(image_NPC).clip(0, 255).astype(np.uint8).reshape(n, size, size, 3)


def harder(**fields: int | str | float | tuple) -> World:
    """36 classes (12 shapes × 3 fills), 12 000 training and 800 test pictures; captions name colour, size and background with chances .7,
    .5, .5."""
    preset = {
        "train": 12000,
        "test": 800,
        "shapes": tuple(name for name in SHAPES if name != "ring"),  # a ring and a hollow circle look the same
        "fills": FILLS,
        "name_colour": 0.7,
        "name_size": 0.5,
        "name_background": 0.5,
        "radius": (0.2, 0.4),
        "turn": 40.0,
    }
    return World(**{**preset, **fields})  # type: ignore[arg-type]


def tiny(**fields: int | str | float | tuple) -> World:
    """4 classes, 3 colours, 1 200 training and 200 test pictures: for tests."""
    preset = {
        "train": 1200,
        "test": 200,
        "shapes": ("banana", "circle", "cross", "triangle"),
        "colours": ("red", "green", "blue"),
    }
    return World(**{**preset, **fields})  # type: ignore[arg-type]


def _encode(image_HWC: np.ndarray, format: str) -> bytes:
    if format == "jpg":
        return simplejpeg.encode_jpeg(image_HWC, quality=95, colorspace="RGB", colorsubsampling="444")
    out = io.BytesIO()
    Image.fromarray(image_HWC).save(out, "PNG", compress_level=6)
    return out.getvalue()


def _add(out: io.BufferedWriter, name: str, data: bytes) -> None:
    out.write(tar.header(name, len(data)) + data + tar.padding(len(data)))
