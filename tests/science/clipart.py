"""Real pictures to try things on: Debian's openclipart-png and openclipart-svg as tables that `cleansweep ingest` takes.

    apt-get install openclipart-png openclipart-svg
    python tests/science/clipart.py clipart
    cleansweep ingest clipart/train.csv clipart/train
    cleansweep run sweeps/clipart.py

Caption: title and keywords of the drawing, from its SVG's metadata. Class: the top folder. One picture in eight, by the hash
of its path, is kept for evaluation.
"""

import csv
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datasets.seeding import hash64  # noqa: E402

ROOT = Path("/usr/share/openclipart")
DC = "{http://purl.org/dc/elements/1.1/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


def caption(svg: Path) -> str:
    """Title and keywords, without the keyword `unsorted`; empty where there is no metadata."""
    try:
        tree = ElementTree.parse(svg)
    except (OSError, ElementTree.ParseError):
        return ""
    work = next(iter(tree.iter("{http://web.resource.org/cc/}Work")), None)
    if work is None:
        work = next(iter(tree.iter("{http://creativecommons.org/ns#}Work")), None)
    if work is None:
        return ""
    title = (work.findtext(f"{DC}title") or "").strip()
    subject = work.find(f"{DC}subject")
    words = [] if subject is None else [(item.text or "").strip() for item in subject.iter(f"{RDF}li")]
    keywords = list(dict.fromkeys(word for word in words if word and word not in ("unsorted", title)))
    return ", ".join(filter(None, [title, *keywords]))


def main(out: Path) -> None:
    """Write out/train.csv (image, caption) and out/test/labels.csv (image, label) with absolute paths."""
    out.joinpath("test").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for png in sorted((ROOT / "png").rglob("*.png")):
        relative = png.relative_to(ROOT / "png")
        if hash64("clipart", relative) % 8 == 0:
            if relative.parts[0] != "unsorted":
                rows["test"].append((str(png), relative.parts[0].replace("_", " ")))
        else:
            rows["train"].append((str(png), caption(ROOT / "svg" / relative.with_suffix(".svg"))))
    for path, columns, split in (
        (out / "train.csv", ("image", "caption"), "train"),
        (out / "test" / "labels.csv", ("image", "label"), "test"),
    ):
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows[split])
        print(f"{path}: {len(rows[split])} pictures")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "clipart"))
