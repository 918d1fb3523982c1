"""Rows of numbers that stand for distributions and states."""

import re

import pytest
import torch
from hypothesis import given, settings

from composer.distributions.base import DISTRIBUTIONS, ActionDistribution, Distribution
from tests.composer.distributions.test_legal_actions import compose, spaces_and_rules
from tests.helpers.example_models import mlp
from tests.helpers.host_models import compose_kind, seen_by
from tests.helpers.structured_models import agents

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def raises(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@settings(max_examples=60)
@given(spaces_and_rules())
def test_a_row_is_the_distribution_again(drawn):
    space, rules = drawn
    policy = compose(space, rules).policy
    generator = torch.Generator().manual_seed(0)
    for leading in ((), (7,), (2, 3)):
        seen = torch.rand(*leading, 3, generator=generator) * 10 - 5
        first, other = policy.distribution(seen), policy.distribution(-seen)
        row = first.row()
        width = sum(family.row_width for _, family in policy.distributions.items())
        assert row.shape == (*leading, width)
        assert row.isfinite().all()
        again = policy.distribution_of_row(row)
        assert type(again) is type(first)
        for action in (first.sample(generator), other.sample(generator), first.mode()):
            expected, found = first.log_prob(action), again.log_prob(action)
            assert found.shape == leading
            torch.testing.assert_close(found, expected, **CLOSE)
        torch.testing.assert_close(again.entropy(), first.entropy(), **CLOSE)
        torch.testing.assert_close(again.mode(), first.mode())
        torch.testing.assert_close(again.kl(first), torch.zeros(leading), atol=1e-3, rtol=0)
        torch.testing.assert_close(again.kl(other), first.kl(other), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(again.row(), row, **CLOSE)


@pytest.mark.parametrize("kind", ["masked", "mixed", "box of a deviation", "deterministic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rows_carry_gradients_in_the_width_of_the_densities(kind, dtype):
    kind = "learned deviation" if kind == "box of a deviation" else kind
    model = compose_kind(kind, dtype=dtype)
    state = model.initial_state(3) if model.has_memory else None
    step = model.step(seen_by(model, (3,)), state=state)
    row = step.distribution.row()
    assert row.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    row.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.policy.parameters())


def test_every_parameter_of_a_distribution_has_the_shape_of_the_batch():
    model = compose_kind("learned deviation")
    parts = model.policy.distribution(seen_by(model, (2, 3))).parts
    gaussian = parts["hands/1"]
    assert gaussian.mean.shape == gaussian.log_std.shape == gaussian.stddev.shape == (2, 3, 2, 1)
    assert parts["move"].log_probs.shape == (2, 3, 5)
    assert parts["lamps"].logits.shape == (2, 3, 3)
    assert gaussian.row().shape == (2, 3, 4)


def test_logits_of_a_model_do_not_become_a_distribution_without_the_masks_of_the_spec():
    model = compose_kind("masked")
    seen = seen_by(model, (20,))
    seen["legal"][:] = torch.tensor([0, 1, 0, 0, 1])
    logits, _ = model(seen)
    with raises(
        "the spec masks action 'action' by the observation 'legal', which logits do not contain; "
        "policy.distribution(observations) reads it, or pass it: policy.distributions(logits, masks={'action': mask}), "
        "None for no mask; samples of that are dicts, {'action': action}"
    ):
        model.policy.distributions(logits)
    ways = {
        "step": model.step(seen).distribution,
        "distribution": model.policy.distribution(seen),
        "row": model.policy.distribution_of_row(model.step(seen).distribution.row()),
        "masks": model.policy.distributions(logits, masks={"action": seen["legal"]}),
        "unroll": model.policy.distribution(seen, unroll=True)[0] if model.has_memory else None,
    }
    for way, distribution in ways.items():
        if distribution is not None:
            sample = distribution.sample()
            chosen = sample["action"] if way == "masks" else sample
            assert set(chosen.tolist()) <= {1, 4}, way


def test_wrong_rows_of_distributions():
    policy = mlp().policy
    with raises(
        "a row of this policy's distribution has 2 floating point numbers, got the shape (4, 3) of float32"
    ):
        policy.distribution_of_row(torch.zeros(4, 3))
    with raises(
        "a row of this policy's distribution has 2 floating point numbers, got the shape () of float32"
    ):
        policy.distribution_of_row(torch.tensor(1.0))
    with raises(
        "a row of this policy's distribution has 2 floating point numbers, got the shape (2,) of int64"
    ):
        policy.distribution_of_row(torch.tensor([1, 2]))
    with raises("a row is a tensor (..., 2) as distribution.row() gives it, got a list"):
        policy.distribution_of_row([0.0, 1.0])
    with raises(
        "for 'agent_0': a row of this policy's distribution has 5 floating point numbers, got the shape (2,) of float32"
    ):
        agents(number=2).policy.distribution_of_row({"agent_0": torch.zeros(2)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["masked", "mixed", "learned deviation", "no critic"])
def test_rows_that_were_stored_in_half_precision_are_those_of_their_numbers(kind, dtype):
    model = compose_kind(kind)
    row = model.step(seen_by(model, (5,))).distribution.row().detach().to(dtype)
    half, whole = (model.policy.distribution_of_row(each) for each in (row, row.float()))
    action = whole.sample()
    assert torch.equal(half.log_prob(action), whole.log_prob(action))
    assert torch.equal(half.row(), whole.row())


def test_a_distribution_without_a_row_says_so():
    class Always(Distribution):
        """The first choice, whatever the logits."""

        def __init__(self, logits):
            self.zeros = logits[..., 0] * 0

        def sample(self, generator=None):
            return self.zeros.long()

        mode = sample

        def log_prob(self, action):
            return self.zeros

        def entropy(self):
            return self.zeros

        def kl(self, other):
            return self.zeros

    class AlwaysFamily(ActionDistribution):
        def __init__(self, leaf):
            super().__init__(leaf, 2)

        def forward(self, logits, mask=None, temperature=1.0):
            return Always(logits)

    DISTRIBUTIONS.register("always_first")(AlwaysFamily)
    rule = {"space": "discrete", "distribution": "always_first"}
    model = compose_kind("plain", {"distributions": [rule]})
    step = model.step(seen_by(model, (3,)))
    assert step.log_prob.shape == (3,)
    with raises(
        "Always has no row of numbers that stands for it; define row() in it, and row_width and of_row(row) in its family"
    ):
        step.distribution.row()
    with raises(
        "AlwaysFamily makes no distribution of a row of numbers; define row_width and of_row(row) in it"
    ):
        model.policy.distribution_of_row(torch.zeros(3, 2))


def test_wrong_rows_of_states():
    model = compose_kind("two memories")
    state = model.initial_state(3)
    with raises(
        "the state lacks 'critic/past/h'; a row holds the whole state of the model, as "
        "model.initial_state(batch_size) and model.step return it"
    ):
        model.pack_state({k: v for k, v in state.items() if k.startswith("policy/")})
    with raises("the state 'critic/past/h' must end in the shape (1, 6), got (3, 6)"):
        model.pack_state(state | {"critic/past/h": torch.zeros(3, 6)})
    with raises(
        "the entries of the state differ in their leading (batch) axes: 'policy/past/h' (3,), 'policy/past/c' (3,), "
        "'critic/past/h' (2,)"
    ):
        model.pack_state(state | {"critic/past/h": torch.zeros(2, 1, 6)})
    with raises("the state 'critic/past/h' must be a tensor, got a str"):
        model.pack_state(state | {"critic/past/h": "x"})
    with raises(
        "a state is a dict of tensors, as model.initial_state(batch_size) returns it, got a NoneType"
    ):
        model.pack_state(None)
    with raises("a row of this model's state has 18 numbers, got the shape (3, 17)"):
        model.unpack_state(torch.zeros(3, 17))
    with raises(
        "a row of this model's state has 18 numbers, got the shape (18,) of torch.complex64"
    ):
        model.unpack_state(torch.zeros(18, dtype=torch.complex64))
    with raises("a row is a tensor (..., 18) as pack_state gives it, got a list"):
        model.unpack_state([0.0] * 18)
    with raises("this model has no memory, and so no state to pack"):
        compose_kind("plain").pack_state({})
    assert compose_kind("plain").unpack_state(torch.zeros(3, 0)) == {}
