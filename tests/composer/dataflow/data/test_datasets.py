"""Data sets: what they read, every broken row, shares of ranks, and batches that follow from the iteration."""

import contextlib
import json
import os
import re
import sys

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from composer.dataflow import (
    DATASETS,
    DataError,
    DatasetUtil,
    Sample,
    batches,
    make_dataset,
    vocabulary_tokenizer,
)
from perception_blocks.registry import UnknownNameError
from perception_blocks.settings import SettingsError


@pytest.fixture
def util(letters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return DatasetUtil(seed=1, tokenizer=letters)


def write(name, rows):
    lines = name.endswith("l")
    text = "".join(f"{json.dumps(row)}\n" for row in rows) if lines else json.dumps(rows)
    with open(name, "w") as file:
        file.write(text)
    return name


def items(dataset):
    return sorted((dataset[index] for index in range(len(dataset))), key=lambda item: item.ids)


ROWS = {
    "prompt": [{"prompt": "ab"}, {"prompt": "c"}],
    "prompt_answer": [{"prompt": "ab", "answer": "c"}, {"prompt": "c", "answer": " ab"}],
    "rw_pair": [{"prompt": "a", "pos_answers": ["b"], "neg_answers": ["cc"]}],
}


def test_prompts(util):
    first, second = items(make_dataset("prompt", {"path": write("a.jsonl", ROWS["prompt"])}, util))
    assert first.values("prompts").tolist() == [0, 1]
    assert second.values("prompts").tolist() == [2]
    assert (first.ids, second.ids) == ([0], [1])


def test_prompts_and_answers(util):
    path = write("a.json", ROWS["prompt_answer"])
    first, second = items(make_dataset("prompt_answer", {"path": path}, util))
    assert first.values("ids").tolist() == [0, 1, 2, 5]
    assert first.values("prompt_mask").tolist() == [True, True, False, False]
    assert second.values("ids").tolist() == [2, 3, 0, 1, 5]
    (cut, *_) = items(make_dataset("prompt_answer", {"path": path, "max_length": 3}, util))
    assert cut.values("ids").tolist() == [0, 1, 2]


def test_pairs_of_answers(util):
    path = write("a.json", ROWS["rw_pair"])
    (item,) = items(make_dataset("rw_pair", {"path": path}, util))
    assert [part.tolist() for part in item.sequences("ids")] == [[0, 1, 5], [0, 2, 2, 5]]
    assert item.values("prompt_lens").tolist() == [1]
    many = {"prompt": "a", "pos_answers": ["a", "b", "c"], "neg_answers": ["aa", "bb", "cc"]}
    path = write("b.json", [many, {**many, "prompt": "b"}])
    dataset = make_dataset("rw_pair", {"path": path, "max_pairs_per_prompt": 2}, util)
    for item in items(dataset):
        answers = [part.tolist()[1:-1] for part in item.sequences("ids")]
        assert len(answers) == 4
        assert all(
            negative == positive * 2 for positive, negative in zip(answers[::2], answers[1::2])
        )
    again = make_dataset("rw_pair", {"path": path, "max_pairs_per_prompt": 2}, util)
    assert all(
        torch.equal(a.values("ids"), b.values("ids")) for a, b in zip(items(dataset), items(again))
    )


def test_an_answer_that_ends_with_the_end_token_has_it_once(util):
    rows = [{"prompt": "a", "answer": "b<eos>"}]
    (item,) = items(make_dataset("prompt_answer", {"dataset_builder": lambda: rows}, util))
    assert item.values("ids").tolist() == [0, 1, 5]


@given(st.binary(max_size=60), st.sampled_from(["a.json", "a.jsonl"]))
@example(b'[{"prompt": "a"}, ', "a.json")
@example(b'{"prompt": "a\x00"}', "a.jsonl")
@example(b"\xef\xbb\xbf[", "a.json")
def test_any_bytes_are_rows_or_told(tmp_path_factory, letters, data, name):
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(data)
    with contextlib.suppress(DataError):
        make_dataset("prompt", {"path": str(file)}, DatasetUtil(tokenizer=letters))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["id", "prompt", "pos_answers", "neg_answers"]), inner
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from(sorted(ROWS)),
)
def test_any_rows_from_python_are_items_or_told(letters, row, name):
    with contextlib.suppress(DataError):
        make_dataset(name, {"dataset_builder": lambda: [row]}, DatasetUtil(tokenizer=letters))


