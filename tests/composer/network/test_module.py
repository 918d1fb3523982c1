"""Every way to use a policy or critic goes through its call: hooks run once, and what they return is used."""

import re

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map

import composer
from tests.helpers.structured_models import PLACE, SEPARATE, agents

SPEC = """
version: 1
policy: {graph: {latent: {block: BLOCK, in: observation, hidden_units: 4}}, heads: {in: latent}}
critic: {graph: {latent: {block: BLOCK, in: observation, hidden_units: 4}, value: {block: value, in: latent}}}
"""
ENSEMBLE = """
critic:
  kind: state_action
  ensemble: 2
  graph:
    both: {block: concat, in: [observation, action/action]}
    latent: {block: BLOCK, in: both, hidden_units: 4}
    q_value: {block: value, in: latent}
"""
ACTORS = """
version: 1
policy:
  SEPARATE
  graph: {latent: {block: BLOCK, in: observation, hidden_units: 4}}
  heads: {in: latent}
critic:
  graph: {latent: {block: BLOCK, in: observation, hidden_units: 4}, value: {block: value, in: latent}}
"""


def model_of(block, critic=""):
    spec = SPEC.partition("critic")[0] + critic if critic else SPEC
    action_space = Box(-1, 1, (2,)) if critic else Discrete(5)
    return composer.compose(
        spec.replace("BLOCK", block), observation_space=PLACE, action_space=action_space, seed=0
    )


def actors_of(block, separate=""):
    return agents(ACTORS.replace("BLOCK", block), separate)


# What has hooks, and the arguments of one step before the state.
ONE, EVERYONE = (np.zeros(3, np.float32),), ({f"agent_{i}": np.full(3, i / 4) for i in range(4)},)
MODULES = {
    "policy": (lambda block: model_of(block).policy, ONE),
    "critic": (lambda block: model_of(block).critic, ONE),
    "ensemble critic": (
        lambda block: model_of(block, ENSEMBLE).critic,
        (*ONE, torch.zeros(2)),
    ),
    "structured policy": (lambda block: actors_of(block).policy, EVERYONE),
    "separate policies": (lambda block: actors_of(block, SEPARATE).policy, EVERYONE),
    "structured critic": (lambda block: actors_of(block).critic, EVERYONE),
}
USES = ["call", "unroll", "distribution", "act", "value"]
every_use = pytest.mark.parametrize(
    ("name", "use"),
    [
        (name, use)
        for name in MODULES
        for use in USES
        if use not in (["value"] if "polic" in name else ["distribution", "act"])
    ],
)
with_and_without_memory = pytest.mark.parametrize("block", ["dense", "gru"])


def used(module, use, arguments):
    """The result of one ``use`` of ``module``, without a state."""
    if use == "unroll":
        arguments = tree_map(lambda value: np.stack([value, value]), arguments)
        return module.unroll(*arguments, module.initial_state())[0]
    state = (module.initial_state(),) if module.has_memory else ()
    result = (module if use == "call" else getattr(module, use))(*arguments, *state)
    return result[0] if module.has_memory else result


@with_and_without_memory
@every_use
def test_hooks_run_once_in_every_use(name, use, block):
    make, arguments = MODULES[name]
    module, ran = make(block), []
    module.register_forward_pre_hook(lambda *_: ran.append("before"))
    module.register_forward_hook(lambda *_: ran.append("after"))
    expected = used(make(block), use, arguments)
    if use not in ("act", "distribution"):
        torch.testing.assert_close(used(module, use, arguments), expected)
    else:
        used(module, use, arguments)
    assert ran == ["before", "after"]


