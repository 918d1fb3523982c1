"""Vocabularies: texts to numbers and back, files that are safe to read, tokenizers, and what is no token."""

import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composer.adapters.tokens import TokenEnv, UnknownTokenError, Vocabulary

ATOMS = Vocabulary(["<start>", "<end>", "<pad>", "C", "Cl", "N", "[nH]", "("])
WORDS = Vocabulary(["<s>", "</s>", "the", "cat", "sees"], separator=" ")


@pytest.mark.parametrize(
    ("vocabulary", "text", "numbers"),
    [
        (ATOMS, "CClN", [0, 3, 4, 5, 1]),
        (ATOMS, "[nH]C(C", [0, 6, 3, 7, 3, 1]),
        (ATOMS, "", [0, 1]),
        (WORDS, "the cat sees the cat", [0, 2, 3, 4, 2, 3, 1]),
        (WORDS, "", [0, 1]),
    ],
)
def test_texts_become_numbers_and_numbers_texts(vocabulary, text, numbers):
    assert vocabulary.encode(text) == numbers
    assert vocabulary.encode(text, special=False) == numbers[1:-1]
    assert vocabulary.decode(numbers) == text
    assert vocabulary.decode(torch.tensor([*numbers, 2, 2])) == text  # nothing after the end
    assert vocabulary.decode(numbers[:-1]) == text


@given(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=6), st.data())
def test_every_text_of_a_vocabulary_comes_back(tokens, data):
    vocabulary = Vocabulary.from_texts(tokens)
    text = "".join(data.draw(st.lists(st.sampled_from(tokens), max_size=5)))
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_padding_and_the_start_are_left_out():
    assert ATOMS.decode([0, 2, 3, 2, 5]) == "CN"
    assert (ATOMS.start_token, ATOMS.end_token, ATOMS.pad_token, len(ATOMS)) == (0, 1, 2, 8)
    assert (WORDS.pad, WORDS.pad_token) == (None, 0)
    named = Vocabulary(["a", "GO", "PAD", "EOS"], pad="PAD")
    assert (named.start_token, named.end_token, named.pad_token) == (1, 3, 2)
    TokenEnv(
        vocabulary_size=len(ATOMS), start_token=ATOMS.start_token, end_token=ATOMS.end_token, max_length=4,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["tokens.txt", "tokens.json"])
@pytest.mark.parametrize(
    "vocabulary", [ATOMS, Vocabulary(["<start>", "<end>", "\u2028", " ", "é"])]
)
def test_a_file_gives_the_vocabulary_that_was_written(vocabulary, name, tmp_path):
    vocabulary.to_file(tmp_path / name)
    assert Vocabulary.from_file(tmp_path / name) == vocabulary


def test_a_json_file_keeps_the_separator_and_the_special_tokens(tmp_path):
    vocabulary = Vocabulary(["x", "GO", "y"], start="y", end="GO", pad="x", separator="-")
    vocabulary.to_file(tmp_path / "tokens.json")
    again = Vocabulary.from_file(tmp_path / "tokens.json")
    assert again == vocabulary
    assert hash(again) == hash(vocabulary)
    assert again != ATOMS
    assert repr(again) == "Vocabulary(3 tokens, start='y', end='GO', pad='x')"
    assert Vocabulary.from_file(tmp_path / "tokens.json", pad=None, start="x").start_token == 0


def test_lines_of_windows_are_read(tmp_path):
    (tmp_path / "tokens.txt").write_bytes(b"<start>\r\n<end>\r\nC\r\n")
    assert Vocabulary.from_file(tmp_path / "tokens.txt").tokens == ("<start>", "<end>", "C")


def refused(message, call, *args, kind=ValueError, **more):
    with pytest.raises(kind, match=f"^{re.escape(message)}$") as caught:
        call(*args, **more)
    return caught.value


def test_what_is_no_token_is_told_with_its_place():
    error = refused(
        "'B' at character 2 of 'CNBr' is no token of the vocabulary",
        ATOMS.encode, "CNBr", kind=UnknownTokenError,
    )  # fmt: skip
    assert error.position == 2
    error = refused(
        "'cats' at character 4 of 'the cats' is no token of the vocabulary; did you mean 'cat'?",
        WORDS.encode, "the cats", kind=UnknownTokenError,
    )  # fmt: skip
    assert error.position == 4
    refused(
        "'<' at character 0 of '<end>' is no token of the vocabulary",
        ATOMS.encode, "<end>", kind=UnknownTokenError,
    )  # fmt: skip
    refused("encode takes a text, got a list", ATOMS.encode, ["C"])
    refused("9 at place 1 is no token: the vocabulary has 8 tokens", ATOMS.decode, [3, 9])
    refused("-1 at place 0 is no token: the vocabulary has 8 tokens", ATOMS.decode, [-1])
    refused(
        "decode takes whole numbers (n,), got torch.int64 (1, 2); decode the rows one by one",
        ATOMS.decode, torch.ones(1, 2).long(),
    )  # fmt: skip


