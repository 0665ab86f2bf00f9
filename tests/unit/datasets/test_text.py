"""Text that users bring is read in one way."""

import pytest

from datasets.errors import InputError
from datasets.text import NotText, decode_text, lines_of, parse_json, read_json, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_accepted_encoding_gives_the_same_text(encoding):
    assert decode_text("Kätzchen 😀\n".encode(encoding), "a.txt") == "Kätzchen 😀\n"


def test_other_bytes_are_refused_with_their_place(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("one\nKätzchen".encode("latin-1"))
    with pytest.raises(NotText, match=r"a\.txt is not text in UTF-8: line 2, byte 0xe4"):
        read_text(file)


def test_utf16_cut_in_a_character_is_refused():
    with pytest.raises(NotText, match="UTF-16"):
        decode_text("cat".encode("utf-16")[:-1], "a.txt")


def test_missing_files_and_nul_in_a_path_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_text("a\0b")


def test_lines_end_in_all_ways_and_are_stripped():
    assert lines_of("a \r\n\n b\rc\nd e\n") == ["a", "b", "c", "d e"]


@pytest.mark.parametrize(
    "text, what",
    [("", "line 1"), ('{"a": 1', "line 1"), ("[" * 100_000, "too deep"), ("1" * 5000, "cannot be read"), ('{"a":\n x}', "line 2")],
)
def test_what_is_not_json_is_refused_with_its_place(text, what):
    with pytest.raises(NotText, match=what):
        parse_json(text.encode(), "a.json")


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"caption": "a cat \\ud83d", "all": ["\\ud83d\\ude00"]}')
    assert read_json(file) == {"caption": "a cat �", "all": ["😀"]}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_nul_characters_are_no_text(encoding):
    with pytest.raises(NotText, match=r"a\.txt is not text"):
        decode_text("a cat\n".encode(encoding), "a.txt")
    with pytest.raises(NotText, match=r"a\.txt is not text: line 2 holds a NUL character"):
        decode_text(b"cat\nd\0og\n", "a.txt")


@pytest.mark.parametrize("half", ["\\ud83d", "\\uD83D", "\\uDe00"])
def test_halves_of_surrogate_pairs_in_json_become_a_replacement(half):
    assert parse_json(f'{{"a{half}": ["b{half}", "\\ud83d\\ude00"]}}', "x") == {"a\ufffd": ["b\ufffd", "\U0001f600"]}


@pytest.mark.parametrize("depth", [30, 60, 99, 100, 101, 100_000])
def test_json_that_is_nested_deep_is_read_or_refused_but_never_breaks(depth):
    text = "[" * depth + "]" * depth
    if depth < 1000:
        assert str(parse_json(text, "x")) == text
    else:
        with pytest.raises(NotText, match="nested too deep"):
            parse_json(text, "x")