def test_a_token_of_both_prompt_and_answer_counts_to_the_answer(tmp_path):
    (tmp_path / "tokens.txt").write_text("a\nb\nab\nc\n")
    util = DatasetUtil(tokenizer=vocabulary_tokenizer(tmp_path / "tokens.txt", "longest"))
    rows = [{"prompt": "ca", "answer": "b"}]
    (item,) = items(make_dataset("prompt_answer", {"dataset_builder": lambda: rows}, util))
    assert item.values("ids").tolist() == [3, 2, 5]
    assert item.values("prompt_mask").tolist() == [True, False, False]


def test_other_keys_of_a_row_are_its_metadata(util):
    rows = [{"id": "x", "prompt": "a", "label": 3}, {"id": "y", "prompt": "b", "tags": ["t"]}]
    first, second = items(make_dataset("prompt", {"dataset_builder": lambda: rows}, util))
    assert first.metadata == {"label": [3], "tags": [None]}
    assert second.metadata == {"label": [None], "tags": [["t"]]}
    assert Sample.gather([first, second]).metadata == {"label": [3, None], "tags": [None, ["t"]]}


@pytest.mark.parametrize("name", ROWS)
def test_what_a_data_set_gives_is_what_its_class_says(util, name):
    path = write("a.jsonl", ROWS[name])
    dataset = make_dataset(name, {"dataset_path": path}, util)
    assert all(item.keys == set(DATASETS.get(name).gives) for item in items(dataset))
    assert batches(dataset, len(dataset), 0, 0).bs == len(dataset)


