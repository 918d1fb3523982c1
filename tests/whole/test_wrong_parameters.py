"""Weights that became NaN or infinite do not act: by whatever way logits become actions; and logits do not lose a mask."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from tensordict import TensorDict

import composer
from composer import model_wrap
from composer.adapters.torchrl.models import to_torchrl
from composer.distributions.base import DISTRIBUTIONS, NoNumberError
from composer.distributions.discrete import Categorical
from composer.distributions.rules import build_distributions
from composer.spaces.tree import flatten_space
from tests.composer.distributions.test_action_extremes import FAMILIES, IDS
from tests.helpers.sb3_agents import Walk, agent

SEEN = np.zeros(4, np.float32)
OBSERVED = spaces.Box(-1, 1, (4,))
LINE = spaces.Box(-1, 1, (2,))
MESSAGE = (
    "the parameter 'log_std' of action 'action' is NaN or infinite at index (1,); go back to weights "
    "from before that, with a lower learning rate or clipped gradients"
)


def compose(action_space=LINE, distribution="gaussian", value=math.nan) -> Any:
    rule = {"action": "action", "distribution": distribution, "log_std": "learned"}
    spec = {"version": 1, "policy": {"template": {}}, "distributions": [rule]}
    model: Any = composer.compose(
        spec, observation_space=OBSERVED, action_space=action_space, seed=0
    )
    with torch.no_grad():
        model.policy.distributions["action"].log_std[1] = value
    return model


def by_torchrl(model):
    actor = to_torchrl(model).actor_inference
    data = TensorDict({"observation": torch.zeros(3, 4)}, [3])
    return actor(data)["action"]


def by_host(algorithm, action_space, rules=()):
    spec = {"version": 1, "policy": {"template": {}}, "distributions": list(rules)}
    spec |= {} if algorithm is DQN else {"critic": {"template": {}}}
    return agent(algorithm, spec, Walk(OBSERVED, action_space))


WAYS = {
    "policy": lambda m: m.policy.act(SEEN),
    "policy, deterministic": lambda m: m.policy.act(SEEN, deterministic=True),
    "policy, a batch of tensors": lambda m: m.policy.act(torch.zeros(5, 4)),
    "distribution": lambda m: m.policy.distribution(SEEN),
    "of logits": lambda m: m.policy.distributions(m.policy(SEEN)),
    "lowered": lambda m: m.policy.lower().act(SEEN),
    "lowered, deterministic": lambda m: m.policy.lower().act(SEEN, deterministic=True),
    "lowered, a batch": lambda m: m.policy.lower().act(np.zeros((5, 4), np.float32)),
    "wrapped": lambda m: model_wrap(m.policy, "reparam_sample")({"observation": SEEN}),
    "torchrl": by_torchrl,
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", ["gaussian", "squashed_gaussian"])
@pytest.mark.parametrize("way", WAYS)
def test_a_parameter_that_is_no_number_does_not_act(way, family, value):
    model = compose(distribution=family, value=value)
    with pytest.raises(NoNumberError, match=f"^{re.escape(MESSAGE)}$"):
        WAYS[way](model)


def test_a_parameter_that_is_no_number_neither_acts_nor_learns_in_stable_baselines3():
    rule = {"action": "action", "distribution": "gaussian", "log_std": "learned"}
    made: Any = by_host(PPO, LINE, [rule])
    with torch.no_grad():
        made.policy.model.policy.distributions["action"].log_std[1] = math.nan
    for call in (lambda: made.predict(SEEN), lambda: made.learn(8)):
        with pytest.raises(NoNumberError, match=f"^{re.escape(MESSAGE)}$"):
            call()


def test_values_that_are_no_numbers_do_not_act_in_stable_baselines3():
    made: Any = by_host(DQN, spaces.Discrete(3))
    with torch.no_grad():
        next(made.policy.model.policy.parameters()).fill_(math.nan)
    with pytest.raises(NoNumberError, match=r"^the logits of action 'action' are NaN or"):
        made.predict(SEEN, deterministic=True)


def test_a_parameter_that_is_no_number_is_not_exported(tmp_path):
    with pytest.raises(NoNumberError, match=f"^{re.escape(MESSAGE)}"):
        compose().export(tmp_path / "policy.pt2")


class Scaled(Categorical):
    """A family of the user's own with weights in a layer of its own."""

    def __init__(self, leaf):
        super().__init__(leaf)
        self.layer = torch.nn.Linear(self.logits_shape[0], self.logits_shape[0])

    def forward(self, logits, mask=None, temperature=1.0):
        return super().forward(self.layer(logits), mask, temperature)


def test_parameters_of_a_users_own_family_are_looked_at():
    leaf = flatten_space(spaces.Discrete(3), "action")
    rule = {"action": "action", "distribution": Scaled}
    families: Any = build_distributions(leaf, [rule])
    families({"action": torch.zeros(3)})
    with torch.no_grad():
        families["action"].layer.bias[2] = math.nan
    message = "the parameter 'layer.bias' of action 'action' is NaN or infinite at index (2,);"
    with pytest.raises(NoNumberError, match=f"^{re.escape(message)}"):
        families({"action": torch.zeros(3)})


MASKED = """
version: 1
policy:
  template: {}
  action_mask: {kind: legal}
"""


