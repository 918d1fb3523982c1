"""Tokenizers from a file of tokens and from a folder."""

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer.dataflow import tokenizer_from, vocabulary_tokenizer
from composer.dataflow.data.tokenizers import UnknownTokenError, encoded
from composer.errors import RefusedError, SpecError


def tokenizer(folder, tokens, split=None):
    file = folder / "tokens.txt"
    file.write_text("".join(f"{token}\n" for token in tokens))
    return vocabulary_tokenizer(file, split)


@pytest.mark.parametrize(
    ("tokens", "text", "parts"),
    [
        (["the", "cat"], "the  cat\nthe", ["the", "cat", "the"]),
        (["a", "b"], "abba", ["a", "b", "b", "a"]),
        (["a", "b", " "], "a b", ["a", " ", "b"]),
        ([" the", "cat", "c", "at"], "cat the", ["cat", " the"]),
        (["a.", ".*", "(", " "], "a..*((", ["a.", ".*", "(", "("]),
        (["un", "happy", "<eos>"], "un happy<eos>", ["un", "happy", "<eos>"]),
        (["日", "本"], "日本", ["日", "本"]),
    ],
)
def test_a_text_becomes_the_lines_of_the_file(tmp_path, tokens, text, parts):
    made = tokenizer(tmp_path, tokens)
    numbers = made(text)["input_ids"]
    assert made.convert_ids_to_tokens(numbers) == parts
    assert all(numbers[at] == tokens.index(part) for at, part in enumerate(parts))
    assert made(made.decode(numbers))["input_ids"] == numbers


def test_the_longest_token_first(tmp_path):
    made = tokenizer(tmp_path, ["ab", "abc", "c", "a"], split="longest")
    assert made("abcaba")["input_ids"] == [1, 0, 3]
    assert made.decode([1, 0, 3]) == "abcaba"


def test_special_tokens_of_the_file_keep_their_place_and_others_come_last(tmp_path):
    made = tokenizer(tmp_path, ["<pad>", "a", "b"])
    assert (made.pad_token_id, made.eos_token_id, len(made)) == (0, 3, 4)
    assert made.unk_token_id is None
    made = tokenizer(tmp_path, ["[PAD]", "</s>", "<unk>", "<s>", "a"])
    assert (made.pad_token_id, made.eos_token_id, made.unk_token_id, made.bos_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert made("axa")["input_ids"] == [4, 2, 4]
    assert made.decode([4, 1, 0, 0], skip_special_tokens=True) == "a"


@given(st.text(alphabet="abc ", max_size=20))
def test_every_text_of_the_vocabulary_comes_back(letters, text):
    assert letters.decode(letters(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "tokens.txt:1:1: an empty line is no token"),
        (b"a\n\nb\n", "tokens.txt:2:1: an empty line is no token"),
        (b"a\nb\na\nb\n", "tokens.txt:3:1: the token 'a' is that of line 1 too\ntokens.txt:4:1: the token 'b' is that of line 2 too"),
        (b"<pad>\n<eos>\n", "tokens.txt:1:1: there is no token; write one a line"),
        (b"a\n\xff\n", "tokens.txt:2:1: the byte 0xff is not UTF-8; is this a text file?"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_every_line(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens.txt").write_bytes(content)
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        vocabulary_tokenizer("tokens.txt")


def test_windows_lines_and_no_last_line_break(tmp_path):
    (tmp_path / "tokens.txt").write_bytes(b"a\r\nb")
    assert vocabulary_tokenizer(tmp_path / "tokens.txt")("ab")["input_ids"] == [0, 1]


def test_an_unknown_way_to_split_and_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="unknown split 'word'; did you mean 'words'"):
        tokenizer(tmp_path, ["a"], split="word")
    with pytest.raises(
        SpecError, match=r"there is no file 'token\.txt'; did you mean 'tokens\.txt'\?"
    ):
        tokenizer_from("token.txt")


def test_what_is_no_token_is_told(letters, tmp_path):
    wrong, fine = encoded(letters, ["abd", "ab"])
    assert isinstance(wrong, UnknownTokenError)
    assert str(wrong) == "'d' is no token of the vocabulary, which has no '<unk>'"
    assert fine == [0, 1]
    (wrong,) = encoded(tokenizer(tmp_path, ["cat", "dog"]), ["cats"])
    assert (
        str(wrong)
        == "'cats' is no token of the vocabulary, which has no '<unk>'; did you mean 'cat'?"
    )
    assert encoded(letters, []) == []


def test_a_tokenizer_is_read_from_its_folder_without_code(tmp_path, letters):
    letters.save_pretrained(tmp_path)
    again = tokenizer_from(str(tmp_path))
    assert again("ab c")["input_ids"] == [0, 1, 3, 2]
    assert (again.pad_token_id, again.eos_token_id) == (4, 5)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    with pytest.raises(RefusedError, match="has 'auto_map', which names code of its own"):
        tokenizer_from(str(tmp_path))


def test_a_folder_that_has_no_tokenizer_or_a_broken_one(tmp_path):
    with pytest.raises(RefusedError, match=r"has no tokenizer: no tokenizer_config\.json"):
        tokenizer_from(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Nothing"}')
    with pytest.raises(RefusedError, match=r"^the tokenizer in '.*' cannot be made: "):
        tokenizer_from(str(tmp_path))


def test_a_vocabulary_may_be_as_large_as_those_of_pretrained_models(tmp_path):
    made = tokenizer(tmp_path, [f"token{n:06}" for n in range(150_000)])
    assert made("token149999 token000000")["input_ids"] == [149_999, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: None, "there is no file '{}'"),
        (lambda file: file.mkdir(), "'{}' is a folder, not a file"),
        (os.mkfifo, "'{}' is not a regular file"),
        (lambda file: file.touch() or os.truncate(file, 2**40), "'{}' has more than 33,554,432 bytes, too many tokens"),
        (lambda file: file.write_bytes(b"a\n\xff\n"), "{}:2:1: the byte 0xff is not UTF-8; is this a text file?"),
    ],
)  # fmt: skip
def test_what_is_no_vocabulary_is_told(tmp_path, make, message):
    file = tmp_path / "words.txt"
    make(file)
    with pytest.raises(SpecError, match=f"^{re.escape(message.format(file))}$"):
        vocabulary_tokenizer(file)


def test_a_name_that_is_too_long_is_told():
    with pytest.raises(SpecError, match=r"^'x{300}' cannot be read: File name too long$"):
        tokenizer_from("x" * 300)
