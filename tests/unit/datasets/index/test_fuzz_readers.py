"""Damaged tars, tables and json members, some hundred of each: they are read whole, or refused in a sentence, in bounded time and memory.

The inputs are seeded mutations of small good files. A process of its own reads them, under a limit on memory and, for each, on processor
time: what it dies of is the failure of the seed that it named last.
`PYTHONPATH=. python tests/unit/datasets/index/test_fuzz_readers.py FOLDER KIND FIRST LAST` reads some again.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.acquire.ingest import ingest
from datasets.errors import InputError
from datasets.index.source import Source
from tests.experiments import ROOT
from tests.unit.making import encoded, picture

MEMORY = 1 << 30
"""Bytes that reading may add."""
SECONDS = 10
"""Processor time of one input."""
INPUTS = {"tar": 300, "header": 300, "json": 200, "csv": 300, "tsv": 200, "parquet": 250, "columns": 200}
TOGETHER = (("tar", "header", "json"), ("csv", "tsv"), ("parquet", "columns"))
"""Kinds that one process reads."""
JPEG = encoded(picture(0, 8, 8))
TOKENS = [b'"', b'""', b"\r", b"\n", b"\r\n", b"\0", b",", b"\t", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe9", b"x" * 300, b"y" * 200_000]
TOKENS += [b"http://a/b.jpg", b"s3x://a", b"../..", b"image", b"caption", b"[" * 3000, b"{", b"}", b"\\ud83d", b"1e999", b"9" * 5000, b"-1"]


def mutated(data: bytes, draw: random.Random, tokens: list[bytes]) -> bytes:
    """One to four changes: bytes flipped, cut off, cut out, doubled, or a token put in."""
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(data) + 1), draw.choice([1, 1, 2, 8, 60, 512])
        kind = draw.randrange(6)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + data[at + length :]
        elif kind == 2:
            data = data[:at] + data[at : at + length] * 2 + data[at + length :]
        elif kind == 3:
            data = data[:at] + draw.choice(tokens) + data[at:]
        else:
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
    return data


def members() -> list[tuple[str, bytes]]:
    found = [("1.jpg", JPEG), ("1.txt", b"a cat"), ("1.json", b'{"caption": "a cat", "label": 3}'), ("2.jpg", JPEG), ("2.json", b"{}")]
    found += [("3.05.jpg", JPEG), ("3.05.txt", "naïve".encode()), ("s.input.jpg", JPEG), ("s.output.txt", b"a cow"), ("5.gif", b"GIF")]
    return [*found, (f"long/{'x' * 150}.jpg", JPEG), (f"long/{'x' * 150}.txt", b"a dog"), ("README", b"1")]


SAMPLES = 6


def packed(items: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
        for name, data in items:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_tar(draw: random.Random) -> tuple[str, bytes, int | None]:
    return "a.tar", mutated(packed(members(), draw.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])), draw, TOKENS), None


def make_header(draw: random.Random) -> tuple[str, bytes, int | None]:
    """Fields of headers changed, with a checksum that is right."""
    data = bytearray(packed(members(), draw.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))
    headers = [at for at in range(0, len(data) - 512, 512) if data[at + 257 : at + 262] == b"ustar"]
    sizes = [b"-0000001750\0", b"+0000001750\0", b"0_000000100\0", b"77777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, bytes(12)]
    sizes += [b"\x80" + bytes(10) + b"\x20", b"           \0", b"12 345\0\0\0\0\0\0", b"99999999999\0", b"00000000001\0"]
    for at in draw.sample(headers, draw.randint(1, 3)):
        if draw.random() < 0.7:
            data[at + 124 : at + 136] = draw.choice(sizes)
        if draw.random() < 0.4:
            data[at + 156] = draw.choice(b"\0" + b"01234567xXgLKSDMNV")
        if draw.random() < 0.3:
            data[at : at + 20] = draw.choice([b"\xff\xfe" * 10, b"." * 20, b"/" * 20, b"../../../etc/x.jpg\0\0", bytes(20)])
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return "a.tar", bytes(data), None


def make_json(draw: random.Random) -> tuple[str, bytes, int | None]:
    """Members' own bytes changed, so how many samples there are is known."""
    items = [(name, data) for name, data in members() if name != "README"]
    changed = [(name, mutated(data, draw, TOKENS) if not name.endswith("jpg") else data) for name, data in items]
    return "a.tar", packed(changed), SAMPLES


def table(delimiter: str, quote: str) -> bytes:
    rows = [["0.jpg", "a cat", "3.0"], ["1.jpg", f"{quote}a dog{quote}", ""], ["./0.jpg", "naïve", "2"], ["no.jpg", "x y", "x"]]
    return "\n".join(delimiter.join(row) for row in [["image", "caption", "label"], *rows, *rows[:1]]).encode() + b"\n"


def make_csv(draw: random.Random) -> tuple[str, bytes, int | None]:
    return "a.csv", mutated(table(",", '"'), draw, TOKENS), None


def make_tsv(draw: random.Random) -> tuple[str, bytes, int | None]:
    """Quotes are ordinary here, so a line that is not blank is a row."""
    data = mutated(table("\t", ""), draw, TOKENS)
    lines = [line for line in re.split(rb"\r\n|\r|\n", data.removeprefix(b"\xef\xbb\xbf")) if line.strip() or b"\t" in line]
    return "a.tsv", data, len(lines) - 1 if not data.startswith(b"\xff\xfe") else None


