"""Files of policies in wrappers: they act as the wrapped policy does without chance and noise."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary

import composer
from composer.spec.wrapper_names import WRAPPERS
from composer.wrappers.interface import IModelWrapper
from composer.wrappers.wrapping import register_wrapper
from tests.composer.export.test_exported_actors import team
from tests.composer.export.test_exporting import CONFIGS, every_kind, exported, message

MEMORY = """
version: 1
policy:
  graph: {memory: {block: gru, in: observation, hidden_units: 8}}
  heads: {in: memory}
  wrap: [{hidden_state: {state_num: 3}}, WRAPPER]
"""
NORMAL = Box(-2, 2, (2,))
HYBRID = Dict(kind=Discrete(3), where=NORMAL)


def wrapped(wrapper, action_space):
    space, spec = Box(-1, 1, (4,)), MEMORY.replace("WRAPPER", wrapper)
    return composer.compose(spec, observation_space=space, action_space=action_space, seed=0)


CASES = [
    ("argmax_sample", Discrete(5, start=2), {}),
    ("eps_greedy_sample", Discrete(5), {"eps": 0.0}),
    ("argmax_sample", MultiBinary(3), {}),
    ("deterministic_sample", NORMAL, {}),
    ("deterministic_sample, {action_noise: {}}", NORMAL, {"sigma": 0.0}),
    (
        "deterministic_sample, {action_noise: {noise_kwargs: {mu: 3}, noise_range: [-1, 0.5], action_range: [-1.5, 2]}}",
        NORMAL,
        {"sigma": 0.0},
    ),
    (
        "deterministic_sample, {action_noise: {noise_type: ou, noise_kwargs: {mu: 0.2, x0: 0.2}, action_range: null}}",
        NORMAL,
        {"sigma": 0.0},
    ),
    ("hybrid_deterministic_argmax_sample, action_noise", HYBRID, {"sigma": 0.0}),
]


@pytest.mark.parametrize(("wrapper", "space", "keywords"), CASES)
def test_a_file_acts_as_the_wrapped_policy_does_without_chance(wrapper, space, keywords, tmp_path):
    model = wrapped(wrapper, space)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(4.0)  # actions up to the bounds
    file = exported(model, tmp_path, ".pt2")
    assert file.inputs == ["observation", "memory/h", "resets"]
    memory = np.zeros((3, 1, 8), np.float32)
    generator = np.random.default_rng(0)
    for _ in range(10):
        observation = generator.uniform(-1, 1, (3, 4)).astype(np.float32)
        resets = generator.random(3) < 0.3
        outputs = file({"observation": observation, "memory/h": memory, "resets": resets})
        memory = outputs["next/memory/h"]
        chosen = model.wrapped(observation, resets=resets, **keywords)["action"]
        expected = model.wrapped.environment_action(chosen)
        for name, own in expected.items() if isinstance(expected, dict) else [(None, expected)]:
            found = outputs["action" if name is None else f"action/{name}"]
            np.testing.assert_allclose(found, own, atol=1e-5)
            assert found.dtype == own.dtype


@every_kind
def test_noise_leaves_the_range_of_actions(suffix, tmp_path):
    model = wrapped("reparam_sample, {action_noise: {action_range: [-0.01, 0.01]}}", NORMAL)
    file = exported(model, tmp_path, suffix, unroll=2)
    observation, memory = np.ones((3, 2, 4), np.float32), np.zeros((3, 1, 8), np.float32)
    resets = np.zeros((3, 2), bool)
    outputs = file({"observation": observation, "memory/h": memory, "resets": resets})
    assert np.abs(outputs["action"]).max() == np.float32(0.01)


def test_wrappers_from_python_are_exported_too(tmp_path):
    model = composer.compose(CONFIGS / "continuous.yaml", seed=0)
    steady = composer.model_wrap(model.policy, "deterministic_sample")
    noisy = composer.model_wrap(steady, "action_noise", action_range=(-0.1, 0.1))
    file = exported(model, tmp_path, ".pt2", wrapped=noisy)
    outputs = file({"observation": np.ones((4, 3), np.float32) * 5})
    assert np.abs(outputs["action"]).max() <= 0.1


def test_what_is_no_wrapped_policy_is_refused(tmp_path):
    model, other = (wrapped("argmax_sample", Discrete(2)) for _ in range(2))
    path = str(tmp_path / "a.pt2")
    expected = f"{path!r} cannot be exported: wrapped is what composer.model_wrap(model.policy, ...) gives, got "
    assert message(model, path, wrapped=model.policy) == f"{expected}a Policy"
    assert message(model, path, wrapped=other.wrapped) == f"{expected}another policy in wrappers"


def test_one_of_several_actors_is_exported_in_wrappers(tmp_path):
    model = team(action_space=NORMAL)
    steady = composer.model_wrap(model.policy["player_1"], "deterministic_sample")
    noisy = composer.model_wrap(steady, "action_noise", action_range=(-0.01, 0.01))
    file = exported(model, tmp_path, ".pt2", actor="player_1", wrapped=noisy)
    observation = np.ones((4, 3), np.float32)
    expected = noisy.environment_action(noisy(observation, sigma=0.0)["action"])
    np.testing.assert_allclose(file({"observation": observation})["action"], expected, atol=1e-5)


class Lucky(IModelWrapper):
    """A user's own."""


