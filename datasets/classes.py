"""Class names and prompt templates. Classes are matched by index, for names repeat (ImageNet has two missiles)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from datasets.errors import InputError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CIFAR10_TEMPLATES = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a black and white photo of a {}.",
    "a low contrast photo of a {}.",
    "a high contrast photo of a {}.",
    "a bad photo of a {}.",
    "a good photo of a {}.",
    "a photo of a small {}.",
    "a photo of a big {}.",
    "a photo of the {}.",
    "a blurry photo of the {}.",
    "a black and white photo of the {}.",
    "a low contrast photo of the {}.",
    "a high contrast photo of the {}.",
    "a bad photo of the {}.",
    "a good photo of the {}.",
    "a photo of the small {}.",
    "a photo of the big {}.",
)
"""The 18 prompts that OpenAI published for CIFAR-10 with CLIP."""


def class_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """`imagenet1k` (1000 names, open_clip's), `cifar10`, or the names themselves in the order of their indices."""
    if isinstance(names, str):
        if names == "imagenet1k":
            import open_clip

            return tuple(open_clip.IMAGENET_CLASSNAMES)
        if names == "cifar10":
            return CIFAR10
        raise InputError(f"classes is {names!r}; accepted are imagenet1k, cifar10, or a list of names.")
    if not names or any(not isinstance(name, str) or not name.strip() for name in names):
        raise InputError("classes is a list of names, each with at least one character that is no space.")
    return tuple(names)


def templates(which: str | Sequence[str]) -> tuple[str, ...]:
    """`openai` (80 prompts for ImageNet), `simple` (7 of them), `cifar10` (18), or texts that hold `{}` or `{c}`; with `{}`."""
    if isinstance(which, str):
        if which in ("openai", "simple"):
            import open_clip

            calls = open_clip.OPENAI_IMAGENET_TEMPLATES if which == "openai" else open_clip.SIMPLE_IMAGENET_TEMPLATES
            return tuple(call("{}") for call in calls)
        if which == "cifar10":
            return CIFAR10_TEMPLATES
        raise InputError(f"templates is {which!r}; accepted are openai, simple, cifar10, or a list of texts with {{}}.")
    texts = tuple(text.replace("{c}", "{}") for text in which)
    if not texts:
        raise InputError("templates is an empty list; give at least one text with {} where the class name goes.")
    for text in texts:
        if text.count("{}") != 1:
            raise InputError(f"templates holds {text!r}; each text has {{}} once, where the class name goes.")
    return texts


def fill(template: str, name: str) -> str:
    """The template with the class name in it."""
    return template.replace("{}", name)


def target_index(names: Sequence[str], target: str | int) -> int:
    """The index of the target class, given by its name, by `name@index` where the name repeats, or by its index.

    Raises:
        InputError: no such class (near names are shown), or more than one of that name.
    """
    if isinstance(target, int):
        if not 0 <= target < len(names):
            raise InputError(f"target is class {target}; there are {len(names)} classes, numbered from 0.")
        return target
    places = [i for i, name in enumerate(names) if name == target]
    if len(places) == 1:
        return places[0]
    if places:
        raise InputError(
            f"target {target!r} is the name of classes {', '.join(map(str, places))}; "
            f"write {target}@{places[0]} to mean one of them."
        )
    numbered = re.fullmatch(r"(.+)@(\d+)", target)
    if numbered and int(numbered[2]) < len(names) and names[int(numbered[2])] == numbered[1]:
        return int(numbered[2])
    near = difflib.get_close_matches(target, names, n=3, cutoff=0.5) or list(names[:3])
    raise InputError(f"target {target!r} is not among the {len(names)} classes; near it: {', '.join(near)}.")
