"""`previous` of a spec: the last action and reward as observations, and the wrapper that fills them."""

import pickle
import re
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

import composer
from composer.errors import SpecError
from composer.spaces.json_form import space_from_json, space_to_json
from composer.spaces.previous import add_previous

BOTH = ("action", "reward")
SEEN = spaces.Box(-1, 1, (2,), np.float32)
REWARD = spaces.Box(-np.inf, np.inf, (1,), np.float32)


def one_hot(count: int) -> spaces.Box:
    return spaces.Box(0.0, 1.0, (count,), np.float32)


# --- the spaces ---

ACTIONS: dict[str, tuple[spaces.Space, dict[str, spaces.Space], Any, dict[str, Any]]] = {
    "discrete": (spaces.Discrete(3), {"action": one_hot(3)}, 2, {"action": [0, 0, 1]}),
    "start": (spaces.Discrete(3, start=-1), {"action": one_hot(3)}, -1, {"action": [1, 0, 0]}),
    "multi_discrete": (
        spaces.MultiDiscrete([2, 3], start=[0, 5]),
        {"action": one_hot(5)},
        np.array([1, 7]),
        {"action": [0, 1, 0, 0, 1]},
    ),
    "two_axes": (
        spaces.MultiDiscrete([[2, 2], [2, 3]]),
        {"action": one_hot(9)},
        np.array([[0, 1], [1, 2]]),
        {"action": [1, 0, 0, 1, 0, 1, 0, 0, 1]},
    ),
    "bits": (
        spaces.MultiBinary(3),
        {"action": spaces.MultiBinary(3)},
        np.array([1, 0, 1], np.int8),
        {"action": [1, 0, 1]},
    ),
    "box": (
        spaces.Box(1.0, 2.0, (2, 1), np.float64),
        {"action": spaces.Box(0.0, 2.0, (2, 1), np.float64)},
        np.array([[1.5], [2.0]]),
        {"action": [[1.5], [2.0]]},
    ),
    "integers": (
        spaces.Box(-3, -1, (2,), np.int64),
        {"action": spaces.Box(-3, 0, (2,), np.float32)},
        np.array([-3, -1]),
        {"action": [-3, -1]},
    ),
    "composite": (
        spaces.Dict(
            arm=spaces.Dict(grip=spaces.Discrete(2), turn=spaces.Box(-1, 1, (1,))),
            legs=spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]),
        ),
        {
            "arm/grip": one_hot(2),
            "arm/turn": spaces.Box(-1, 1, (1,)),
            "legs/0": one_hot(2),
            "legs/1": spaces.MultiBinary(2),
        },
        {
            "arm": {"grip": 1, "turn": np.array([0.5], np.float32)},
            "legs": (0, np.array([0, 1], np.int8)),
        },
        {"arm/grip": [0, 1], "arm/turn": [0.5], "legs/0": [1, 0], "legs/1": [0, 1]},
    ),
}


class Scripted(gymnasium.Env):
    """Episodes of ``lengths`` steps, ended and cut off by turns; rewards count the steps of all episodes."""

    def __init__(self, action_space: spaces.Space, lengths=(3, 2, 4), observation_space=SEEN):
        self.action_space, self.observation_space = action_space, observation_space
        self._lengths, self._episode, self._count = lengths, -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._episode += 1
        self._left = self._lengths[self._episode % len(self._lengths)]
        return self._seen(), {}

    def step(self, action):
        self._left -= 1
        self._count += 1
        is_over = self._left == 0
        cut = bool(self._episode % 2)
        return self._seen(), float(self._count), is_over and not cut, is_over and cut, {}

    def _seen(self):
        self.observation_space.seed(self._count)
        return self.observation_space.sample()


