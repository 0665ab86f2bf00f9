"""Lists of addresses and captions in Parquet, whole and broken."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.acquire.urllist import MAX_LINE, Row, UrlList
from datasets.acquire.urlparquet import ParquetList, open_list
from datasets.errors import InputError

OPTIONS = {"url_column": "", "caption_column": "", "delimiter": "auto"}


def listed(path, columns, block_rows=3, row_group_size=None, **options):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return open_list(path, block_rows=block_rows, **(OPTIONS | options))


@pytest.mark.parametrize(
    ("names", "options", "taken"),
    [
        (("URL", "TEXT"), {}, ("URL", "TEXT")),  # LAION
        (("url", "text"), {}, ("url", "text")),  # COYO, DataComp
        (("text", "caption", "url"), {}, ("url", "caption")),
        (("image_url", "title", "n"), {}, ("image_url", "title")),
        (("a", "b"), {"url_column": "2", "caption_column": "A"}, ("b", "a")),
        (("URL", "url", "caption"), {"url_column": "url"}, ("url", "caption")),
    ],
)
def test_the_columns_go_by_the_usual_names_and_are_said(tmp_path, names, options, taken):
    urls = listed(tmp_path / "l.parquet", {name: [f"http://h/{name}"] for name in names}, **options)
    assert tuple(urls.layout) == taken and all(repr(name) in urls.taken for name in taken)
    assert urls.block(0) == [Row(1, f"http://h/{taken[0]}", f"http://h/{taken[1]}", "")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("row_group_size", [1, 2, 4, 100])
def test_every_row_is_one_row_in_whatever_order_blocks_are_asked_for(tmp_path, kind, row_group_size):
    captions = ["käse", None, "", *(f"a dog {i} " for i in range(8))]
    addresses = [f"http://h/{i}" for i in range(11)]
    addresses[4] = None
    columns = {"id": list(range(11)), "caption": pa.array(captions).cast(kind), "url": pa.array(addresses).cast(kind)}
    urls = listed(tmp_path / "l.parquet", columns, row_group_size=row_group_size)
    assert len(urls) == 11 and urls.blocks == 4
    expected = [Row(i + 1, a or "", (c or "").strip(), "") for i, (a, c) in enumerate(zip(addresses, captions))]
    expected[4] = Row(5, "", "", "no address")
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 2, 3, 0, 1]):
        for number in order:
            assert urls.block(number) == expected[3 * number : 3 * number + 3]


def test_texts_that_are_none_are_rows_with_their_number_and_reason(tmp_path):
    raw = pa.array([b"a dog", b"\xffa", b"a\0b", b"x" * (MAX_LINE + 1)], pa.binary())
    damaged = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2])  # as programs write them that do not look
    for column in (raw, damaged):
        urls = listed(tmp_path / "l.parquet", {"url": ["http://h/1"] * 4, "caption": column})
        faults = [row.fault for number in range(urls.blocks) for row in urls.block(number)]
        assert faults == ["", "not UTF-8 at byte 1", "holds a NUL byte", f"longer than {MAX_LINE} bytes"]


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"url": ["http://h"]}, {}, r"no column of captions .*it has 'url'.*--caption-column"),
        ({"page": ["http://h"], "caption": ["a"]}, {}, r"no column of web addresses .*it has 'page', 'caption'.*--url-column"),
        ({"url": ["http://h"], "caption": ["a"]}, {"caption_column": "words"}, "no column 'words'"),
        ({"url": ["http://h"], "caption": ["a"]}, {"caption_column": "3"}, "no column '3'"),
        ({"url": ["http://h"], "caption": ["a"]}, {"caption_column": "url"}, "the same column"),
        ({"url": ["http://h"], "caption": ["a"]}, {"delimiter": ","}, "no delimiter"),
        ({"url": ["h"], "caption": ["a"]}, {}, "no row has a web address"),
        ({"url": [None], "caption": ["a"]}, {}, "column 'url' is null; text is accepted"),
        ({"url": ["http://h"], "caption": [["a", "b"]]}, {}, "column 'caption' is list<.*>; text is accepted"),
        ({"url": ["http://h"], "caption": [1]}, {}, "column 'caption' is int64"),
        ({"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())}, {}, "is empty"),
    ],
)
def test_what_is_no_list_is_refused_in_a_sentence(tmp_path, columns, options, said):
    with pytest.raises(InputError, match=said) as caught:
        listed(tmp_path / "l.parquet", columns, **options)
    assert str(tmp_path / "l.parquet") in str(caught.value)


def test_a_damaged_file_is_refused_and_a_text_is_read_as_before(tmp_path):
    whole = tmp_path / "l.parquet"
    assert isinstance(listed(whole, {"url": ["http://h"] * 50, "caption": ["a"] * 50}), ParquetList)
    for cut in (4, 20, whole.stat().st_size - 5):
        (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(InputError, match="cut.parquet is no Parquet file, or is damaged"):
            open_list(tmp_path / "cut.parquet", block_rows=3, **OPTIONS)
    (tmp_path / "l.tsv").write_text("a dog\thttp://h/1\n")
    urls = open_list(tmp_path / "l.tsv", block_rows=3, **OPTIONS)
    assert isinstance(urls, UrlList) and urls.taken == "addresses from column 2, captions from column 1"
    for path in (tmp_path, tmp_path / "none", "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            open_list(path, block_rows=3, **OPTIONS)


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    rows = listed(tmp_path / "l.parquet", {"url": ["http://h"], "caption": ["\ufeffa cat"]}).block(0)
    assert rows[0].caption == "a cat"


def test_a_list_whose_lines_end_in_cr_is_refused(tmp_path):
    (tmp_path / "l.tsv").write_bytes(b"a dog\thttp://h/1\ra cat\thttp://h/2\r")
    with pytest.raises(InputError, match="end in CR alone"):
        open_list(tmp_path / "l.tsv", block_rows=3, **OPTIONS)