BROKEN = [
    ('{"promt": "a"}', "1:2: the row has no 'prompt', but 'promt'; did you mean 'prompt'?"),
    ('{"text": "a"}', "1:1: the row has no 'prompt'"),
    ('{"prompt": 3}', "1:2: 'prompt' is a text, got the number 3"),
    ('{"x": 1, "prompt": null}', "1:10: 'prompt' is a text, got nothing (null)"),
    ('{"prompt": ""}', "1:2: 'prompt' is empty"),
    ('{"prompt": "a" "b"}', "1:16: this is no JSON: expecting ',' delimiter"),
    ('{"prompt": "a"', "1:15: this is no JSON: expecting ',' delimiter"),
    ("[1]", '1:1: a row is a mapping such as {"prompt": "..."}, got a list'),
    ('  "a"', '1:3: a row is a mapping such as {"prompt": "..."}, got the text \'a\''),
    ('{"prompt": "a", "prompt": "b"}', "1:1: the row cannot be read: the key 'prompt' is given twice"),
    ('{"prompt": NaN}', "1:1: the row cannot be read: NaN is no number of JSON"),
    ('{"prompt": "d"}', "1:2: 'd' is no token of the vocabulary, which has no '<unk>'"),
    ('{"prompt": "a", "id": [1]}', "1:17: 'id' is a text or a whole number, got a list"),
    ('{"prompt": "a", "id": true}', "1:17: 'id' is a text or a whole number, got true"),
    ('{"prompt": "a"} {}', "1:17: there is more behind the row; a line has one row"),
    (r'{"prompt": "\ud800"}', "1:2: 'prompt' has half of a surrogate pair, which is no text"),
    ("[" * 100_000, "1:1: the row cannot be read: it is too deep, or a number too long"),
    ('{"prompt": ' + "1" * 5000 + "}", "1:1: the row cannot be read: it is too deep, or a number too long"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_a_broken_line_is_told_with_its_place(util, line, message):
    with open("a.jsonl", "w") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=f"^{re.escape(f'a.jsonl:{message}')}$"):
        make_dataset("prompt", {"path": "a.jsonl"}, util)


@given(st.lists(st.sampled_from(BROKEN), min_size=1, max_size=6), st.integers(0, 3))
def test_all_broken_lines_of_a_file_are_told_at_once(tmp_path_factory, letters, broken, at):
    file = tmp_path_factory.mktemp("rows") / "a.jsonl"
    lines = [line for line, _ in broken]
    lines[at:at] = ["", '{"prompt": "abc"}']
    file.write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        make_dataset("prompt", {"path": str(file)}, DatasetUtil(tokenizer=letters))
    numbers = [
        number for number, line in enumerate(lines, 1) if line and line != '{"prompt": "abc"}'
    ]
    expected = [
        f"{number}:{message.partition(':')[2]}" for number, (_, message) in zip(numbers, broken)
    ]
    assert str(error.value).split("\n") == [f"{file}:{line}" for line in expected]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_rows_in_a_file_of_lines_is_told_once(util, indent):
    with open("a.jsonl", "w") as file:
        json.dump([{"prompt": "a"}, {"prompt": "b"}], file, indent=indent)
    message = (
        "a.jsonl:1:1: a .jsonl file has one row a line; a file with a list of rows is called .json"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        make_dataset("prompt", {"path": "a.jsonl"}, util)
    os.rename("a.jsonl", "a.json")
    assert len(make_dataset("prompt", {"path": "a.json"}, util)) == 2


def test_a_key_among_very_many_is_given_twice(util):
    with open("a.jsonl", "w") as file:
        file.write("{" + ", ".join(f'"{n}": 1' for n in range(100_000)) + ', "99999": 2}')
    message = "a.jsonl:1:1: the row cannot be read: the key '99999' is given twice"
    with pytest.raises(DataError, match=f"^{message}$"):
        make_dataset("prompt", {"path": "a.jsonl"}, util)


def test_a_list_that_is_too_large_is_not_read(util):
    with open("a.json", "wb") as file:
        file.truncate(2**40)
    message = "'a.json' is larger than 1,073,741,824 bytes; a .jsonl file, with one row a line, may have any size"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        make_dataset("prompt", {"path": "a.json"}, util)


def test_of_very_many_broken_lines_the_first_are_told(util):
    write("a.jsonl", [3] * 5000)
    with pytest.raises(DataError) as error:
        make_dataset("prompt", {"path": "a.jsonl"}, util)
    lines = str(error.value).split("\n")
    assert lines[0].startswith("a.jsonl:1:1: a row is")
    assert lines[-1] == "... and 900 more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n {"prompt": "a"},\n  {"prompt": 3,\n   "id": 4.5}]', "a.json:3:4: 'prompt' is a text, got the number 3\na.json:4:4: 'id' is a text or a whole number, got the number 4.5"),
        ('[{"prompt": "a"}\n {"prompt": "b"}]', "a.json:2:2: there is neither ',' nor ']' behind the row"),
        ('[{"prompt": "a"},\n', "a.json:2:1: this is no JSON: expecting value"),
        ('[{"prompt": "a"}]\n\n x', "a.json:3:2: there is more behind the list of rows"),
        ('{"prompt": "a"}', "a.json:1:1: a .json file is a list of rows; a file with one row a line is called .jsonl"),
        ("", "a.json:1:1: a .json file is a list of rows; a file with one row a line is called .jsonl"),
        ("[]", "'a.json' has no rows"),
        ('[{"prompt": "a", "id": 3},\n{"prompt": "a", "id": 3}]', "a.json:2:17: the id 3 is that of line 1 too"),
    ],
)  # fmt: skip
def test_a_broken_list_is_told_with_its_place(util, content, message):
    with open("a.json", "w") as file:
        file.write(content)
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        make_dataset("prompt", {"path": "a.json"}, util)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"pos_answers": ["a", "b"], "neg_answers": ["c"]}, "there are 2 'pos_answers' and 1 'neg_answers', but they are pairs"),
        ({"pos_answers": [], "neg_answers": ["c"]}, "'pos_answers' is a list of texts, got an empty list"),
        ({"pos_answers": "a", "neg_answers": ["c"]}, "'pos_answers' is a list of texts, got the text 'a'"),
        ({"pos_answers": ["a", 3], "neg_answers": ["c", "b"]}, "'pos_answers 2' is a text, got the number 3"),
        ({"pos_answers": ["a"], "neg_answers": [""]}, "'neg_answers 1' is empty"),
        ({"pos_answer": ["a"], "neg_answers": ["a"]}, "the row has no 'pos_answers', but 'pos_answer'; did you mean 'pos_answers'?"),
    ],
)  # fmt: skip
def test_pairs_that_are_none(util, row, message):
    settings = {"dataset_builder": lambda: [{"prompt": "a", **row}]}
    with pytest.raises(DataError, match=f"^{re.escape(f'dataset_builder, row 0: {message}')}$"):
        make_dataset("rw_pair", settings, util)


def test_what_is_no_token_is_told_at_its_key(util):
    rows = '{"prompt": "a",\n "pos_answers": ["b", "b"],\n "neg_answers": ["b", "d"]}'
    with open("a.json", "w") as file:
        file.write("[" + rows + ",\n" + rows.replace('"a"', '"d"') + "]")
    with pytest.raises(DataError) as error:
        make_dataset("rw_pair", {"path": "a.json"}, util)
    wrong = "'d' is no token of the vocabulary, which has no '<unk>'"
    assert str(error.value) == f"a.json:3:2: {wrong}\na.json:4:2: {wrong}"


