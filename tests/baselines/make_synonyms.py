"""Builds datasets/data/synonyms.txt.gz from WordNet 3.0 through NLTK's reader.

    python -m tests.baselines.make_synonyms [folder with WordNet's data.noun and so on]

Without a folder it takes NLTK's corpus (`python -m nltk.downloader wordnet`) or that of Debian's package wordnet-base. The table
is the same from either. Its lines, sorted:

    lemma<TAB>n synonym,synonym…<TAB>v …      synonyms by part of speech (n, v, a, r); the lemma itself is left out
    =n<TAB>form<TAB>lemma lemma…              irregular forms

Only lemmas of one word of letters a–z stand there, for captions hold nothing else once they are cleaned. Synonyms are
cleaned as in EDA: `_` and `-` to spaces, lower case, other than a–z dropped.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from datasets.captions import TABLE
from datasets.words import PARTS, names_in, wordnet, wordnet_folder


def lines(reader) -> Iterator[str]:
    words = {lemma for pos in PARTS for lemma in reader.all_lemma_names(pos) if re.fullmatch("[a-z]+", lemma)}
    for word in sorted(words):
        fields = [word]
        for pos in PARTS:
            # synsets() also looks the word up as an inflected form; those synsets do not hold the word itself
            synsets = [s for s in reader.synsets(word, pos) if word in (n.lower().split("(")[0] for n in s.lemma_names())]
            names = names_in(synsets) - {word}
            if synsets:
                fields.append(f"{pos} {','.join(sorted(names))}".rstrip())
        yield "\t".join(fields)
    for pos in PARTS:
        for form, lemmas in sorted(reader._exception_map[pos].items()):
            known = [lemma for lemma in lemmas if lemma in words]
            if re.fullmatch("[a-z]+", form):
                yield f"={pos}\t{form}\t{' '.join(known)}".rstrip("\t")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else wordnet_folder()
    if folder is None:
        sys.exit("no WordNet found: give the folder with its data.noun, or run `python -m nltk.downloader wordnet`")
    with wordnet(folder) as reader:
        text = "".join(line + "\n" for line in lines(reader))
    TABLE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{TABLE}: {text.count(chr(10))} lines, {TABLE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