@pytest.mark.parametrize(
    ("action_space", "added", "action", "values"), ACTIONS.values(), ids=ACTIONS
)
def test_an_action_is_an_observation_in_which_zeros_are_no_action(
    action_space, added, action, values
):
    env = composer.with_previous(Scripted(action_space))
    group = spaces.Dict([*added.items(), ("reward", REWARD)])
    assert env.observation_space == spaces.Dict(observation=SEEN, previous=group)
    first, _ = env.reset()
    assert env.observation_space.contains(first)
    assert all(not np.any(value) for value in first["previous"].values())
    assert action_space.contains(action)
    after, *_ = env.step(action)
    shown = {key: value.tolist() for key, value in after["previous"].items()}
    assert shown == {**values, "reward": [1.0]}
    assert all(not np.any(value) for value in first["previous"].values())  # of its own
    types = {key: value.dtype for key, value in after["previous"].items()}
    assert types == {key: space.dtype for key, space in group.spaces.items()}


def test_what_an_action_was_stays_when_its_array_is_written_again():
    env = composer.with_previous(Scripted(spaces.Box(-1, 1, (1,))))
    env.reset()
    action = np.array([0.5], np.float32)
    seen, *_ = env.step(action)
    action[:] = 0.0
    assert seen["previous"]["action"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("space", "keys"),
    [
        (SEEN, ["observation"]),
        (spaces.Dict(b=SEEN, a=SEEN), ["b", "a"]),
        (spaces.Tuple([SEEN, spaces.Discrete(2)]), ["0", "1"]),
    ],
)
@pytest.mark.parametrize(
    ("previous", "more"),
    [(("reward",), ["reward"]), (("action",), ["action"]), (BOTH, ["action", "reward"])],
)
def test_observations_keep_their_keys(space, keys, previous, more):
    env = composer.with_previous(Scripted(spaces.Discrete(2), observation_space=space), previous)
    read = [*keys, *(f"previous/{key}" for key in more)]
    nodes = "".join(f"    n{i}: {{block: flatten, in: '{key}'}}\n" for i, key in enumerate(read))
    nodes = nodes.replace("block: flatten, in: '1'", "block: one_hot, in: '1'")
    spec = f"""
version: 1
previous: [{", ".join(previous)}]
policy:
  graph:
{nodes}
    all: {{block: concat, in: [{", ".join(f"n{i}" for i in range(len(read)))}]}}
  heads: {{in: all}}
"""
    model = composer.compose(spec, env=env)
    observation, _ = env.reset()
    env.step(model.policy.act(observation))
    again = composer.compose(spec, env=Scripted(spaces.Discrete(2), observation_space=space))
    assert again.observation_space == model.observation_space == env.observation_space
    assert [*env.observation_space.spaces["previous"].spaces] == more


# --- what the wrapper fills, compared with bookkeeping by hand ---

CHOICES = spaces.Discrete(3, start=1)


def hand_written(action: int | None, reward: float) -> tuple[list[float], list[float]]:
    return [float(action == choice) for choice in (1, 2, 3)], [reward]


def shown(observation) -> tuple[list[float], list[float]]:
    previous = observation["previous"]
    return previous["action"].tolist(), previous["reward"].tolist()


def test_one_environment_over_the_ends_of_episodes():
    env, script = composer.with_previous(Scripted(CHOICES)), np.random.default_rng(0)
    count, lengths = 0, []
    for _ in range(4):
        observation, _ = env.reset()
        assert shown(observation) == hand_written(None, 0.0)
        over, length = False, 0
        while not over:
            action = int(script.integers(1, 4))
            observation, reward, terminated, truncated, _ = env.step(action)
            count, length, over = count + 1, length + 1, terminated or truncated
            assert reward == count
            assert shown(observation) == hand_written(action, float(count))
        lengths.append(length)
    assert lengths == [3, 2, 4, 3]


LENGTHS = ((3, 2, 4), (1, 5, 2), (4, 1, 1))