def test_a_prompt_without_tokens(tmp_path):
    (tmp_path / "tokens.txt").write_text("the\ncat\n")
    words = vocabulary_tokenizer(tmp_path / "tokens.txt")
    settings = {"dataset_builder": lambda: [{"prompt": "  "}]}
    with pytest.raises(DataError, match=r"^dataset_builder, row 0: 'prompt' has no tokens$"):
        make_dataset("prompt", settings, DatasetUtil(tokenizer=words))


def test_a_file_that_is_no_utf8_a_folder_or_missing(util, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    (tmp_path / "b.jsonl").mkdir()
    (tmp_path / "c.jsonl").write_bytes(b"\n \n")
    (tmp_path / "d.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n')
    for path, message in {
        "a.jsonl": "a.jsonl:2:13: the byte 0xff is not UTF-8; is this a text file?",
        "b.jsonl": "'b.jsonl' is a folder, not a file",
        "c.jsonl": "'c.jsonl' has no rows",
        "aa.jsonl": "there is no file 'aa.jsonl'; did you mean 'a.jsonl'?",
        "a.csv": "the name of a data file ends in .json or .jsonl, got 'a.csv'",
    }.items():
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            make_dataset("prompt", {"path": path}, util)
    assert len(make_dataset("prompt", {"path": "d.jsonl"}, util)) == 1


def test_a_file_that_is_too_large(util, monkeypatch):
    rows = sys.modules["composer.dataflow.data.rows"]
    monkeypatch.setattr(rows, "MAX_LINE", 30)
    monkeypatch.setattr(rows, "MAX_JSON", 30)
    write("a.jsonl", [{"prompt": "a"}, {"prompt": "a" * 40}])
    write("a.json", [{"prompt": "a" * 40}])
    with pytest.raises(DataError, match=r"^a\.jsonl:2:1: the line is longer than 30 bytes$"):
        make_dataset("prompt", {"path": "a.jsonl"}, util)
    with pytest.raises(
        DataError, match=r"'a.json' is larger than 30 bytes; a \.jsonl file, with one row a"
    ):
        make_dataset("prompt", {"path": "a.json"}, util)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("prompt", {}, "a data set needs exactly one of 'path', 'dataset_path' and 'dataset_builder'"),
        ("prompt", {"path": "a", "dataset_path": "b"}, "a data set needs exactly one of 'path', 'dataset_path' and 'dataset_builder'"),
        ("prompt", {"pth": "a"}, "'pth' is not a setting of data set 'prompt'; did you mean 'path'?"),
        ("prompt", {"path": "a", "max_length": 0}, "'max_length' must be a positive integer or null, got 0"),
        ("prompt", {"path": "a", "max_length": 3, "max_prompt_len": 3}, "'max_length' and 'max_prompt_len' are the same; give one of them"),
        ("rw_pair", {"path": "a", "max_pairs_per_prompt": 1.5}, "'max_pairs_per_prompt' must be a positive integer, got 1.5"),
    ],
)  # fmt: skip
def test_wrong_settings(util, name, settings, message):
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}$"):
        make_dataset(name, settings, util)


def test_an_unknown_name():
    with pytest.raises(
        UnknownNameError, match="unknown data set 'prompt-answer'; did you mean 'prompt_answer'"
    ):
        make_dataset("prompt-answer", {}, DatasetUtil())


def test_a_tokenizer_that_is_missing_or_has_no_end(util, letters):
    settings = {"path": write("a.jsonl", ROWS["prompt_answer"])}
    with pytest.raises(DataError, match="a data set of texts needs a tokenizer"):
        make_dataset("prompt_answer", settings, DatasetUtil())

    class Endless:
        eos_token_id = None

    with pytest.raises(DataError, match=r"^the tokenizer has no eos_token, which ends an answer$"):
        make_dataset("prompt_answer", settings, DatasetUtil(tokenizer=Endless()))


def test_long_prompts_are_dropped_and_counted(util):
    path = write("a.jsonl", [{"prompt": "ab"}, {"prompt": "abc"}, {"prompt": "abca"}])
    message = "2 of 3 rows of 'a.jsonl' need more than the 'max_length' of 2 tokens for their prompt; they are left out"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        dataset = make_dataset("prompt", {"path": path, "max_prompt_len": 2}, util)
    assert [item.ids for item in items(dataset)] == [[0]]
    with pytest.raises(DataError, match=r"^3 of 3 rows of .* their prompt; the shortest needs 2$"):
        make_dataset("prompt", {"path": path, "max_length": 1}, util)
    path = write("b.jsonl", [{"prompt": "ab", "answer": "c"}])
    with pytest.raises(
        DataError, match="prompt and the first token of an answer; the shortest needs 3"
    ):
        make_dataset("prompt_answer", {"path": path, "max_length": 2}, util)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 3))