def as_parquet(columns: dict[str, object], draw: random.Random) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=2, compression=draw.choice(["none", "snappy"]))
    return out.getvalue()


def make_parquet(draw: random.Random) -> tuple[str, bytes, int | None]:
    good = as_parquet({"image": [JPEG] * 5, "caption": ["a cat"] * 4 + [None], "label": [1.0] * 5, "key": list("abcde")}, draw)
    return "a.parquet", mutated(good, draw, TOKENS[:11]), None


def make_columns(draw: random.Random) -> tuple[str, bytes, int | None]:
    """Columns of all types in all places."""
    pictures = [pa.array([JPEG, None], kind) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())]
    texts = [pa.array(["0.jpg", "n\0o"]), pa.array(["0.jpg", None], pa.large_string()), pa.array(["0.jpg", "x" * 300]).dictionary_encode()]
    bad = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\5\0\0\0"), pa.py_buffer(b"\xe90.jpg")])
    structs = [pa.array([{"bytes": JPEG, "path": "x"}, None]), pa.array([{"path": "0.jpg"}] * 2), pa.array([{"src": 1}] * 2)]
    numbers = [pa.array([1, 2]), pa.array([1.5, float("nan")]), pa.array([True, None]), pa.nulls(2), pa.array([1, 2], pa.timestamp("ns"))]
    lists = [pa.array([["a cat", None], []]), pa.array([[b"\xff"], None]), pa.array([[1], [2]]), pa.array([[["a"]], []])]
    any_of = [*pictures, *texts, bad, *structs, *numbers, *lists]
    names = ["image", "caption", *draw.choices(["label", "key", "__key__", "text", "jpg", "caption", "url", "status"], k=2)]
    columns = [draw.choice(pictures + texts + structs) if draw.random() < 0.6 else draw.choice(any_of)]
    columns += [draw.choice([*texts, bad, *lists]) if draw.random() < 0.5 else draw.choice(any_of), *draw.choices(any_of, k=2)]
    out = io.BytesIO()
    pq.write_table(pa.table(columns, names=names), out)
    return "a.parquet", out.getvalue(), 2


MAKERS: dict[str, Callable[[random.Random], tuple[str, bytes, int | None]]] = {
    "tar": make_tar,
    "header": make_header,
    "json": make_json,
    "csv": make_csv,
    "tsv": make_tsv,
    "parquet": make_parquet,
    "columns": make_columns,
}


def read(path: Path, choice: str, expected: int | None, packs: bool) -> str:
    """`read` or `refused`; AssertionError where samples are neither kept nor counted. With `packs` a table is ingested too."""
    try:
        source = Source(urls=str(path), captions=choice)
        rows = source.index_shard(0, str(path))
        if expected is not None and choice != "each":
            assert len(rows) == expected, f"{len(rows)} rows, {expected} samples"
        if path.suffix != ".tar":
            assert sum(1 for _ in source.lines(str(path))) == len(rows)
            out = path.parent / "out"
            if not packs:
                return "read"
            try:
                made = ingest(path, out, captions="txt" if choice == "one" else choice)
                packed = made["n"] + sum(made["dropped"].values())
                assert packed == len(rows), f"ingest has {packed} of {len(rows)} rows"
                assert len((out / "dropped.csv").read_bytes().splitlines()) > sum(made["dropped"].values())
            except InputError as error:
                assert " none of the " in str(error), error
            for file in sorted(out.glob("*")):
                file.unlink()
    except InputError as error:
        assert str(error).count("\n") == 0 and str(path) in str(error), error
        return "refused"
    return "read"


def child(folder: Path, kind: str, first: int, last: int) -> None:
    for seed in range(first, last):
        draw = random.Random(f"{kind} {seed}")
        name, data, expected = MAKERS[kind](draw)
        (folder / name).write_bytes(data)
        print(json.dumps([kind, seed, ""]), flush=True)
        spent = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent.ru_utime + spent.ru_stime) + SECONDS, resource.RLIM_INFINITY))
        choice, packs = draw.choice(["one", "one", "first", "random", "each"]), draw.random() < 0.3
        print(json.dumps([kind, seed, read(folder / name, choice, expected, packs)]), flush=True)


@pytest.mark.parametrize("kinds", TOGETHER, ids=" ".join)
def test_whatever_is_in_a_file_it_is_read_or_refused(kinds: tuple[str, ...], tmp_path: Path) -> None:
    places = [word for kind in kinds for word in (kind, "0", str(INPUTS[kind]))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run([sys.executable, __file__, str(tmp_path), *places], capture_output=True, text=True, env=environment)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{told[-1][:2] if told else kinds}: code {done.returncode}\n{done.stderr[-2000:]}"
    for kind in kinds:
        outcomes = {seed: outcome for of, seed, outcome in told if of == kind}
        assert len(outcomes) == INPUTS[kind] and {*outcomes.values()} - {"refused"} == {"read"}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for picture_name in ("0.jpg", "1.jpg"):
        (place / picture_name).write_bytes(JPEG)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    for kind, first, last in zip(sys.argv[2::3], sys.argv[3::3], sys.argv[4::3]):
        child(place, kind, int(first), int(last))
