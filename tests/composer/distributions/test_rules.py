"""Which action gets which distribution, and all actions of a space together."""

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from composer.distributions.base import DISTRIBUTIONS, ActionDistribution, default_distribution
from composer.distributions.discrete import ChoiceDistribution
from composer.distributions.joint import CompositeDistribution
from composer.distributions.rules import DistributionRuleError, build_distributions
from composer.spaces.tree import flatten_space, from_space_value, to_environment

FREE = spaces.Box(-np.inf, np.inf, (2, 2))


def random_logits(family, leading=(), seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn((*leading, *family.logits_shape), generator=generator)


@pytest.mark.parametrize(
    ("space", "name"),
    [
        (spaces.Discrete(3), "categorical"),
        (spaces.MultiDiscrete([3]), "multi_categorical"),
        (spaces.MultiBinary(3), "bernoulli"),
        (spaces.Box(-1, 1, (2,)), "squashed_gaussian"),
        (spaces.Box(0, 10, (2,), np.int32), "squashed_gaussian"),
        (spaces.Box(-1, np.inf, (2,)), "gaussian"),
        (FREE, "gaussian"),
    ],
    ids=str,
)
def test_every_space_has_a_default(space, name):
    assert default_distribution(flatten_space(space, "action").leaves["action"]) == name


@pytest.mark.parametrize(
    ("name", "space", "message"),
    [
        (
            "categorical",
            spaces.Box(-1, 1, (2,)),
            "distribution 'categorical' needs a Discrete action, "
            "got Box(-1.0, 1.0, (2,), float32) for 'action'; use 'squashed_gaussian'",
        ),
        (
            "multi_categorical",
            spaces.Discrete(2),
            "distribution 'multi_categorical' needs a MultiDiscrete action, "
            "got Discrete(2) for 'action'; use 'categorical'",
        ),
        (
            "bernoulli",
            spaces.Discrete(2),
            "distribution 'bernoulli' needs a MultiBinary action, "
            "got Discrete(2) for 'action'; use 'categorical'",
        ),
        (
            "gaussian",
            spaces.MultiBinary(2),
            "distribution 'gaussian' needs a Box action, "
            "got MultiBinary(2) for 'action'; use 'bernoulli'",
        ),
        (
            "beta",
            spaces.Box(0, np.inf, (2,)),
            "distribution 'beta' needs a Box action with finite bounds, "
            "got Box(0.0, inf, (2,), float32) for 'action'; use 'gaussian'",
        ),
        (
            "squashed_gaussian",
            spaces.Discrete(2),
            "distribution 'squashed_gaussian' needs a Box action with finite bounds, "
            "got Discrete(2) for 'action'; use 'categorical'",
        ),
    ],
)
def test_a_family_refuses_a_space_that_it_does_not_fit(name, space, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DISTRIBUTIONS.get(name)(flatten_space(space, "action").leaves["action"])


OPTIONAL = "; write optional: true beside it if it may match nothing"
ROBOT = flatten_space(
    spaces.Dict(
        {
            "steer": spaces.Box(-1, 1, (2,)),
            "gas": spaces.Box(0, 1, ()),
            "thrust": FREE,
            "gear.box": spaces.Discrete(4),
            "type": spaces.MultiBinary(3),
        }
    ),
    "action",
)


def test_the_first_rule_that_matches_wins():
    families = build_distributions(
        ROBOT,
        [
            {"action": "gas", "distribution": "beta"},
            {"space": "box", "distribution": "gaussian", "log_std": "learned"},
        ],
    )
    assert {key: type(family).__name__ for key, family in families.items()} == {
        "gas": "Beta",
        "gear.box": "Categorical",
        "steer": "Gaussian",
        "thrust": "Gaussian",
        "type": "Bernoulli",
    }
    assert families.logits_shapes["steer"] == (2,)
    assert set(families.state_dict()) == {"steer.log_std", "thrust.log_std"}
    assert [name for name, _ in families.named_children()] == [
        "gas",
        "gear%2Ebox",
        "steer",
        "thrust",
        "%74ype",
    ]


def test_everything_wrong_with_the_rules_is_told_at_once():
    rules = [
        {"action": "stear", "distribution": "beta"},
        {"action": "brake", "distribution": "beta"},
        {"space": "boxx", "distribution": "beta"},
        {"space": "multi_discrete", "distribution": "multi_categorical"},
        {"distribution": "beta"},
        {"action": "gas"},
        {"action": "gas", "distribution": "beta"},
        {"action": "steer", "distribution": "gausian"},
        {"action": "thrust", "distribution": "gaussian", "log_sdt": "learned", "init_log_std": "x"},
        {"action": "type", "distribution": "beta"},
        {"action": "gear.box", "distribution": "qqq"},
    ]
    with pytest.raises(DistributionRuleError) as error:
        build_distributions(ROBOT, rules)
    actions = "'gas', 'gear.box', 'steer', 'thrust', 'type'"
    names = "'categorical', 'multi_categorical', 'bernoulli', 'gaussian', 'squashed_gaussian', 'beta', 'gsde', "
    names += "'deterministic'"
    assert [problem[:3] for problem in error.value.problems] == [
        (0, "action", "no action 'stear' in the action space; did you mean 'steer'?"),
        (1, "action", f"no action 'brake' in the action space; it has {actions}{OPTIONAL}"),
        (2, "space", "unknown kind of space 'boxx'; did you mean 'box'?"),
        (
            3,
            "space",
            "no action is a 'multi_discrete'; the actions are 'box', 'discrete', 'multi_binary'"
            + OPTIONAL,
        ),
        (
            4,
            None,
            "a rule needs either 'action' (its name) or 'space' (a kind of space), "
            "got 'distribution'",
        ),
        (5, None, "the rule for 'gas' names no 'distribution'"),
        (6, None, "the rule for 'gas' is never used: distributions[5] comes first"),
        (7, "distribution", "unknown distribution 'gausian'; did you mean 'gaussian'?"),
        (
            8,
            "log_sdt",
            "'log_sdt' is not a setting of distribution 'gaussian'; did you mean 'log_std'?",
        ),
        (8, "init_log_std", "'init_log_std' must be a number, got 'x'"),
        (
            9,
            "distribution",
            "distribution 'beta' needs a Box action with finite bounds, "
            "got MultiBinary(3) for 'type'; use 'bernoulli'",
        ),
        (10, "distribution", f"unknown distribution 'qqq'; known are {names}"),
    ]
    assert [problem.setting for problem in error.value.problems if problem.misspelt] == ["log_sdt"]
    assert str(error.value).startswith("distributions[0]: no action 'stear'")


def test_optional_rules_may_match_nothing():
    rules = [
        {"action": "brake", "distribution": "gaussian", "optional": True},
        {"space": "multi_discrete", "distribution": "multi_categorical", "optional": True},
        {"action": "gas", "distribution": "gaussian"},
        {"action": "gas", "distribution": "beta", "optional": True},
        {"space": "multi_binary", "distribution": "bernoulli", "optional": True},
    ]
    families = build_distributions(ROBOT, rules)
    assert type(families["gas"]) is DISTRIBUTIONS.get("gaussian")


def test_optional_rules_are_checked_all_the_same():
    rules = [
        {"action": "brake", "distribution": "gausian", "optional": True},
        {"action": "brake", "distribution": "gaussian", "log_sdt": 1, "optional": True},
        {"space": "boxx", "distribution": "gaussian", "optional": True},
        {"action": "gas", "distribution": "gaussian", "optional": "yes"},
        {"action": "steer", "distribution": "gaussian", "optinal": True},
        {"action": 3, "distribution": "gaussian", "optional": True},
    ]
    with pytest.raises(DistributionRuleError) as error:
        build_distributions(ROBOT, rules)
    assert [message for _, _, message, _ in error.value.problems] == [
        "unknown distribution 'gausian'; did you mean 'gaussian'?",
        "'log_sdt' is not a setting of distribution 'gaussian'; did you mean 'log_std'?",
        "unknown kind of space 'boxx'; did you mean 'box'?",
        "'optional' must be true or false, got the text 'yes'",
        "'optinal' is not a key of a rule; did you mean 'optional'?",
        "'action' must be a text, got 3",
    ]


class Strong(ActionDistribution):
    """A user's own family."""

    def __init__(self, leaf, *, strength: float = 1.0):
        super().__init__(leaf, 3)
        self.strength = strength

    def forward(self, logits, mask=None, temperature=1.0):
        return ChoiceDistribution(logits)


def test_a_family_of_ones_own_is_registered_or_given_as_a_class():
    DISTRIBUTIONS.register("test_strong", Strong, replace=True)
    for name in ("test_strong", Strong):
        families = build_distributions(
            ROBOT, [{"action": "thrust", "distribution": name, "strength": 2.0}]
        )
        assert families["thrust"].strength == 2.0


def test_several_actions_are_one_joint_distribution():
    families = build_distributions(ROBOT)
    assert len(families) == 5
    assert "gas" in families
    logits = {key: random_logits(families[key], (4,)) for key in families}
    distribution = families(logits, {"gear.box": torch.tensor([0, 0, 1, 0])})
    assert isinstance(distribution, CompositeDistribution)
    action = distribution.sample()
    assert action["gear.box"].tolist() == [2] * 4
    parts = distribution.parts
    joint = sum(parts[key].log_prob(action[key]) for key in parts)
    torch.testing.assert_close(distribution.log_prob(action), joint)
    torch.testing.assert_close(distribution.entropy(), sum(p.entropy() for p in parts.values()))
    assert distribution.kl(families(logits)).shape == (4,)
    del action["steer"]
    with pytest.raises(ValueError, match=r"^log_prob needs every action; missing: 'steer'$"):
        distribution.log_prob(action)
    with pytest.raises(ValueError, match=r"^log_prob takes a dict of .*'steer'.*, got a Tensor$"):
        distribution.log_prob(torch.zeros(4))  # type: ignore[arg-type]


def test_all_families_together_compile_and_export_with_a_dynamic_batch():
    families = build_distributions(ROBOT, [{"action": "gas", "distribution": "beta"}])

    class Acts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.families = families

        def forward(self, logits):
            distribution = self.families(logits)
            action = distribution.mode()
            values = (distribution.log_prob(action), distribution.entropy())
            return to_environment(ROBOT, action, as_numpy=False), *values

    logits = {key: random_logits(families[key], (5,)) for key in families}
    expected = Acts()(logits)
    compiled = torch.compile(Acts(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits), expected)
    torch.compile(lambda: families(logits).sample(), fullgraph=True, backend="eager")()
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = ({key: {0: batch} for key in logits},)
    program = torch.export.export(Acts(), (logits,), dynamic_shapes=shapes).module()
    torch.testing.assert_close(program(logits), expected)
    more = {key: torch.cat([value, value]) for key, value in logits.items()}
    torch.testing.assert_close(program(more), Acts()(more))


def boxes():
    numbers = st.floats(-100, 100, width=16)
    dtypes = st.sampled_from([np.float32, np.float64, np.int32, np.uint8])

    def box(bounds, shape, dtype, free):
        low, high = sorted(abs(b) if dtype == np.uint8 else b for b in bounds)
        if free and dtype == np.float32:
            return spaces.Box(-np.inf, high, shape, dtype)
        return spaces.Box(dtype(low), dtype(high), shape, dtype)

    shapes = st.sampled_from([(), (1,), (3,), (2, 2)])
    return st.builds(box, st.tuples(numbers, numbers), shapes, dtypes, st.booleans())


counts = st.lists(st.integers(1, 4), min_size=1, max_size=3)
leaf_spaces = st.one_of(
    boxes(),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-3, 3)),
    st.builds(lambda nvec: spaces.MultiDiscrete(nvec, start=[2] * len(nvec)), counts),
    st.builds(spaces.MultiBinary, counts),
)  # fmt: skip
nested_spaces = st.recursive(
    leaf_spaces,
    lambda inner: st.one_of(
        st.builds(
            spaces.Dict, st.dictionaries(st.sampled_from("abc.:"), inner, min_size=1, max_size=3)
        ),
        st.builds(spaces.Tuple, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(nested_spaces, st.integers(0, 9))
def test_what_the_environment_gets_is_in_its_space_and_has_a_finite_log_prob(space, seed):
    tree = flatten_space(space, "action")
    families = build_distributions(tree)
    logits = {key: random_logits(families[key], (), seed, scale=4) for key in families}
    distribution = families(logits)
    for flat in (distribution.sample(), distribution.mode()):
        action = to_environment(tree, flat, as_numpy=True)
        assert space.contains(action)
        again = tree.to_tensors(action, dtype=torch.float64)
        for key, leaf in tree.leaves.items():
            value = from_space_value(leaf, again[key] + leaf.start, dtype=torch.float64)
            assert distribution.parts[key].log_prob(value).isfinite().all()