def test_the_ranks_share_the_items(letters, rows, world_size, seed):
    settings = {"dataset_builder": lambda: [{"prompt": "a"}] * rows}
    utils = [DatasetUtil(seed, rank, world_size, letters) for rank in range(world_size)]
    if rows < world_size:
        with pytest.raises(DataError, match=f"has {rows} items for {world_size} processes"):
            make_dataset("prompt", settings, utils[0])
        return
    shares = [make_dataset("prompt", settings, each) for each in utils]
    names = [item.ids[0] for share in shares for item in items(share)]
    assert sorted(names) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_order_follows_from_the_seed(letters):
    settings = {"dataset_builder": lambda: [{"prompt": "a"}] * 50}
    orders = []
    for seed in (1, 1, 2):
        dataset = make_dataset("prompt", settings, DatasetUtil(seed, tokenizer=letters))
        orders.append([dataset[index].ids[0] for index in range(50)])
    assert orders[0] == orders[1] != orders[2]


class Numbers(Dataset):
    gives = ("ids",)

    def __init__(self, util, n=5):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return Sample.from_default([index], [1], {"ids": torch.tensor([index])})


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 3))
def test_batches_are_a_function_of_the_iteration_and_each_epoch_has_each_item_once(n, size, seed):
    if size > n:
        with pytest.raises(DataError, match=f"{n} items, too few for a batch of {size}; choose"):
            batches(Numbers(None, n), size, seed, 0)
        return
    per_epoch = n // size
    seen = [batches(Numbers(None, n), size, seed, i).ids for i in range(3 * per_epoch)]
    for epoch in range(3):
        names = [
            name for batch in seen[epoch * per_epoch : (epoch + 1) * per_epoch] for name in batch
        ]
        assert len(set(names)) == len(names) == per_epoch * size
    assert batches(Numbers(None, n), size, seed, 2 * per_epoch).ids == seen[2 * per_epoch]


def test_a_batch_that_is_too_large_names_the_largest():
    message = (
        "the data set has 5 items, too few for a batch of 8; choose a 'batch_size' from 1 to 5"
    )
    with pytest.raises(DataError, match=f"^{message}$"):
        batches(Numbers(None), 8, 0, 0)
    assert batches(Numbers(None), 5, 0, 0).bs == 5


def test_epochs_and_seeds_shuffle_anew():
    orders = {tuple(batches(Numbers(None, 30), 30, seed, i).ids) for seed in (0, 1) for i in (0, 1)}
    assert len(orders) == 4


@pytest.mark.usefixtures("registries")
def test_the_names_of_data_sets_may_have_hyphens():
    DATASETS.register("my-dataset", Numbers)
    dataset = make_dataset("my-dataset", {"n": 4}, DatasetUtil())
    assert sorted(batches(dataset, 4, 0, 0).values("ids").tolist()) == [0, 1, 2, 3]
    with pytest.raises(SettingsError, match="'m' is not a setting of data set 'my-dataset'"):
        make_dataset("my-dataset", {"m": 4}, DatasetUtil())


class NoGives(Numbers):
    gives = "ids"


class NoLength:
    gives = ("ids",)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoGives, "the data set 'my_broken' has no 'gives', such as gives = ('prompts',): the values of its items"),
        (NoLength, "the data set 'my_broken' has no '__len__', '__getitem__'"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("registries")
def test_a_class_that_is_no_data_set(cls, message):
    DATASETS.register("my_broken", cls)
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        make_dataset("my_broken", {}, DatasetUtil())


def test_items_that_are_no_batch():
    class Same(Numbers):
        def __getitem__(self, index):
            return super().__getitem__(0)

    message = "the items of the data set are no batch: ids must differ; given more than once: 0"
    with pytest.raises(DataError, match=f"^{message}$"):
        batches(Same(None), 2, 0, 0)


def test_items_that_are_no_samples_or_have_other_values():
    class Wrong(Numbers):
        def __getitem__(self, index):
            return {"ids": index}

    class Other(Numbers):
        gives = ("prompts",)

    with pytest.raises(DataError, match=r"item \d of the data set is a mapping, not a Sample"):
        batches(Wrong(None), 1, 0, 0)
    with pytest.raises(
        DataError, match=r"item \d of the data set has 'ids'; its 'gives' says 'prompts'"
    ):
        batches(Other(None), 1, 0, 0)
    with pytest.raises(DataError, match=r"^the data set has no items$"):
        batches(Numbers(None, 0), 1, 0, 0)
