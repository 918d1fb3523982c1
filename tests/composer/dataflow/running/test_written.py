"""What a call reads is one sample, and what it returns becomes samples whose lengths fit, or an error in words."""

import pytest
import torch

from composer.dataflow.calls.experiment import CallSpec
from composer.dataflow.data.samples import LENGTHS, Sample, SampleError
from composer.dataflow.running.written import joined, packed, values_of

READ = Sample.from_default(
    ["a", "b"], [2, 3], {"ids": torch.arange(5), "prompts": torch.arange(5)}, {"text": ["x", "y"]}
)
PAIRS = Sample.of(["a"], {"ids": [[2, 3]]}, {"ids": torch.arange(5)})


def call(writes, reads=("ids",), verb="inference"):
    return CallSpec(
        "c",
        ("calls", "c"),
        verb,
        "i",
        reads={r: r for r in reads},
        writes={w: f"my_{w}" for w in writes},
    )


def test_values_are_joined_by_the_names_of_the_interface():
    values = values_of(READ, ["ids", "prompts"])
    spec = CallSpec("c", (), "inference", "i", reads={"packed_input_ids": "prompts", "ids": "ids"})
    sample = joined(spec, [values["prompts"], values["ids"]])
    assert sample.keys == {"packed_input_ids", "ids"}
    assert sample.metadata == {"text": ["x", "y"]}
    assert sample.seqlens["packed_input_ids"] == [[2], [3]]


def test_values_of_different_items_are_refused():
    values = [values_of(READ, ["ids"])["ids"], values_of(PAIRS, ["ids"])["ids"]]
    with pytest.raises(SampleError) as error:
        joined(CallSpec("c", (), "inference", "i", reads={"a": "ids", "b": "ids"}), values)
    assert str(error.value) == "'ids', read as 'b', has other items than 'ids'"


@pytest.mark.parametrize(
    ("sample", "name", "value", "lengths"),
    [
        (READ, "logp", torch.zeros(3), [[1], [2]]),
        (READ, "values", torch.zeros(5, 2), [[2], [3]]),
        (READ, "rewards", torch.zeros(2), [[1], [1]]),
        (READ, "rewards", [0.5, 1], [[1], [1]]),
        (READ, "rewards", [torch.zeros(1), torch.ones(1)], [[1], [1]]),
        (READ, "ids", [torch.zeros(4), torch.zeros(7)], [[4], [7]]),
        (READ, "ids", torch.nested.nested_tensor([torch.zeros(4), torch.zeros(7)], layout=torch.jagged), [[4], [7]]),
        (READ, "own", [torch.zeros(4), torch.zeros(0)], [[4], [0]]),
        (PAIRS, "rewards", torch.zeros(2), [[1, 1]]),
        (PAIRS, "logp", torch.zeros(3), [[1, 2]]),
        (PAIRS, "ids", [torch.zeros(4), torch.zeros(7)], [[4, 7]]),
    ],
)  # fmt: skip
def test_the_lengths_follow_from_what_is_read_or_returned(sample, name, value, lengths):
    (written,) = packed(call([name]), sample, {name: value, "more": 3})
    assert written.keys == {f"my_{name}"}
    assert written.seqlens[f"my_{name}"] == lengths
    assert written.ids == sample.ids
    assert written.metadata == sample.metadata


def test_sequences_of_new_lengths_say_how_long_the_other_values_are():
    result = {
        "logp": torch.zeros(9),
        "ids": [torch.zeros(4), torch.zeros(7)],
        "lengths": torch.ones(2),
    }
    logp, _, lengths = packed(call(["logp", "ids", "lengths"]), READ, result)
    assert logp.seqlens["my_logp"] == [[3], [6]]
    assert lengths.seqlens["my_lengths"] == [[1], [1]]


def test_what_is_written_has_no_gradients():
    (written,) = packed(
        call(["rewards"]), READ, {"rewards": torch.zeros(2, requires_grad=True) * 2}
    )
    assert not written.values("my_rewards").requires_grad


@pytest.mark.parametrize(
    ("name", "result", "message"),
    [
        ("logp", None, "'inference' must return a mapping with 'logp', got nothing (null)"),
        ("rewards", {"reward": 1}, "'inference' did not return 'rewards'; did you mean 'reward'?"),
        ("rewards", {}, "'inference' did not return 'rewards'; it returned none"),
        ("rewards", {"rewards": torch.zeros(3)}, "'rewards' needs 2 numbers, per item, and has 3"),
        ("logp", {"logp": torch.zeros(5)}, "'logp' needs 3 numbers, per token but the first, and has 5"),
        ("rewards", {"rewards": torch.tensor(1.0)}, "'rewards' is one number without a dimension; return one for each item"),
        ("rewards", {"rewards": "no"}, "'rewards' must be a tensor, or a list of one for each sequence, got the text 'no'"),
        ("rewards", {"rewards": None}, "'rewards' must be a tensor, or a list of one for each sequence, got nothing (null)"),
        ("logp", {"logp": [torch.zeros(1)] * 3}, "'logp' has 3 sequences for 2 items"),
        (
            "rewards",
            {"rewards": [torch.zeros(1), torch.zeros(2)]},
            "'rewards' needs 1 number, per item, for sequence 0 of item 1, and has 2",
        ),
        (
            "own",
            {"own": torch.zeros(2)},
            "nothing says how long 'own' is for a sequence of n tokens; return a list of a tensor for each sequence, or "
            "register its rule, such as LENGTHS.register('own', per_token)",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(name, result, message):
    with pytest.raises(SampleError) as error:
        packed(call([name]), READ, result)
    assert str(error.value) == message


def test_the_rule_of_an_own_value():
    LENGTHS.register("halves", lambda n: n // 2)
    try:
        (written,) = packed(call(["halves"]), READ, {"halves": torch.zeros(2)})
        assert written.seqlens["my_halves"] == [[1], [1]]
        with pytest.raises(SampleError, match="'halves' needs 2 numbers"):
            packed(call(["halves"]), READ, {"halves": torch.zeros(3)})
    finally:
        del LENGTHS._entries["halves"]


def test_a_call_that_writes_nothing_may_return_anything():
    assert packed(call([]), READ, 3) == []