def vector(mode: AutoresetMode, inside: bool) -> VectorEnv:
    makers = [partial(Scripted, CHOICES, lengths) for lengths in LENGTHS]
    if inside:
        makers = [lambda make=make: composer.with_previous(make()) for make in makers]
    envs = SyncVectorEnv(makers, autoreset_mode=mode)
    return composer.with_previous(envs)  # which is envs itself where it has them already


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_vector_environments_in_each_autoreset_mode(mode, inside):
    envs, script = vector(mode, inside), np.random.default_rng(1)
    assert envs.single_observation_space["previous"] == spaces.Dict(
        action=one_hot(3), reward=REWARD
    )
    observation, _ = envs.reset()
    expected = [hand_written(None, 0.0)] * 3
    counts, over = [0] * 3, np.zeros(3, bool)
    for _ in range(25):
        rows = [
            shown({"previous": {k: v[i] for k, v in observation["previous"].items()}})
            for i in range(3)
        ]
        assert rows == expected
        assert envs.observation_space.contains(observation)
        if mode is AutoresetMode.DISABLED and over.any():
            observation, _ = envs.reset(options={"reset_mask": over.copy()})
            expected = [hand_written(None, 0.0) if over[i] else expected[i] for i in range(3)]
            over = np.zeros(3, bool)
            continue
        actions = script.integers(1, 4, size=3)
        observation, _, terminated, truncated, infos = envs.step(actions)
        ended = terminated | truncated
        for i in range(3):
            if mode is AutoresetMode.NEXT_STEP and over[i]:  # this step only began the next episode
                expected[i] = hand_written(None, 0.0)
                continue
            counts[i] += 1
            expected[i] = hand_written(int(actions[i]), float(counts[i]))
            if mode is AutoresetMode.SAME_STEP and ended[i]:
                assert infos["_final_obs"][i]
                assert shown(infos["final_obs"][i]) == expected[i]
                expected[i] = hand_written(None, 0.0)
        over = ended
    assert min(counts) > 12


class OnTensors(VectorEnv):
    """An environment that keeps everything in tensors; episodes of three steps, the next one in the same step."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self):
        self.num_envs = 2
        self.single_observation_space, self.single_action_space = SEEN, spaces.Box(-1, 1, (2,))
        self.observation_space = gymnasium.vector.utils.batch_space(SEEN, 2)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, 2)
        self._steps = 0

    def reset(self, *, seed=None, options=None):
        return torch.zeros(2, 2), {}

    def step(self, actions):
        self._steps += 1
        ended = torch.full((2,), self._steps % 3 == 0)
        infos = {"final_obs": torch.ones(2, 2)} if bool(ended.any()) else {}
        rewards = torch.full((2,), float(self._steps))
        return torch.zeros(2, 2), rewards, torch.zeros(2, dtype=torch.bool), ended, infos


def test_tensors_stay_tensors():
    envs = composer.with_previous(OnTensors())
    first, _ = envs.reset()
    assert torch.equal(first["previous"]["action"], torch.zeros(2, 2))
    actions = torch.tensor([[0.5, -0.5], [1.0, 0.0]], requires_grad=True)
    for step in (1, 2, 3):
        observation, _, _, _, infos = envs.step(actions)
        filled = infos["final_obs"] if step == 3 else observation
        assert torch.equal(filled["previous"]["action"], actions.detach())
        assert filled["previous"]["reward"].tolist() == [[float(step)]] * 2
    assert not observation["previous"]["action"].any()
    assert not observation["previous"]["reward"].any()


@pytest.mark.parametrize(
    "action_space", [spaces.Discrete(3, start=2), spaces.MultiDiscrete([2, 4])]
)
def test_choices_are_the_same_as_arrays_and_as_tensors(action_space):
    from composer.spaces.previous import Recalled

    recalled = Recalled(SEEN, action_space, BOTH)
    actions = np.stack([action_space.sample() for _ in range(5)])
    rewards = np.arange(5.0)
    arrays = recalled.values(actions, rewards, (5,))
    tensors = recalled.values(torch.tensor(actions), torch.tensor(rewards), (5,), torch.zeros(1))
    for key, array in arrays.items():
        assert torch.equal(torch.from_numpy(array), tensors[key])


class Agents:
    """A parallel environment of PettingZoo: one of two agents leaves after two steps."""

    possible_agents = ("a", "b")
    metadata: dict[str, Any] = {}
    render_mode = None

    def observation_space(self, agent):
        return SEEN

    def action_space(self, agent):
        return spaces.Discrete(2 if agent == "a" else 3)

    def reset(self, seed=None, options=None):
        self.agents, self._steps = ["a", "b"], 0
        return {agent: np.zeros(2, np.float32) for agent in self.agents}, {}

    def step(self, actions):
        self._steps += 1
        acting = self.agents
        self.agents = ["a", "b"] if self._steps < 2 else ["a"] if self._steps < 4 else []
        rewards = {agent: self._steps + (agent == "b") / 2 for agent in acting}
        over = {agent: agent not in self.agents for agent in acting}
        seen = {agent: np.zeros(2, np.float32) for agent in acting}
        return seen, rewards, over, dict.fromkeys(acting, False), {}


def test_each_agent_has_its_own():
    env = composer.with_previous(Agents())
    assert env.observation_space("b")["previous"]["action"] == one_hot(3)
    observations, _ = env.reset()
    assert shown(observations["a"]) == ([0, 0], [0.0])
    observations, *_ = env.step({"a": 1, "b": 2})
    assert shown(observations["a"]) == ([0, 1], [1.0])
    assert shown(observations["b"]) == ([0, 0, 1], [1.5])
    env.step({"a": 0, "b": 0})
    observations, *_ = env.step({"a": 0})
    assert [*observations] == ["a"]
    assert shown(observations["a"]) == ([1, 0], [3.0])
    assert pickle.loads(pickle.dumps(env)).possible_agents == ("a", "b")
    observations, _ = env.reset()
    assert shown(observations["b"]) == ([0, 0, 0], [0.0])
    assert composer.with_previous(env) is env


ACTORS = """
version: 1
previous: [action, reward]
policy:
  networks:
    a:
      graph:
        all: {block: concat, in: [observation, previous/action, previous/reward]}
      heads: {in: all}
    b:
      graph:
        all: {block: concat, in: [observation, previous/action, previous/reward]}
      heads: {in: all}