@pytest.fixture(autouse=True)
def _lucky(monkeypatch):
    monkeypatch.setattr(WRAPPERS, "_entries", dict(WRAPPERS._entries))
    register_wrapper("lucky", Lucky)


REFUSED = {
    "{combination_argmax_sample: {shot_number: 2}}": (
        "'combination_argmax_sample' picks several choices at once, but an action is one of them; "
        "take them from the logits"
    ),
    "lucky": "'lucky' is Python that no file holds",
}


@pytest.mark.parametrize("wrapper", REFUSED)
def test_wrappers_that_no_file_holds_are_refused(wrapper, tmp_path):
    path = str(tmp_path / "a.pt2")
    expected = f"{path!r} cannot be exported: the wrapper {REFUSED[wrapper]}"
    assert message(wrapped(wrapper, Discrete(4)), path) == expected


def test_noise_that_moves_by_itself_is_refused(tmp_path):
    path = str(tmp_path / "a.pt2")
    noise = "{action_noise: {noise_type: ou, noise_kwargs: {mu: 0.5}}}"
    assert message(wrapped(f"deterministic_sample, {noise}", NORMAL), path) == (
        f"{path!r} cannot be exported: the wrapper 'action_noise' adds noise whose mean moves from x0 0 to mu 0.5; "
        "give both the same number"
    )


def test_second_models_and_histories_are_refused(tmp_path):
    model = composer.compose(CONFIGS / "cartpole.yaml", seed=0)
    path = str(tmp_path / "a.pt2")
    teacher = composer.model_wrap(model.policy, "teacher", teacher=torch.nn.Linear(1, 1))
    assert message(model, path, wrapped=teacher) == (
        f"{path!r} cannot be exported: the wrapper 'teacher' holds a second model, for training; "
        "export the policy that it is around"
    )
    history = composer.model_wrap(model.policy, "transformer_input", seq_len=3)
    assert message(model, path, wrapped=history) == (
        f"{path!r} cannot be exported: the wrapper 'transformer_input' gathers sequences in Python between calls, "
        "which no file holds"
    )


def test_a_critic_alone_has_no_wrappers_in_its_way(tmp_path):
    spec = (
        (CONFIGS / "cartpole.yaml")
        .read_text()
        .replace("policy:\n", "policy:\n  wrap: [lucky]\n", 1)
    )
    model = composer.compose(spec, seed=0)
    assert exported(model, tmp_path, ".pt2", part="critic").outputs == ["value"]
