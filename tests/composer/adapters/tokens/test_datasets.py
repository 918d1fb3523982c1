"""Data sets of sequences: what a file holds, padded, masked, and what is wrong in it."""

import re

import pytest
import torch
from torch.utils.data import DataLoader

from composer.adapters.tokens import TokenDataset, Vocabulary
from composer.errors import SpecError

VOCABULARY = Vocabulary(["<start>", "<end>", "<pad>", "a", "b", "ab"])


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_bytes(b"ab\r\n\nba\nbbb\na")
    return "texts.txt"


def test_a_file_gives_a_sequence_for_each_line(file):
    dataset = TokenDataset(file, VOCABULARY)
    assert [item.tolist() for item in dataset] == [
        [0, 5, 1], [0, 4, 3, 1], [0, 4, 4, 4, 1], [0, 3, 1],
    ]  # fmt: skip
    assert len(dataset) == 4
    assert dataset[-1].tolist() == [0, 3, 1]
    assert [item.tolist() for item in TokenDataset(["b", "a"], VOCABULARY)] == [
        [0, 4, 1],
        [0, 3, 1],
    ]


def test_a_batch_is_padded_and_masked(file):
    dataset = TokenDataset(file, VOCABULARY)
    (batch,) = DataLoader(dataset, batch_size=4, collate_fn=dataset.collate)
    assert batch.shape == (4, 4)
    assert batch["observation"].tolist() == [[0, 5, 1, 2], [0, 4, 3, 1], [0, 4, 4, 4], [0, 3, 1, 2]]
    assert batch["action"].tolist() == [[5, 1, 2, 2], [4, 3, 1, 2], [4, 4, 4, 1], [3, 1, 2, 2]]
    assert batch["mask"].sum(-1).tolist() == [2, 3, 4, 2]
    assert torch.equal(batch["collector", "mask"].squeeze(-1), batch["mask"])
    tokens, mask = dataset.padded([dataset[0], dataset[1]])
    assert tokens.tolist() == [[0, 5, 1, 2], [0, 4, 3, 1]]
    assert mask.tolist() == [[True, True, True, False], [True] * 4]


def test_loaders_shuffle_and_read_in_processes(file):
    dataset = TokenDataset(file, VOCABULARY)
    loader = DataLoader(
        dataset, batch_size=2, shuffle=True, collate_fn=dataset.collate, num_workers=1,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert sum(int(batch["mask"].sum()) for batch in loader) == 11


def test_what_an_environment_could_not_generate_is_left_out(file):
    from composer.adapters.tokens import TokenEnv

    with pytest.warns(
        UserWarning,
        match=re.escape("1 sequence is left out: longer than 'max_length', which is 4"),
    ):
        dataset = TokenDataset(file, VOCABULARY, max_length=4)
    assert (len(dataset), dataset.dropped) == (3, 1)
    env = TokenEnv(vocabulary_size=6, max_length=4, batch_size=1)
    fields = env.reset()
    for token in dataset[1][1:].tolist():  # the longest that is left
        fields = env.step(fields.set("action", torch.tensor([token])))["next"]
    assert fields["terminated"].item()
    assert fields["sequence"][0].tolist() == [0, 4, 3, 0]


def refused(message, *args, **more):
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        TokenDataset(*args, **more)


def test_all_unknown_tokens_are_told_at_once(file, tmp_path):
    (tmp_path / "texts.txt").write_text("ab\nbax\n\nzb\n")
    refused(
        "texts.txt:2:3: 'x' at character 2 of 'bax' is no token of the vocabulary\n"
        "texts.txt:4:1: 'z' at character 0 of 'zb' is no token of the vocabulary",
        file, VOCABULARY,
    )  # fmt: skip
    refused(
        "text 1: 'c' at character 1 of 'ac' is no token of the vocabulary", ["a", "ac"], VOCABULARY
    )


def test_what_is_no_data_set_is_told(file, tmp_path):
    refused("there is no file 'text.txt'; did you mean 'texts.txt'?", "text.txt", VOCABULARY)
    refused("the data set has no sequence", [], VOCABULARY)
    refused(
        "the data set has no sequence: all 2 are longer than 'max_length', which is 2",
        ["a", "b"], VOCABULARY, max_length=2,
    )  # fmt: skip
    refused("text 1: it must be a text, got the number 3", ["a", 3], VOCABULARY)
    (tmp_path / "latin.txt").write_bytes(b"a\nb\xe9\n")
    with pytest.raises(SpecError, match=r"latin\.txt:2:2"):
        TokenDataset("latin.txt", VOCABULARY)
    with pytest.raises(IndexError, match=re.escape("the data set has 4 sequences, there is no 4")):
        TokenDataset(file, VOCABULARY)[4]