"""


def test_a_model_of_several_agents_reads_what_each_did():
    env = composer.with_previous(Agents())
    model = composer.compose(ACTORS, env=Agents())
    observations, _ = env.reset()
    observations, *_ = env.step(model.policy.act(observations))
    assert model.policy.act(observations).keys() == {"a", "b"}


# --- models ---

SPEC = """
version: 1
previous: [action, reward]
policy:
  graph:
    all: {block: concat, in: [observation, previous/action, previous/reward]}
    latent: {block: gru, in: all, hidden_units: 4}
  heads: {in: latent}
"""


def compose(spec: str = SPEC, action_space: spaces.Space = CHOICES, seen=SEEN, **settings):
    return composer.compose(
        spec, observation_space=seen, action_space=action_space, seed=0, **settings
    )


def test_spaces_may_be_of_the_environment_with_or_without_the_wrapper():
    model = compose()
    assert compose(seen=model.observation_space).observation_space == model.observation_space
    assert (
        composer.compose(SPEC, env=Scripted(CHOICES)).observation_space == model.observation_space
    )
    wrapped = composer.with_previous(Scripted(CHOICES))
    assert composer.compose(SPEC, env=wrapped).observation_space == model.observation_space
    envs = vector(AutoresetMode.NEXT_STEP, inside=True)
    assert composer.compose(SPEC, env=envs).observation_space == model.observation_space
    assert space_from_json(space_to_json(model.observation_space)) == model.observation_space


def test_an_environment_may_fill_them_itself_and_need_not_know_the_bounds():
    def group(low: float, high: float) -> spaces.Dict:
        action = spaces.Box(low, high, (2,), np.float32)
        return spaces.Dict(observation=SEEN, previous=spaces.Dict(action=action, reward=REWARD))

    seen = group(-np.inf, np.inf)
    box = spaces.Box(1.0, 2.0, (2,), np.float32)
    assert compose(action_space=box, seen=seen).observation_space == seen
    assert compose(action_space=box, seen=group(0.0, 2.0)).observation_space == group(0.0, 2.0)
    with pytest.raises(SpecError, match="the environment has 'previous/action', Box"):
        compose(action_space=box, seen=group(0.5, 2.0))


def test_a_checkpoint_keeps_the_key_and_the_spaces(tmp_path):
    model = compose()
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    assert loaded.spec.previous == ("action", "reward")
    assert loaded.observation_space == model.observation_space
    env = composer.with_previous(Scripted(CHOICES), loaded.spec.previous)
    states = [each.policy.initial_state() for each in (model, loaded)]
    observation, _ = env.reset()
    for _ in range(3):
        actions = []
        for index, each in enumerate((model, loaded)):
            action, states[index] = each.policy.act(
                observation, states[index], False, deterministic=True
            )
            actions.append(action)
        assert actions[0] == actions[1]
        observation, *_ = env.step(actions[0])


MISSING = {
    "vector": (np.zeros(2), "observation 'observation' is missing; got a value of type ndarray"),
    "dict": (
        {"observation": np.zeros(2)},
        "observation 'previous/action' is missing; got the keys 'observation'",
    ),
}


@pytest.mark.parametrize(("observation", "message"), MISSING.values(), ids=MISSING)
def test_observations_of_an_environment_without_the_wrapper(observation, message):
    policy = compose().policy
    with pytest.raises(ValueError, match="with_previous") as error:
        policy.act(observation, policy.initial_state(), True)
    way_out = "; wrap the environment: env = composer.with_previous(env, ['action', 'reward'])"
    assert str(error.value) == message + way_out


def test_the_wrapper_that_a_message_names_adds_what_the_spec_lists():
    policy = compose("version: 1\nprevious: [reward]\npolicy: {template: {}}").policy
    with pytest.raises(ValueError, match=re.escape("with_previous(env, ['reward'])")):
        policy.act(np.zeros(2))


def test_they_can_be_normalised_and_hidden_like_any_observation():
    model = compose(
        "version: 1\nprevious: [action, reward]\nnormalize: [previous/reward]\n"
        "policy: {observations: [observation], template: {}}\ncritic: {template: {}}"
    )
    values = {"action": np.zeros((4, 3)), "reward": np.full((4, 1), 7.0)}
    seen = {"observation": np.zeros((4, 2)), "previous": values}
    model.update_normalizers(seen)
    assert model.policy.observer.normalizers["previous/reward"].mean.tolist() == [7.0]
    assert model.policy.read_keys == ("observation",)
    assert compose(
        "version: 1\nprevious: [action, reward]\nignore: [previous]\npolicy: {template: {}}"
    ).policy.read_keys == ("observation",)


def test_the_wrapper_can_be_made_again_from_the_spec_of_its_environment():
    env = composer.with_previous(gymnasium.make("CartPole-v1"), ["reward"])
    again = gymnasium.make(env.spec)
    assert again.observation_space == env.observation_space
    assert composer.with_previous(env, ()) is env
    assert composer.with_previous(env, ["reward"]) is env


# --- what is refused ---


class Turns(Agents):
    def agent_iter(self):
        return iter(())


class Steps(gymnasium.Env):
    observation_spaces = {"pick": SEEN}
    action_spaces = {"pick": CHOICES}


BY_ITSELF = "; let it give the entry 'previous' itself, as docs/how-to/previous.md describes it"
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "name": (
        Scripted(CHOICES),
        ["acton"],
        "previous lists 'action', 'reward', got 'acton'; did you mean 'action'?",
    ),
    "number": (Scripted(CHOICES), [3], "previous lists 'action', 'reward', got 3"),
    "text": (
        Scripted(CHOICES),
        "rewards",
        "previous lists 'action', 'reward', got 'rewards'; did you mean 'reward'?",
    ),
    "environment": (
        "CartPole-v1",
        BOTH,
        "with_previous takes an environment of gymnasium, a vector environment or a parallel environment of "
        "PettingZoo, got a str",
    ),
    "turns": (Turns(), BOTH, f"the agents of the environment take turns (AEC){BY_ITSELF}"),
    "steps": (
        Steps(),
        BOTH,
        f"the environment has several steps, each with its own actions{BY_ITSELF}",
    ),
    "taken": (
        Scripted(CHOICES, observation_space=spaces.Dict({"previous/reward": SEEN})),
        ["reward"],
        "the environment has 'previous/reward', Box(-1.0, 1.0, (2,), float32), but 'previous' adds "
        "'previous/reward', Box(-inf, inf, (1,), float32); rename it in the environment, or take 'previous' out of "
        "the spec and read what the environment has",
    ),
    "other names": (
        composer.with_previous(Scripted(CHOICES), ["reward"]),
        BOTH,
        "the environment shows the last reward, but 'previous' lists 'action', 'reward'; let both list the same",
    ),
    "fewer names": (
        composer.with_previous(Scripted(CHOICES)),
        ["action"],
        "the environment shows the last action and reward, but 'previous' lists 'action'; let both list the same",
    ),
    "an action of that name": (
        Scripted(spaces.Dict(reward=CHOICES)),
        BOTH,
        "the action 'reward' and the reward would both be 'previous/reward'; rename the action in the environment, or "
        "write previous: [action]",
    ),
    "many choices": (
        Scripted(spaces.Discrete(2**30)),
        BOTH,
        "'previous/action' would have 1,073,741,824 numbers, one for each choice, but the limit of numbers is "
        "33,554,432; leave 'action' out of 'previous', or if it is meant, allow it: limits={'numbers': 1073741824} or "
        "--limit numbers=1073741824",
    ),
}


@pytest.mark.parametrize(("env", "previous", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(env, previous, message):
    with pytest.raises(ValueError, match=re.escape(message[:20])) as error:
        composer.with_previous(env, previous)
    assert str(error.value) == message


@pytest.mark.parametrize("env", [Turns(), Steps()], ids=["turns", "steps"])
def test_what_no_wrapper_fills_is_refused_when_it_is_composed(env):
    with pytest.raises(SpecError) as error:
        composer.compose("version: 1\nprevious: [action]\npolicy: {template: {}}\n", env=env)
    with pytest.raises(ValueError, match=BY_ITSELF) as refused:
        composer.with_previous(env, ["action"])
    assert str(error.value) == f"<spec>:2:11: {refused.value}"


def test_agents_that_take_turns_and_steps_may_fill_their_entries():
    BY_TEMPLATES = """
