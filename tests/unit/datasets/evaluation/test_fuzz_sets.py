"""Readers of evaluation data, lists and pictures on damaged files: each is read, or refused in a sentence, in bounded time and memory.

Every kind runs in a process of its own with a limit on its memory, and each input with a limit on its time. The mutations are drawn
from a seed: `python tests/unit/datasets/evaluation/test_fuzz_sets.py KIND SEED COUNT` says what a failure was.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import scipy.io  # noqa: E402
from PIL import Image  # noqa: E402

from datasets.acquire.urlparquet import open_list  # noqa: E402
from datasets.errors import InputError  # noqa: E402
from datasets.evaluation.evalset import EvalSet  # noqa: E402
from datasets.evaluation.retrieval import RetrievalSet  # noqa: E402
from datasets.images.view import DecodeError, decode  # noqa: E402
from orchestrator.experiment.cleanset import read_keys  # noqa: E402
from orchestrator.experiment.spec import Reference  # noqa: E402
from orchestrator.results.published import SHIPPED, load_published  # noqa: E402

MEMORY = 1 << 30
"""Beyond what the process has when it begins."""
SECONDS = 10
"""Of the processor, for an input."""
PIECES = [b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\r", b"\n", b"\t", b",", b";", b"/", b"../", b"-1", b"3.0", b"nan"]
PIECES += [b"9" * 30, b"9" * 5000, b"[" * 3000, b"{", b"}", b"null", b"Infinity", b"\xed\xa0\xbd", b"\\ud83d", b" " * 300, b"a" * 300]
PIECES += [bytes(600), b"\x7f\xff\xff\xff"]


def picture(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(seed: int, kind: str = "PNG", mode: str = "RGB", side: int = 8, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(seed, side)).convert(mode).save(out, kind, **options)
    return out.getvalue()


def put(root: Path, name: str, data: bytes | str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data.encode() if isinstance(data, str) else data)


def rows(table: list[tuple], delimiter: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(table)
    return out.getvalue()


# ---- what is damaged: each makes its files below a folder and gives what reads them --------------------------------------


def folder(root: Path) -> Callable[[], object]:
    for name in ("cat/0.png", "cat/deep/1.png", "dog/0.png"):
        put(root, name, encoded(len(name)))
    put(root, "classnames.txt", "cat\ndog\n")
    put(root, "zeroshot_classification_templates.txt", "a {c}\nthe {c}\n")

    def read() -> object:
        there = (root / "zeroshot_classification_templates.txt").exists()  # without it open_clip's are taken: slow to import
        return EvalSet(path=str(root), templates="auto" if there else ("a {}",)).load()

    return read


def labels_csv(root: Path) -> Callable[[], object]:
    put(root, "labels.csv", rows([("image", "label"), ("0.png", "cat"), ("1.png", "Dog"), ("0.png", "cat")]))
    for i in range(2):
        put(root, f"{i}.png", encoded(i))
    return EvalSet(path=str(root), classes=("cat", "dog"), templates=("a {}",)).load


def webdataset(root: Path) -> Callable[[], object]:
    (root / "test").mkdir()
    with tarfile.open(root / "test" / "0.tar", "w") as archive:
        for name, data in (("0.png", encoded(0)), ("0.cls", b"1"), ("1.jpg", encoded(1, "JPEG")), ("1.cls", b"0")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    put(root, "classnames.txt", "cat\ndog\n")
    return EvalSet(path=str(root), templates=("a {}",)).load


def named(name: str, split: str, root: Path) -> Callable[[], object]:
    out = Path(tempfile.mkdtemp(dir=root.parent))
    return lambda: EvalSet(path=str(root), name=name, split=split).load(out)


def cifar(root: Path) -> Callable[[], object]:
    put(root, "cifar-10-batches-bin/test_batch.bin", b"".join(bytes([i]) + picture(i, 32).tobytes() for i in range(2)))
    return named("cifar10", "test", root)


def cifar_pickle(root: Path) -> Callable[[], object]:
    entry = {"data": np.stack([picture(i, 32).reshape(-1) for i in range(2)]), "fine_labels": [3, 99]}
    put(root, "cifar-100-python/test", pickle.dumps(entry, protocol=2))
    return named("cifar100", "test", root)


def stl10(root: Path) -> Callable[[], object]:
    put(root, "stl10_binary/test_X.bin", picture(0, 96).tobytes())
    put(root, "stl10_binary/test_y.bin", bytes([10]))
    return named("stl10", "test", root)


def matlab(root: Path, name: str, **variables: object) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(root / name, variables, do_compression=len(name) % 2 == 0)


def svhn(root: Path) -> Callable[[], object]:
    matlab(root, "test_32x32.mat", X=np.stack([picture(i, 32) for i in range(2)], axis=3), y=np.array([[10], [3]], np.uint8))
    return named("svhn", "test", root)


def dtd(root: Path) -> Callable[[], object]:
    put(root, "dtd/dtd/labels/test1.txt", "zigzagged/0.jpg\nbanded/1.jpg\n")
    for i, name in enumerate(("zigzagged/0.jpg", "banded/1.jpg")):
        put(root, f"dtd/dtd/images/{name}", encoded(i, "JPEG"))
    return named("dtd", "test", root)


def aircraft(root: Path) -> Callable[[], object]:
    put(root, "data/variants.txt", "707-320\nF/A-18\n")
    put(root, "data/images_variant_test.txt", "1 F/A-18\n2 707-320\n")
    for i in (1, 2):
        put(root, f"data/images/{i}.jpg", encoded(i, "JPEG"))
    return named("fgvc_aircraft", "test", root)


def flowers(root: Path) -> Callable[[], object]:
    for i in (1, 2):
        put(root, f"flowers-102/jpg/image_{i:05d}.jpg", encoded(i, "JPEG"))
    matlab(root, "flowers-102/imagelabels.mat", labels=[[77, 102]])
    matlab(root, "flowers-102/setid.mat", trnid=[[2]], valid=[[1]], tstid=[[2, 1]])
    return named("flowers102", "test", root)


def food(root: Path) -> Callable[[], object]:
    put(root, "food-101/meta/classes.txt", "apple_pie\nwaffles\n")
    put(root, "food-101/meta/test.txt", "waffles/2\napple_pie/1\n")
    for name in ("waffles/2", "apple_pie/1"):
        put(root, f"food-101/images/{name}.jpg", encoded(len(name), "JPEG"))
    return named("food101", "test", root)


def signs(root: Path) -> Callable[[], object]:
    for i in range(2):
        put(root, f"gtsrb/GTSRB/Final_Test/Images/{i}.ppm", encoded(i, "PPM"))
    put(root, "gtsrb/GT-final_test.csv", rows([("Filename", "Width", "ClassId"), ("0.ppm", 12, 14), ("1.ppm", 12, 42)], ";"))
    return named("gtsrb", "test", root)


def pets(root: Path) -> Callable[[], object]:
    put(root, "oxford-iiit-pet/annotations/test.txt", "# name\nAbyssinian_1 1 1 1\nEgyptian_Mau_3 2 1 1\n")
    for name in ("Abyssinian_1", "Egyptian_Mau_3"):
        put(root, f"oxford-iiit-pet/images/{name}.jpg", encoded(len(name), "JPEG"))
    return named("oxford_pets", "test", root)


def reviews(root: Path) -> Callable[[], object]:
    for name in ("negative", "positive"):
        put(root, f"rendered-sst2/test/{name}/0.png", encoded(len(name)))
    return named("rendered_sst2", "test", root)


def cars(root: Path) -> Callable[[], object]:
    matlab(root, "stanford_cars/devkit/cars_meta.mat", class_names=np.array(["AM General Hummer", "smart fortwo"], object))
    marked = np.array([(2, "1.jpg"), (1, "2.jpg")], [("class", "u1"), ("fname", object)])
    matlab(root, "stanford_cars/cars_test_annos_withlabels.mat", annotations=marked)
    for i in (1, 2):
        put(root, f"stanford_cars/cars_test/{i}.jpg", encoded(i, "JPEG"))
    return named("cars", "test", root)


def objects(root: Path) -> Callable[[], object]:
    for name in ("accordion/1.jpg", "Faces_easy/1.jpg", "BACKGROUND_Google/1.jpg"):
        put(root, f"101_ObjectCategories/{name}", encoded(len(name), "JPEG"))
    return named("caltech101", "test", root)


def retrieval(root: Path) -> Callable[[], object]:
    images = [{"filename": f"{i}.png", "split": "test", "sentences": [{"raw": f"a cat {i}"}, {"raw": "cats"}]} for i in range(2)]
    put(root, "dataset_mine.json", json.dumps({"images": images}))
    for i in range(2):
        put(root, f"{i}.png", encoded(i))
    return RetrievalSet(path=str(root)).load


def reference(root: Path) -> Callable[[], object]:
    put(root, "mine.json", SHIPPED.read_bytes())
    return lambda: load_published(Reference(file=str(root / "mine.json"), start="cc3m_1500", cleaning="cc3m/clean_100k"))


def keys(root: Path) -> Callable[[], object]:
    put(root, "keys.txt", "000000001\n000000002\n")
    return lambda: read_keys(str(root / "keys.txt"))


def listed(path: Path) -> Callable[[], object]:
    def read() -> object:
        urls = open_list(path, block_rows=3, url_column="", caption_column="", delimiter="auto")
        found = [row for number in range(urls.blocks) for row in urls.block(number)]
        assert len(found) == len(urls)
        return found

    return read


def text_list(root: Path) -> Callable[[], object]:
    put(root, "list.tsv", "".join(f'a "dog" {i}\thttp://h/{i}\n' for i in range(8)))
    return listed(root / "list.tsv")


def parquet_list(root: Path) -> Callable[[], object]:
    columns = {"URL": [f"http://h/{i}" for i in range(8)], "TEXT": ["a dog", None] * 4, "n": list(range(8))}
    pq.write_table(pa.table(columns), root / "list.parquet", row_group_size=3)
    return listed(root / "list.parquet")


PICTURES = (("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "1"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "RGB"))
PICTURES += (("WEBP", "RGBA"), ("TIFF", "RGB"), ("TIFF", "L"), ("PPM", "RGB"), ("TGA", "RGB"), ("PCX", "P"), ("JPEG2000", "RGB"))


def pictures(root: Path) -> Callable[[], object]:
    for i, (kind, mode) in enumerate(PICTURES):
        put(root, f"{i}", encoded(i, kind, mode, 24))

    def read() -> None:
        for i in range(len(PICTURES)):
            try:
                image = decode((root / f"{i}").read_bytes() if (root / f"{i}").is_file() else b"")
            except DecodeError:
                continue
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3

    return read


KINDS = {
    make.__name__: (make, count)
    for make, count in (
        *((make, 100) for make in (folder, labels_csv, webdataset, retrieval, reference, text_list, parquet_list, pictures)),
        *((make, 60) for make in (cifar, cifar_pickle, stl10, svhn, dtd, aircraft, flowers, food, signs, pets, reviews, cars, objects)),
        (keys, 60),
    )
}


# ---- the damage ----------------------------------------------------------------------------------------------------------


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    for _ in range(int(draw.integers(1, 4))):
        at, length = int(draw.integers(len(data) + 1)), int(draw.integers(1, 20))
        what = int(draw.integers(6))
        if what == 0 and data:
            data = data[: max(0, at - 1)] + bytes([int(draw.integers(256))]) + data[at:]
        elif what == 1:
            data = data[:at]
        elif what == 2:
            data = data[:at] + data[at + length :]
        elif what == 3:
            data = data[:at] + data[at : at + length] * 2 + data[at + length :]
        else:
            piece = PIECES[int(draw.integers(len(PIECES)))]
            data = data[:at] + piece + data[at + (len(piece) if what == 4 else 0) :]
    return data


def damage(file: Path, draw: np.random.Generator) -> None:
    """One in ten files is lost, is a folder, is empty, or comes under another name too; of the others bytes are changed."""
    data, what = file.read_bytes(), int(draw.integers(40))
    if what < 3:
        file.unlink()
    if what == 1:
        file.mkdir()
    elif what == 2:
        file.with_name(f"{file.stem}-copy{file.suffix}").write_bytes(data)
    elif what == 3:
        file.write_bytes(b"")
    elif what > 3:
        file.write_bytes(mutated(data, draw))


def late(signum: int, frame: object) -> None:
    raise TimeoutError


def fuzz(kind: str, seed: int, count: int) -> list[str]:
    """What came of `count` damaged inputs, where it was neither a result nor an `InputError`."""
    make, draw, failures = KINDS[kind][0], np.random.default_rng(seed), list[str]()
    signal.signal(signal.SIGPROF, late)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "set")
        for number in range(count):
            root.mkdir()
            read = make(root)
            if number:  # the first is read as it was made
                files = sorted(path for path in root.rglob("*") if path.is_file())
                for file in draw.choice(len(files), size=min(len(files), int(draw.integers(1, 3))), replace=False):
                    damage(files[file], draw)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                read()
            except InputError as error:
                if number == 0 or not str(error).strip() or len(str(error)) > 4000:
                    failures.append(f"{kind} {seed} {number}: {error}")
            except BaseException:
                failures.append(f"{kind} {seed} {number}: {traceback.format_exc(limit=-4)}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            shutil.rmtree(root)
    return failures


def test_damaged_files_are_read_or_refused_in_a_sentence():
    done = subprocess.run([sys.executable, __file__, *KINDS], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    given = sys.argv[1:]
    spent = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (spent + MEMORY, spent + MEMORY))
    found: list[str] = []
    if len(given) == 3 and given[1].isdecimal():
        found = fuzz(given[0], int(given[1]), int(given[2]))
    else:
        for kind in given:
            found += fuzz(kind, 0, KINDS[kind][1])
    print("\n".join(found))
    sys.exit(bool(found))