@with_and_without_memory
@every_use
def test_what_a_hook_returns_is_used(name, use, block):
    """The fourth of five actions is chosen, and values are 3."""
    make, arguments = MODULES[name]
    module = make(block)

    def replaced(value):
        if value.shape[-1:] != (5,):
            return torch.full_like(value, 3.0)
        return 1e4 * nn.functional.one_hot(torch.full(value.shape[:-1], 3), 5).to(value.dtype)

    def hook(module, arguments, result):
        outputs, *state = result if isinstance(result, tuple) else (result,)
        outputs = tree_map(replaced, outputs)
        return (outputs, *state) if isinstance(result, tuple) else outputs

    module.register_forward_hook(hook)
    result = used(module, use, arguments)
    if use == "distribution":
        result = tree_map(lambda d: d.mode(), result)
    if use in ("act", "distribution"):
        tree_map(lambda action: np.testing.assert_array_equal(action, 3), result)
    else:
        tree_map(lambda value: torch.testing.assert_close(value, replaced(value)), result)


@pytest.mark.parametrize("use", ["distribution", "act"])
@pytest.mark.parametrize("name", [name for name in MODULES if "polic" in name])
def test_logits_of_another_width_from_a_hook_are_refused(name, use):
    make, arguments = MODULES[name]
    module = make("dense")
    module.register_forward_hook(
        lambda module, arguments, result: tree_map(lambda logits: logits[..., :4], result)
    )
    message = (
        "the logits of action 'action' have the shape (4,), but its distribution takes (5,) at the end; "
        "a hook on this policy must keep their width"
    )
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        used(module, use, arguments)


@pytest.mark.parametrize("use", ["call", "unroll", "distribution", "act"])
def test_hooks_on_the_policy_that_actors_share_run_once(use):
    policy, ran = actors_of("gru").policy, []
    shared = policy.groups[0].module
    shared.register_forward_hook(lambda *_: ran.append("after"))
    used(policy, use, EVERYONE)
    assert ran == ["after"]


@pytest.mark.parametrize("use", ["call", "unroll", "distribution", "act"])
def test_hooks_on_one_of_separate_policies_run_once(use):
    policy, ran = actors_of("gru", SEPARATE).policy, []
    expected = used(actors_of("gru", SEPARATE).policy, "unroll", EVERYONE)
    policy.groups[0].module.members[2].register_forward_hook(lambda *_: ran.append("after"))
    result = used(policy, use, EVERYONE)
    assert ran == ["after"]
    if use == "unroll":
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("use", ["call", "unroll", "distribution", "act"])
def test_parametrizations_and_backward_hooks_of_layers_take_part(use):
    policy, ran = model_of("gru").policy, []

    class Zero(nn.Module):
        def forward(self, weight):
            return weight * 0

    layer = [module for module in policy.modules() if isinstance(module, nn.Linear)][-1]
    parametrize.register_parametrization(layer, "weight", Zero())
    layer.register_full_backward_hook(lambda *_: ran.append("backward"))
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.bias[3] = 1e4
    result = used(policy, use, ONE)
    if use == "act":
        assert result == 3
        return
    logits = result["action"] if use != "distribution" else result.entropy()
    logits.sum().backward()
    assert ran == ["backward"]


def test_a_lowered_policy_runs_hooks_on_the_policy():
    policy, ran = model_of("gru").policy, []
    lowered, state = policy.lower(), policy.initial_state()
    lowered.act(*ONE, state)
    handle = policy.register_forward_hook(lambda *_: ran.append("after"))
    lowered.act(*ONE, state)
    lowered(*ONE, state)
    assert ran == ["after", "after"]
    handle.remove()
    lowered.act(*ONE, state)
    assert len(ran) == 2


def test_masks_are_of_the_observation_as_it_was_given():
    """A hook before the policy may change what its network reads."""
    spec = SPEC.partition("critic")[0].replace("BLOCK", "dense")
    spec = spec.replace("policy: {", "policy: {action_mask: {action: legal}, ")
    observed = {"observation": np.zeros(3, np.float32), "legal": np.arange(5) == 2}
    space = {"observation": PLACE, "legal": MultiBinary(5)}
    policy = composer.compose(
        spec, observation_space=Dict(space), action_space=Discrete(5), seed=0
    ).policy
    policy.register_forward_pre_hook(
        lambda _, arguments: (
            {**arguments[0], "observation": np.ones(3, np.float32)},
            *arguments[1:],
        )
    )
    assert policy.act(observed) == 2