version: 1
previous: [action]
policy: {template: {}, separate: true}
"""

    class FilledSteps(Steps):
        observation_spaces = {"pick": add_previous(SEEN, CHOICES, ("action",))}

    class FilledTurns(Turns):
        def observation_space(self, agent):
            return add_previous(SEEN, self.action_space(agent), ("action",))

    for env in (FilledTurns(), FilledSteps()):
        assert composer.with_previous(env, ["action"]) is env
        model = composer.compose(BY_TEMPLATES, env=env)
        assert model.spec.previous == ("action",)


def test_no_array_of_that_size_is_made_before_it_is_refused():
    with pytest.raises(SpecError, match=r"<spec>:3:11: 'previous/action' would have 1,073,741,824"):
        compose(action_space=spaces.Discrete(2**30))
    limits = {"numbers": 100}
    with pytest.raises(ValueError, match="limit of numbers is 100"):
        add_previous(SEEN, spaces.Discrete(101), ("action",), limits)
    assert add_previous(SEEN, spaces.Discrete(100), ("action",), limits)


def test_what_is_wrong_with_the_actions_is_said_as_without_the_key():
    odd = spaces.Sequence(spaces.Discrete(2))
    messages = []
    for text in (
        SPEC,
        SPEC.replace("previous: [action, reward]\n", "").replace(
            ", previous/action, previous/reward", ""
        ),
    ):
        with pytest.raises(SpecError) as error:
            compose(text, action_space=odd)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_problems_of_several_actors_name_the_actor():
    taken = spaces.Dict({"x": SEEN, "previous": SEEN})
    with pytest.raises(SpecError) as error:
        composer.compose(
            ACTORS.partition("    b:")[0],
            observation_space={"a": taken}, action_space={"a": CHOICES},
        )  # fmt: skip
    assert str(error.value).startswith(
        "<spec>:3:11: 'a': the environment has 'previous', Box(-1.0, 1.0, (2,), float32), but 'previous' adds "
    )