def test_what_is_no_vocabulary_is_told():
    refused("there is no token", Vocabulary, [])
    refused("token 1 must be a text, got the number 3", Vocabulary, ["a", 3])
    refused("token 1 is empty", Vocabulary, ["a", ""])
    refused("token 2 is 'a', which is token 0 too", Vocabulary, ["a", "b", "a"])
    refused(
        "the vocabulary has no start token: none of '<start>', '<bos>', '<s>', '[BOS]', 'GO'; name one of its tokens as "
        "start=, or add one",
        Vocabulary, ["<end>", "a"],
    )  # fmt: skip
    refused(
        "'end' is 'stopp', which is no token of the vocabulary; did you mean 'stop'?",
        Vocabulary, ["go", "stop"], start="go", end="stopp",
    )  # fmt: skip
    refused(
        "'start' and 'end' must differ, both are 'a'; give another token as start=",
        Vocabulary, ["a", "b"], start="a", end="a",
    )  # fmt: skip
    assert Vocabulary(["a", "b"], start="b", end="a").start_token == 1


def test_what_is_no_file_of_a_vocabulary_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def file(name, text):
        (tmp_path / name).write_text(text)
        return name

    refused("there is no file 'none.txt'", Vocabulary.from_file, "none.txt")
    refused(
        "'two.txt' is no vocabulary: token 2 is 'a', which is token 0 too",
        Vocabulary.from_file, file("two.txt", "a\nb\na\n"),
    )  # fmt: skip
    refused(
        "'none.txt' is no vocabulary: there is no token", Vocabulary.from_file, file("none.txt", "")
    )
    wrong = {
        "[1]": "it must be a mapping with a list of 'tokens', as to_file writes it",
        '{"tokens": ["a"], "ends": "a"}': "it has the key 'ends'; did you mean 'end'?",
        '{"tokens": ["a"], "end": 3}': "its 'end' must be a text, got the number 3",
    }
    for text, why in wrong.items():
        name = file("wrong.json", text)
        refused(f"'wrong.json' is no vocabulary: {why}", Vocabulary.from_file, name)
    with pytest.raises(
        ValueError, match=r"^'wrong.json' is no vocabulary: it is no JSON: Expecting"
    ):
        Vocabulary.from_file(file("wrong.json", "{"))
    refused(
        "the token 'a\\nb' has an end of line, which a file of lines cannot hold; write a .json file",
        Vocabulary(["<start>", "<end>", "a\nb"]).to_file, "lines.txt",
    )  # fmt: skip
    Vocabulary(["<start>", "<end>", "a\nb"]).to_file("lines.json")  # as it advises
    (tmp_path / "latin.txt").write_bytes(b"a\n\xe9\n")
    with pytest.raises(ValueError, match=r"latin\.txt:2:1"):
        Vocabulary.from_file("latin.txt")
    with pytest.raises(ValueError, match=r"^'none/tokens\.txt' cannot be written: "):
        ATOMS.to_file("none/tokens.txt")


@pytest.fixture
def tokenizer(tmp_path):
    from composer.dataflow import vocabulary_tokenizer

    (tmp_path / "tokens.txt").write_text("<bos>\n<eos>\n<unk>\nun\nhappy\nly\n")
    return vocabulary_tokenizer(tmp_path / "tokens.txt", "longest")


def test_a_tokenizer_is_a_vocabulary(tokenizer, tmp_path):
    folder = tmp_path / "folder"
    tokenizer.save_pretrained(folder)
    special = {"start": "<bos>", "end": "<eos>", "pad": "<pad>"}
    for vocabulary in (
        Vocabulary.from_tokenizer(tokenizer),
        Vocabulary.from_tokenizer(folder),
        Vocabulary.from_tokenizer(folder / "tokenizer.json", **special),
    ):
        assert vocabulary.tokens == ("<bos>", "<eos>", "<unk>", "un", "happy", "ly", "<pad>")
        assert vocabulary.encode("unhappyly") == [0, 3, 4, 5, 1]
        assert vocabulary.decode([0, 3, 4, 5, 1, 6]) == "unhappyly"
        assert vocabulary.pad_token == 6
        error = refused(
            "'z' at character 2 of 'unz' is no token of the vocabulary",
            vocabulary.encode, "unz", kind=UnknownTokenError,
        )  # fmt: skip
        assert error.position == 2
    refused(
        "a vocabulary of a tokenizer is saved by its tokenizer: vocabulary.tokenizer.save_pretrained(folder)",
        vocabulary.to_file, tmp_path / "tokens.json",
    )  # fmt: skip
    vocabulary.tokenizer.save_pretrained(tmp_path / "again")
    assert Vocabulary.from_tokenizer(tmp_path / "again", **special) == vocabulary


def test_what_is_no_tokenizer_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{}")
    refused(
        "from_tokenizer takes a tokenizer of transformers or its local folder, got the number 3",
        Vocabulary.from_tokenizer, 3,
    )  # fmt: skip
    refused("there is no folder 'gpt2'", Vocabulary.from_tokenizer, "gpt2")
    refused("there is no file 'zzz.json'", Vocabulary.from_tokenizer, "zzz.json")
    refused(
        "the folder 'empty' has no tokenizer: no tokenizer_config.json",
        Vocabulary.from_tokenizer, "empty",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^the tokenizer in 'broken.json' cannot be made: "):
        Vocabulary.from_tokenizer("broken.json")
    (tmp_path / "code").mkdir()
    settings = {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["x.X", None]}}
    (tmp_path / "code" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has 'auto_map', which names code of its own"):
        Vocabulary.from_tokenizer("code")
