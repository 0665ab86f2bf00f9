"""Builds datasets/data/imagenet_glosses.txt from WordNet 3.0 through NLTK's reader.

    python -m tests.baselines.make_glosses [folder with WordNet's data.noun and so on]

Without a folder it takes NLTK's corpus (`python -m nltk.downloader wordnet`) or that of Debian's package wordnet-base. A line for each of
ImageNet's 1000 classes, in their order: its WordNet id, a tab, and its gloss without the examples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.evaluation.classes import imagenet_synsets
from datasets.words import GLOSSES, wordnet, wordnet_folder


def lines(reader: Any) -> list[str]:
    return [f"{name}\t{reader.synset_from_pos_and_offset('n', int(name[1:])).definition()}" for name in imagenet_synsets()]


def write(file: Path, lines: Callable[[Any], list[str]]) -> None:
    """Write these lines of the WordNet that the command line names, or that is found."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else wordnet_folder()
    if folder is None:
        sys.exit("no WordNet found: give the folder with its data.noun, or run `python -m nltk.downloader wordnet`")
    with wordnet(folder) as reader:
        file.write_text("".join(line + "\n" for line in lines(reader)))


if __name__ == "__main__":
    write(GLOSSES, lines)
