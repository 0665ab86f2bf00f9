"""Builds datasets/data/imagenet_hypernyms.txt from WordNet 3.0 through NLTK's reader.

    python -m tests.baselines.make_hypernyms [folder with WordNet's data.noun and so on]

Without a folder it takes NLTK's corpus (`python -m nltk.downloader wordnet`) or that of Debian's package wordnet-base. A line for each of
ImageNet's 1000 classes, in their order, then one for each noun above them: its WordNet id, a tab, the id of its hypernym (empty for the
root), a tab, and the first of its names.
"""

from __future__ import annotations

from typing import Any

from datasets.evaluation.classes import imagenet_synsets
from datasets.words import HYPERNYMS, tree_above
from tests.baselines.make_glosses import write


def lines(reader: Any) -> list[str]:
    tree = tree_above([reader.synset_from_pos_and_offset("n", int(name[1:])) for name in imagenet_synsets()])
    above = sorted(set(tree.names) - set(tree.nodes))
    return [f"{node}\t{tree.parents.get(node, '')}\t{tree.names[node]}" for node in (*tree.nodes, *above)]


if __name__ == "__main__":
    write(HYPERNYMS, lines)