def test_logits_alone_do_not_lose_the_mask_of_the_spec():
    model = composer.compose(
        MASKED,
        observation_space=spaces.Dict(x=OBSERVED, legal=spaces.MultiBinary(3)),
        action_space=spaces.Dict(kind=spaces.Discrete(3), args=LINE),
        seed=0,
    )
    policy: Any = model.policy
    seen = {"x": torch.zeros(50, 4), "legal": torch.tensor([0, 1, 0]).expand(50, 3)}
    logits = policy(seen)
    message = (
        "the spec masks action 'kind' by the observation 'legal', which logits do not contain; "
        "policy.distribution(observations) reads it, or pass it: "
        "policy.distributions(logits, masks={'kind': mask}), None for no mask"
    )
    for masks in (None, {}, {"args": None}):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            policy.distributions(logits, masks)
    # Every way out that the message names.
    assert set(policy.distribution(seen).sample()["kind"].tolist()) == {1}
    given = policy.distributions(logits, masks={"kind": seen["legal"]})
    assert set(given.sample()["kind"].tolist()) == {1}
    assert len(set(policy.distributions(logits, {"kind": None}).sample()["kind"].tolist())) > 1


def _masked() -> Any:
    spec = {"version": 1, "policy": {"template": {}, "action_mask": {"action": "legal"}}}
    seen = spaces.Dict(x=OBSERVED, legal=spaces.MultiBinary(3))
    return composer.compose(spec, observation_space=seen, action_space=spaces.Discrete(3)).policy


def test_of_a_single_action_the_message_says_that_the_distribution_is_joint():
    message = "None for no mask; samples of that are dicts, {'action': action}"
    policy = _masked()
    logits = policy({"x": torch.zeros(4), "legal": torch.ones(3)})
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        policy.distributions(logits)
    assert set(policy.distributions(logits, {"action": None}).sample()) == {"action"}


LEGAL = torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("change", "masks", "message"),
    [
        (dict, LEGAL, "masks must be a dict by action ('action'), got a Tensor; give {'action': mask}"),
        (dict, {"actoin": LEGAL}, "there is no action 'actoin' to mask; did you mean 'action'?"),
        (dict, {"action": None, "actoin": LEGAL}, "there is no action 'actoin' to mask; did you mean 'action'?"),
        (dict, {"action": None, "legal": LEGAL}, "there is no action 'legal' to mask; there is 'action'"),
        (dict, {"action": [0, 1, 1]}, "the mask of action 'action' must be a tensor or None, got a list; torch.as_tensor(mask) makes one"),
        (lambda logits: (logits, {}), {"action": None}, "logits must be a dict by action ('action'), got a tuple; policy(observations) gives (logits, state) with memory: take its first"),
        (lambda logits: logits["action"], {"action": None}, "logits must be a dict by action ('action'), got a Tensor; policy(observations) gives it"),
        (lambda _: {"x": torch.zeros(4), "legal": LEGAL}, {"action": None}, "there are no logits of action 'action', got 'x', 'legal'; policy(observations) gives them"),
        (lambda _: {}, {"action": None}, "there are no logits of action 'action', got an empty dict; policy(observations) gives them"),
    ],
)  # fmt: skip
def test_what_are_no_logits_or_masks_by_action_is_refused(change, masks, message):
    policy = _masked()
    logits = policy({"x": torch.zeros(4), "legal": LEGAL})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        policy.distributions(change(logits), masks=masks)


def test_a_misspelt_mask_of_the_policy_has_its_near_name():
    seen = {"x": torch.zeros(4), "legal": LEGAL}
    message = "there is no action 'actoin' to mask; did you mean 'action'?"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _masked().distribution(seen, mask={"actoin": LEGAL})


def test_parameters_of_children_are_looked_at_too():
    family = DISTRIBUTIONS.get("gaussian")(flatten_space(LINE, "action").leaves["action"])
    family.scale = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(family.scale.bias, math.nan)
    with pytest.raises(
        NoNumberError, match=r"^the parameter 'scale\.bias' of action 'action' is NaN"
    ):
        family.refuse_no_numbers(torch.zeros(4))


@pytest.mark.parametrize("leading", [(), (1,), (5, 2), (0,)], ids=str)
@pytest.mark.parametrize(("name", "space", "settings"), FAMILIES, ids=IDS)
def test_whatever_a_distribution_has_is_of_the_shape_of_its_batch(name, space, settings, leading):
    leaf = flatten_space(space, "action").leaves["action"]
    family = DISTRIBUTIONS.get(name)(leaf, **settings)
    distribution = family(torch.zeros(*leading, *family.logits_shape))
    known = {"mean", "stddev", "log_std", "probs", "log_probs", "logits"}
    parts = [distribution, getattr(distribution, "base", None)]
    for part in filter(None, parts):
        for attribute in known & set(dir(part)):
            shape = getattr(part, attribute).shape
            assert shape[: len(leading) + len(space.shape)] == (*leading, *space.shape), attribute
    for action in (distribution.sample(), distribution.mode()):
        assert action.shape == (*leading, *space.shape)
        assert distribution.log_prob(action).shape == leading
    assert distribution.entropy().shape == distribution.kl(distribution).shape == leading
