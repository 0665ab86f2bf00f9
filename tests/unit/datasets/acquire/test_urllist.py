"""Lists of addresses and captions, whole and broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.acquire.urllist import MAX_LINE, Row, UrlList
from datasets.errors import InputError


def rows_of(path: Path, block_rows: int = 3, **options: str) -> tuple[UrlList, list[Row]]:
    urls = UrlList(path, block_rows=block_rows, **options)
    rows = [row for number in range(urls.blocks) for row in urls.block(number)]
    assert len(rows) == len(urls)
    assert all(len(urls.block(number)) == block_rows for number in range(urls.blocks - 1))
    return urls, rows


@pytest.mark.parametrize(
    ("name", "text", "first_line", "options"),
    [
        ("cc3m.tsv", 'a "big" dog\thttp://h/1\na cat, here\thttps://h/2\n', 1, {}),
        ("cc12m.tsv", 'http://h/1\ta "big" dog\nhttps://h/2\ta cat, here\n', 1, {}),
        ("crlf.tsv", 'a "big" dog\thttp://h/1\r\na cat, here\thttps://h/2', 1, {}),
        ("named.csv", 'TEXT,id,URL\n"a ""big"" dog",1,http://h/1\n"a cat, here",2,https://h/2\n', 2, {}),
        ("bom.csv", '\ufeffcaption,url\n"a ""big"" dog",http://h/1\n"a cat, here",https://h/2\n', 2, {}),
        ("given.csv", 'x;y;z\nhttp://h/1;"a ""big"" dog";no\nhttps://h/2;a cat, here;no\n', 2, {"caption_column": "y", "delimiter": ";"}),
        ("numbers.tsv", 'x\thttp://h/1\ta "big" dog\nhttp://o\thttps://h/2\ta cat, here', 1, {"url_column": "2", "caption_column": "3"}),
    ],
)
def test_lists_of_many_forms(tmp_path, name, text, first_line, options):
    (tmp_path / name).write_bytes(text.encode())
    urls, rows = rows_of(tmp_path / name, **options)
    assert [row[1:] for row in rows] == [("http://h/1", 'a "big" dog', ""), ("https://h/2", "a cat, here", "")]
    assert [row.line for row in rows] == [first_line, first_line + 1]


def test_bad_lines_are_rows_with_their_number_and_reason(tmp_path):
    good = b"a dog\thttp://h/%d"
    lines = [good % 1, b"alone", b"a\tb\thttp://h/3", b"\xff\xfe dog\thttp://h/4", b"", b"nul\0\thttp://h/6", b"x" * (MAX_LINE + 5000)]
    lines += [good % 1, b'"a\thttp://h/9\r', b"no address\tx", b"x" * MAX_LINE, good % 12]
    (tmp_path / "list.tsv").write_bytes(b"\n".join(lines) + b"\n")
    for block_rows in (1, 3, 5, 12, 100):
        urls, rows = rows_of(tmp_path / "list.tsv", block_rows)
        assert [row.line for row in rows] == list(range(1, 13)) and urls.blocks == -(-12 // block_rows)
        assert {row.line: row.fault for row in rows if row.fault} == {
            2: "1 columns instead of 2",
            3: "3 columns instead of 2",
            4: "not UTF-8 at byte 1",
            5: "empty",
            6: "holds a NUL byte",
            7: f"longer than {MAX_LINE} bytes",
            11: "1 columns instead of 2",
        }
        assert [row.url for row in rows if not row.fault] == ["http://h/1", "http://h/1", "http://h/9", "x", "http://h/12"]


def test_an_open_quote_spoils_its_own_line_only(tmp_path):
    (tmp_path / "list.csv").write_text('caption,url\n"a dog,http://h/1\na cat,http://h/2\n')
    _, rows = rows_of(tmp_path / "list.csv")
    assert rows[0].fault.startswith("no CSV") and rows[1] == Row(3, "http://h/2", "a cat", "")


PIECES = [b"http://h/1", b"\t", b"\n", b"\r\n", b",", b'"', b"a dog", b"url", b"\xff", b"\0", b"\xef\xbb\xbf", "é".encode(), b"\r"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30), block_rows=st.integers(1, 4))
def test_every_line_is_one_row_whatever_is_in_it(tmp_path, pieces, block_rows):
    text = b"http://h/0\ta cat\n" * 20 + b"".join(pieces)
    (tmp_path / "list.tsv").write_bytes(text)
    _, rows = rows_of(tmp_path / "list.tsv", block_rows)
    assert [row.line for row in rows] == list(range(1, text.count(b"\n") + (not text.endswith(b"\n")) + 1))


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"", {}, "is empty"),
        (b"\n\n", {}, "2 × empty"),
        (b"a dog\nhttp://h/1\n", {}, "no web address .* beside a caption"),
        (bytes(range(256)) * 99, {}, "can be used: .* NUL"),
        (b"\x1f\x8b\x08" + bytes(99), {}, "compressed"),
        ("a\thttp://h\n".encode("utf-16"), {}, "UTF-16"),
        (b"x" * 5_000_000, {}, "longer than"),
        (b"http://h/1\ta\tb\n", {}, "--caption-column"),
        (b"http://h/1\ta\n", {"url_column": "2"}, "no line has a web address"),
        (b"http://h/1\ta\n", {"url_column": "1", "caption_column": "1"}, "the same column"),
        (b"url\tcaption\nhttp://h/1\ta\n", {"caption_column": "words"}, "no column 'words' .*'url', 'caption'"),
        (b"http://h/1\ta\n", {"caption_column": "3"}, "no column '3'"),
        (b"http://h/1\ta\n", {"delimiter": "ab"}, "--delimiter"),
        (b"url,caption,x\nhttp://h/1,a\nhttp://h/2,a\n", {}, "header line has 3 columns"),
    ],
)
def test_what_is_no_list_is_refused_in_a_sentence(tmp_path, content, options, said):
    (tmp_path / "list.tsv").write_bytes(content)
    with pytest.raises(InputError, match=said):
        UrlList(tmp_path / "list.tsv", block_rows=3, **options)
    with pytest.raises(InputError, match="cannot be read"):
        UrlList(tmp_path, block_rows=3)
