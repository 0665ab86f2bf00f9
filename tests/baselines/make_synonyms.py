"""Builds datasets/data/synonyms.txt.gz from WordNet 3.0 through NLTK's reader.

    python tests/baselines/make_synonyms.py [folder with WordNet's data.noun and so on]

Without a folder it takes NLTK's corpus (`python -m nltk.downloader wordnet`) or that of Debian's packages wordnet-base and
wordnet-sense-index. The table is the same from either. Its lines, sorted:

    lemma<TAB>n synonym,synonym…<TAB>v …      synonyms by part of speech (n, v, a, r); the lemma itself is left out
    =n<TAB>form<TAB>lemma lemma…              irregular forms

Only lemmas of one word of letters a–z stand there, for captions hold nothing else once they are cleaned. Synonyms are
cleaned as in EDA: `_` and `-` to spaces, lower case, other than a–z dropped.
"""

from __future__ import annotations

import gzip
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OUT = Path(__file__).parents[2] / "datasets" / "data" / "synonyms.txt.gz"
DEBIAN = Path("/usr/share/wordnet")
POS = "nvar"


def wordnet_folder() -> Path | None:
    """A folder with WordNet 3.0's files on this machine, if there is one."""
    import nltk

    try:
        return Path(str(nltk.data.find("corpora/wordnet")))
    except LookupError:
        pass
    except OSError:
        return None
    return DEBIAN if (DEBIAN / "data.noun").exists() else None


@contextmanager
def open_reader(folder: Path):
    """NLTK's reader on a copy of the folder: it refuses links, and wants a `lexnames` that Debian's packages lack."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    with tempfile.TemporaryDirectory() as root:
        copy = Path(root) / "corpora" / "wordnet"  # where the reader looks for itself, to compare versions
        copy.mkdir(parents=True)
        for name in sorted(os.listdir(folder)):
            if name.split(".")[0] in ("data", "index", "cntlist", "noun", "verb", "adj", "adv", "lexnames"):
                (copy / name).write_bytes((folder / name).read_bytes().replace(b"\r\n", b"\n"))
        if not (copy / "lexnames").exists():
            (copy / "lexnames").write_text("".join(f"{i:02d}\tfile{i:02d}\t1\n" for i in range(45)))
        nltk.data.path.insert(0, root)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about other languages
                reader = WordNetCorpusReader(str(copy), None)
            yield reader
        finally:
            nltk.data.path.remove(root)


def cleaned(name: str) -> str:
    """A lemma's name as EDA puts it into a caption."""
    return re.sub("[^a-z ]", "", name.replace("_", " ").replace("-", " ").lower()).strip()


def lines(reader) -> Iterator[str]:
    words = {lemma for pos in POS for lemma in reader.all_lemma_names(pos) if re.fullmatch("[a-z]+", lemma)}
    for word in sorted(words):
        fields = [word]
        for pos in POS:
            # synsets() also looks the word up as an inflected form; those synsets do not hold the word itself
            synsets = [s for s in reader.synsets(word, pos) if word in (n.lower().split("(")[0] for n in s.lemma_names())]
            names = {cleaned(name) for synset in synsets for name in synset.lemma_names()} - {"", word}
            if synsets:
                fields.append(f"{pos} {','.join(sorted(names))}".rstrip())
        yield "\t".join(fields)
    for pos in POS:
        for form, lemmas in sorted(reader._exception_map[pos].items()):
            known = [lemma for lemma in lemmas if lemma in words]
            if re.fullmatch("[a-z]+", form):
                yield f"={pos}\t{form}\t{' '.join(known)}".rstrip("\t")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else wordnet_folder()
    if folder is None:
        sys.exit("no WordNet found: give the folder with its data.noun, or run `python -m nltk.downloader wordnet`")
    with open_reader(folder) as reader:
        text = "".join(line + "\n" for line in lines(reader))
    OUT.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{OUT}: {text.count(chr(10))} lines, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
