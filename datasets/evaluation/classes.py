"""Class names and prompt templates. Classes are matched by index, because names repeat (ImageNet has two missiles)."""

from __future__ import annotations

import difflib
import functools
import re
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from datasets.evaluation.prompts import NAMES, PROMPTS

CIFAR10 = NAMES["cifar10"]


def class_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """`imagenet1k` (1000 names, open_clip's), a set of `prompts.NAMES`, or the names themselves in the order of their indices."""
    if isinstance(names, str):
        if names == "imagenet1k":
            return tuple(_of_open_clip("IMAGENET_CLASSNAMES"))
        if names in NAMES:
            return NAMES[names]
        raise InputError(f"classes is {names!r}; accepted are imagenet1k, {', '.join(NAMES)}, or a list of names.")
    if not names or any(not isinstance(name, str) or not name.strip() for name in names):
        raise InputError("classes is a list of names, each with at least one character that is no space.")
    return tuple(name.strip() for name in names)


@functools.cache
def imagenet_synsets() -> dict[str, int]:
    """WordNet id (`n01440764`) → index of each of the 1000 classes, which are in the order of their ids."""
    file = Path(__file__).parents[1] / "data" / "imagenet_synsets.txt"
    return {synset: index for index, synset in enumerate(file.read_text().split())}


LISTS = ("openai", "simple", *PROMPTS)
"""Names of lists of prompts."""


def templates(which: str | Sequence[str]) -> tuple[str, ...]:
    """Prompts with `{}` for the class name: `openai` (80 prompts for ImageNet), `simple` (7 of them), a set of `prompts.PROMPTS`, or the
    given texts with `{}` or `{c}`."""
    if isinstance(which, str):
        if which in ("openai", "simple"):
            return tuple(call("{}") for call in _of_open_clip(f"{which.upper()}_IMAGENET_TEMPLATES"))
        if which in PROMPTS:
            return PROMPTS[which]
        raise InputError(f"templates is {which!r}; accepted are {', '.join(LISTS)}, or a list of texts with {{}}.")
    texts = tuple(text.replace("{c}", "{}") for text in which)
    if not texts:
        raise InputError("templates is an empty list; give at least one text with {} where the class name goes.")
    for text in texts:
        if text.count("{}") != 1:
            raise InputError(f"templates holds {text!r}; each text has {{}} once, where the class name goes.")
    return texts


def _of_open_clip(name: str) -> Any:
    """A list of open_clip's."""
    if "open_clip" not in sys.modules and name in _lists():
        return _lists()[name]
    import open_clip

    return getattr(open_clip, name)


@functools.cache
def _lists() -> dict[str, Any]:
    """open_clip's lists by name, read from the one file of it that holds them, because to import open_clip takes seconds."""
    file = open_clip_folder() / "zero_shot_metadata.py"
    return runpy.run_path(str(file)) if file.is_file() else {}


def open_clip_folder() -> Path:
    """Where open_clip's own files lie, found without importing it. Where it is not installed, a folder that does not exist."""
    spec = find_spec("open_clip")
    return Path(spec.origin).parent if spec and spec.origin else Path("open_clip is not installed")


def known_prompts(which: str) -> None:
    """Raise InputError unless `templates` knows the name. Imports nothing large."""
    if which not in LISTS:
        raise InputError(f"poison.prompts is {which!r}; accepted are auto, {', '.join(LISTS)}, or a list of texts with {{}}.")


def fill(template: str, name: str) -> str:
    """The template with the class name in it."""
    return template.replace("{}", name)


NUMBERED = re.compile(r"(.+)@(\d+)")
"""A target whose class name repeats: the name, and the number at its end."""


def class_name(target: str) -> str:
    """A target's name as it stands in captions, without the number that distinguishes classes of the same name."""
    numbered = NUMBERED.fullmatch(target)
    return numbered[1] if numbered else target


def target_index(names: Sequence[str], target: str | int, numbers: Sequence[int] = ()) -> int:
    """The place of the target class in `names`. `target` is a name, `name@number` where the name repeats, or a number.

    A class's number is its place or, if the set holds only some classes of a longer list, its place in that list (`numbers`).

    Raises:
        InputError: no such class (near names are shown), or more than one of that name.
    """
    numbers = numbers or range(len(names))
    if isinstance(target, int):
        if target not in numbers:
            raise InputError(f"target is class {target}; there are {len(names)} classes, numbered {numbers[0]} … {numbers[-1]}.")
        return numbers.index(target)
    places = [i for i, name in enumerate(names) if name == target]
    if len(places) == 1:
        return places[0]
    if places:
        raise InputError(
            f"target {target!r} is the name of classes {', '.join(str(numbers[place]) for place in places)}; "
            f"write {target}@{numbers[places[0]]} to mean one of them."
        )
    numbered = NUMBERED.fullmatch(target)
    if numbered and int(numbered[2]) in numbers and names[numbers.index(int(numbered[2]))] == numbered[1]:
        return numbers.index(int(numbered[2]))
    near = difflib.get_close_matches(target, names, n=3, cutoff=0.5) or list(names[:3])
    raise InputError(f"target {target!r} is not among the {len(names)} classes; near it: {', '.join(near)}.")
