"""Packed samples: their checks and their parts."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composer.dataflow import LENGTHS, Sample, SampleError, Split
from composer.dataflow.data.samples import in_words, per_token


def a_sample():
    return Sample.from_default(
        ["a", "b"],
        [2, 3],
        {"ids": torch.tensor([1, 2, 3, 3, 3]), "logp": torch.arange(3.0), "rewards": torch.ones(2)},
        {"text": ["x", "y"]},
    )


@st.composite
def samples(draw):
    """Any number of items, sequences and tokens, none included; values with and without further axes."""
    lengths = draw(st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5))
    tokens = sum(map(sum, lengths))
    pairs = {
        "ids": (lengths, torch.arange(tokens)),
        "features": (lengths, torch.randn(tokens, 2)),
        "rewards": ([[1] * len(item) for item in lengths], torch.randn(sum(map(len, lengths)))),
    }
    return Sample.of(
        [f"item {i}" for i in range(len(lengths))],
        {key: lengths for key, (lengths, _) in pairs.items()},
        {key: values for key, (_, values) in pairs.items()},
        {"place": list(range(len(lengths)))},
    )


def assert_same(first, second):
    assert first.ids == second.ids
    assert first.meta() == second.meta()
    assert all(torch.equal(first.values(key), second.values(key)) for key in first.keys)


def test_a_nested_view_reduces_each_sequence():
    assert (a_sample()["ids"] == 3).float().mean(-1).tolist() == [0.0, 1.0]


@given(samples())
def test_gathering_the_items_gives_the_sample(sample):
    if sample.bs:
        assert_same(Sample.gather(sample.unpack()), sample)
        described = [item.meta() for item in sample.unpack()]
        assert Sample.gather(described) == sample.meta()
        assert Sample.gather(sample.unpack(), ["rewards"]).keys == {"rewards"}


@given(samples(), st.integers(1, 5), st.integers(1, 2))
def test_the_parts_are_the_items_in_order(sample, k, min_size):
    if k * min_size > sample.bs:
        with pytest.raises(SampleError, match="cannot be split into"):
            sample.split(k, min_size=min_size)
        return
    parts = sample.split(k, min_size=min_size)
    assert len(parts) == k
    assert min(part.bs for part in parts) >= min_size
    assert_same(Sample.gather(parts), sample)
    assert all(
        part.values(key).untyped_storage().data_ptr()
        == sample.values(key).untyped_storage().data_ptr()
        for part in parts
        for key in part.keys
    )


@given(samples())
def test_padding_keeps_what_is_real(sample):
    for key in sample.keys:
        padded, mask = sample.padded(key, value=-7)
        assert torch.equal(padded[mask], sample.values(key))
        assert (padded[~mask] == -7).all()
        assert mask.sum(-1).tolist() == sample.lengths(key).tolist()


@given(samples())
def test_renaming_there_and_back_changes_nothing(sample):
    before = sample.meta()
    sample.remap_keys_({"ids": "tokens", "rewards": "ids"})
    assert sample.keys == {"tokens", "ids", "features"}
    sample.remap_keys_({"tokens": "ids", "ids": "rewards"})
    assert sample.meta() == before


@given(samples())
def test_a_sample_takes_the_values_of_another_one(sample):
    other = Sample.of(
        sample.ids, {"values": sample.seqlens["ids"]}, {"values": sample.values("ids") + 1}
    )
    rewards = Sample.of(
        sample.ids, {"rewards": [[] for _ in sample.ids]}, {"rewards": torch.zeros(0)}
    )
    sample.update_(other)
    sample.update_(rewards)
    assert sample.keys == {"ids", "features", "rewards", "values"}
    assert torch.equal(sample.values("values"), sample.values("ids") + 1)
    assert sample.lengths("rewards").tolist() == []
    assert Sample.gather(sample.unpack() or [sample]).ids == sample.ids


def test_several_sequences_of_an_item():
    tokens = torch.arange(9)
    sample = Sample.from_default(
        ["a", "b"], [[2, 3], [4]], {"ids": tokens, "rewards": torch.ones(3)}
    )
    assert sample.seqlens == {"ids": [[2, 3], [4]], "rewards": [[1, 1], [1]]}
    assert [item.lengths("ids").tolist() for item in sample.unpack()] == [[2, 3], [4]]
    assert sample.split_spec(2, "ids").sizes == [1, 1]
    assert [part.tolist() for part in sample.sequences("ids")] == [[0, 1], [2, 3, 4], [5, 6, 7, 8]]


def test_a_sample_without_items():
    sample = Sample.from_default([], [], {"ids": torch.zeros(0, dtype=torch.int64)})
    assert sample.bs == 0
    assert sample.unpack() == []
    assert sample.padded("ids")[0].shape == (0, 0)
    assert_same(Sample.gather([sample, sample]), sample)
    with pytest.raises(SampleError, match=r"^the sample has no sequences of 'ids'$"):
        sample["ids"]


def test_padding():
    ids, mask = a_sample().padded("ids", value=9)
    assert ids.tolist() == [[1, 2, 9], [3, 3, 3]]
    assert mask.tolist() == [[True, True, False], [True, True, True]]


def test_rules_of_length():
    assert [LENGTHS.get(key)(0) for key in ("ids", "logp", "rewards")] == [0, 0, 1]
    assert in_words(LENGTHS.get("logp")) == "per token but the first"


FIELDS = {
    "keys": {"ids"},
    "trailing_shapes": {"ids": ()},
    "dtypes": {"ids": torch.int64},
    "ids": ["a", "b"],
    "seqlens": {"ids": [[1], [2]]},
    "data": {"ids": torch.arange(3)},
    "metadata": {"text": ["x", "y"]},
}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("keys", "ids", "'keys' is a list of names, got the text 'ids'"),
        ("keys", None, "'keys' is a list of names, got nothing (null)"),
        ("keys", {3}, "a key is a text, got the number 3"),
        ("keys", {"ids", "logp"}, "'seqlens' has 'ids'; the keys are 'ids', 'logp'"),
        ("keys", set(), "'seqlens' has 'ids'; the keys are none"),
        ("trailing_shapes", {}, "'trailing_shapes' has nothing; the keys are 'ids'"),
        ("trailing_shapes", {"ids": (2,)}, "'ids' has the shape (3,); its lengths say (3, 2)"),
        ("trailing_shapes", [()], "'trailing_shapes' is a mapping by key, got a list"),
        ("dtypes", {"logp": torch.int64}, "'dtypes' has 'logp'; the keys are 'ids'"),
        ("dtypes", {"ids": torch.float32}, "'ids' is torch.int64, but declared as torch.float32"),
        ("dtypes", None, "'dtypes' is a mapping by key, got nothing (null)"),
        ("ids", "ab", "'ids' is a list of names, got the text 'ab'"),
        ("ids", [["a"], "b"], "an id is a text or a number, got a list"),
        ("ids", ["a", "a"], "ids must differ; given more than once: 'a'"),
        ("ids", ["a"], "metadata 'text' has 2 values for 1 items"),
        ("seqlens", {"ids": [[1]]}, "'ids' has lengths of 1 items; there are 2"),
        ("seqlens", {"ids": [[1], [3]]}, "'ids' has the shape (3,); its lengths say (4,)"),
        ("seqlens", {"ids": [[-1], [4]]}, "'ids' has a length below 0"),
        ("seqlens", {"ids": [1, 2]}, "the lengths of 'ids' are a list for each item, such as [[5], [3]], got [1, 2]"),
        ("seqlens", {"ids": [[1.0], [2]]}, "the lengths of 'ids' are a list for each item, such as [[5], [3]], got [[1.0], [2]]"),
        ("seqlens", {"ids": None}, "the lengths of 'ids' are a list for each item, such as [[5], [3]], got None"),
        ("seqlens", [[1], [2]], "'seqlens' is a mapping by key, got a list"),
        ("data", {}, "'data' has nothing; the keys are 'ids'"),
        ("data", {"ids": [1, 2, 3]}, "'ids' is a tensor, got a list"),
        ("data", torch.arange(3), "'data' is a mapping by key, got an object of type 'Tensor'"),
        ("metadata", {"text": ["x"]}, "metadata 'text' has 1 values for 2 items"),
        ("metadata", {"text": "xy"}, "metadata 'text' is a list with a value for each item, got the text 'xy'"),
        ("metadata", None, "'metadata' is a mapping by key, got nothing (null)"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_in_words(field, value, message):
    Sample(**FIELDS)
    with pytest.raises(SampleError, match=f"^{re.escape(message)}$"):
        Sample(**{**FIELDS, field: value})


OTHER = {"ids": torch.arange(3.0), "logp": torch.ones(1), "rewards": torch.ones(1)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: Sample.gather([]), "there is no sample to gather"),
        (lambda s: Sample.gather([s, Sample.from_default([1], [2], {"ids": torch.arange(2)})]), "the sample has no 'logp'; it has 'ids'"),
        (lambda s: Sample.gather([s], ["reward"]), "the sample has no 'reward'; did you mean 'rewards'?"),
        (lambda s: Sample.gather([s, Sample.from_default([1], [2], {**OTHER, "ids": torch.ones(2)})]), "'ids' has the dtype torch.int64 in one sample, torch.float32 in another"),
        (lambda s: Sample.gather([s, Sample.from_default([1], [2], {**OTHER, "ids": torch.ones(2, 3)})]), "'ids' has the shape () in one sample, (3,) in another"),
        (lambda s: Sample.gather([s, Sample.from_default([1], [2], {**OTHER, "ids": torch.arange(2)})]), "the metadata of one sample has 'text', of another nothing"),
        (lambda s: Sample.gather([s.unpack()[0], s.unpack()[1].meta()]), "some samples have values, and others only describe them"),
        (lambda s: Sample.gather([s, s]), "ids must differ; given more than once: 'a', 'b'"),
        (lambda s: s.values("id"), "the sample has no 'id'; did you mean 'ids'?"),
        (lambda s: s["xyz"], "the sample has no 'xyz'; it has 'ids', 'logp', 'rewards'"),
        (lambda s: s.lengths("xyz"), "the sample has no 'xyz'; it has 'ids', 'logp', 'rewards'"),
        (lambda s: s.meta().values("ids"), "this sample only describes 'ids'; it has no values"),
        (lambda s: s.split(3), "2 items cannot be split into 3 parts of at least 1"),
        (lambda s: s.split(2, "xyz"), "the sample has no 'xyz'; it has 'ids', 'logp', 'rewards'"),
        (lambda s: s.split_with_spec(Split([1])), "the split has 1 items; the sample has 2"),
        (lambda s: s.update_(s.unpack()[0]), "the samples have different items, or the same in another order"),
        (lambda s: s.update_(s.meta()), "one of the two samples has no values"),
        (lambda s: s.remap_keys_({"ids": "logp"}), "two values would have one name: 'logp', 'logp', 'rewards'"),
        (lambda s: s.remap_keys_({"idz": "logp"}), "the sample has no 'idz'; did you mean 'ids'?"),
        (lambda s: Sample.of(["a"], {"ids": [[1]]}, {"ids": [1]}), "'ids' is a tensor, got a list"),  # type: ignore[dict-item]
        (lambda s: Sample.from_default(["a"], [-1], {"ids": torch.ones(1)}), "'seqlens' has a length below 0"),
        (lambda s: Sample.from_default(["a"], ["x"], {"ids": torch.ones(1)}), "the lengths of 'seqlens' are a list for each item, such as [[5], [3]], got [['x']]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(wrong, message):
    with pytest.raises(SampleError, match=f"^{re.escape(message)}$"):
        wrong(a_sample())


@pytest.mark.usefixtures("registries")
def test_a_value_without_a_rule_of_length_names_the_ways_out():
    message = (
        "nothing says how long 'my_own' is for a sequence of n tokens; register its rule, such as "
        "LENGTHS.register('my_own', per_token), or give lengths by key to Sample.of"
    )
    data = {"my_own": torch.ones(2)}
    with pytest.raises(SampleError, match=f"^{re.escape(message)}$"):
        Sample.from_default(["a"], [2], data)
    given_lengths = Sample.of(["a"], {"my_own": [[2]]}, data)
    LENGTHS.register("my_own", per_token)
    assert_same(Sample.from_default(["a"], [2], data), given_lengths)
    with pytest.raises(SampleError, match="tokens; did you mean 'rewards'"):
        Sample.from_default(["a"], [2], {"reward": torch.ones(1)})
