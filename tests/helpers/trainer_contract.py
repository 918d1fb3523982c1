"""The contract between a composed model and the library that trains it, the host: one test for all adapters.

An adapter writes a `Driver`, which makes an agent of its host and looks into it, and a subclass of `TrainerContract`
that names it::

    class TestPpo(TrainerContract):
        driver = PpoDriver

What a host has no word for is left out by ``without``, with the reason: there is then no such test. No library of a
trainer is imported here.
"""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple, Self

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import Tensor
from torch.testing import assert_close

import composer
from composer.model import Model
from tests.helpers.paths import ROOT

__all__ = ["CASES", "LINES", "Case", "Driver", "Forward", "TrainerContract", "Wander"]

LONGEST = (
    9  # steps of an episode: a rollout of 24 or more steps, or a sequence of 16, crosses several
)
MOST = 1e-5  # between a log-probability at the rollout and in the first update
BATCH = 5
LINES = (
    "the_weights_are_as_composed",
    "the_first_forward_is_the_models",
    "the_ratio_of_the_first_update_is_1",
    "every_parameter_is_once_in_the_optimizers",
    "gradients_reach_every_parameter_that_is_not_frozen",
    "what_is_saved_is_what_was_trained",
    "a_checkpoint_of_the_host_is_rebuilt_in_a_fresh_process",
    "the_config_of_the_host_survives_copies",
)
"""The lines of the contract, each a test of `TrainerContract`."""


class Wander(gymnasium.Env):
    """Random observations for 3 to `LONGEST` steps, every other episode cut off; rewards follow what was seen.

    The key ``legal``, where the space has it, is a mask of choices, which the actions must keep.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self._episodes = 0

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None or not self._episodes:
            self.observation_space.seed(int(self.np_random.integers(2**31)))
        self._episodes += 1
        self._step, self._length = 0, int(self.np_random.integers(3, LONGEST + 1))
        self._seen = self._observed()
        return copy.deepcopy(self._seen), {}  # hosts write into what they are given

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        if isinstance(self._seen, dict) and "legal" in self._seen:
            assert self._seen["legal"][action], f"{action} is forbidden by {self._seen['legal']}"
        numbers = spaces.flatten(self.observation_space, self._seen)
        self._step += 1
        is_over = self._step == self._length
        self._seen = self._observed()
        ended, cut_off = is_over and self._episodes % 2 == 0, is_over and self._episodes % 2 == 1
        return copy.deepcopy(self._seen), float(np.sum(numbers)), ended, cut_off, {}

    def _observed(self) -> Any:
        observation = self.observation_space.sample()
        if isinstance(observation, dict) and "legal" in observation:
            observation["legal"][self.np_random.integers(len(observation["legal"]))] = 1
        return observation


@dataclass(frozen=True)
class Case:
    """A model to be trained: a spec, its spaces, and the parts of names of the weights that are frozen."""

    spec: str
    observation_space: spaces.Space
    action_space: spaces.Space
    frozen: tuple[str, ...] = ()

    def make_env(self) -> gymnasium.Env:
        """An environment of its own; ``case.make_env`` pickles."""
        return Wander(copy.deepcopy(self.observation_space), copy.deepcopy(self.action_space))

    def model(self) -> Model:
        """The model, composed alone, with the same weights each time."""
        seen, taken = self.observation_space, self.action_space
        model = composer.compose(self.spec, observation_space=seen, action_space=taken, seed=0)
        for name, parameter in model.named_parameters():
            if any(part in name for part in self.frozen):
                parameter.requires_grad_(False)
        return model

    def observations(self, count: int = BATCH) -> Any:
        """A batch of observations as an environment gives them: arrays (count, ...) in the structure of the space."""
        env = self.make_env()
        rows = [env.reset(seed=seed)[0] for seed in range(count)]
        space = self.observation_space
        return concatenate(space, rows, create_empty_array(space, count))


SEEN = spaces.Box(-1, 1, (3,))
_DENSE = "{block: dense, in: observation, hidden_units: [8], activation: tanh}"
_POLICY = f"version: 1\npolicy:\n  graph:\n    latent: {_DENSE}\n  heads: {{in: latent}}\n"
_STATE = f"critic:\n  graph:\n    latent: {_DENSE}\n"
_GRU = "{block: gru, in: observation, hidden_units: 6}"
_MEMORY = f"version: 1\npolicy:\n  graph:\n    memory: {_GRU}\n  heads: {{in: memory}}\n"
_ACTIONS = """critic:
  kind: state_action
  ensemble: 2
  graph:
    both: {block: concat, in: [observation, action/action]}
    latent: {block: dense, in: both, hidden_units: [8], activation: tanh}
"""
_SHARED = _POLICY.replace("  heads", "  shares: [latent]\n  heads")
_OF_SHARED = "critic:\n  graph:\n    value: {block: dense, in: latent, hidden_units: [4], activation: tanh}\n"
_MASKED = "  action_mask: {action: legal}\n"
_TEMPLATES = "version: 1\npolicy: {template: {}}\ncritic: {template: {}}\n"
_LEGAL = spaces.Dict(observation=SEEN, legal=spaces.MultiBinary(4))
_NESTED = spaces.Dict(
    body=spaces.Dict(joints=spaces.Box(-1, 1, (2,)), hand=spaces.Discrete(3, start=1)),
    board=spaces.MultiDiscrete([2, 3]),
)
_BOUNDED = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32))
_FREE = spaces.Box(-np.inf, np.inf, (2,))
_WITH_STATE = spaces.Dict(observation=SEEN, state=spaces.Box(-1, 1, (2,)))
_SEES_MORE = (_MEMORY + _STATE.replace("in: observation", "in: state")).replace(
    "policy:", "policy:\n  observations: [observation]"
)

CASES: dict[str, Case] = {
    "choices": Case(_POLICY + _STATE, SEEN, spaces.Discrete(4)),
    "several choices": Case(_POLICY + _STATE, SEEN, spaces.MultiDiscrete([3, 2])),
    "numbers": Case(_POLICY + _STATE, SEEN, _FREE),
    "bounded numbers": Case(_POLICY + _STATE, SEEN, _BOUNDED),
    "shared layers": Case(_SHARED + _OF_SHARED, SEEN, spaces.Discrete(4)),
    "masks": Case(_POLICY + _MASKED + _STATE, _LEGAL, spaces.Discrete(4)),
    "nested observations": Case(_TEMPLATES, _NESTED, spaces.Discrete(3)),
    "nested actions": Case(
        _TEMPLATES, SEEN, spaces.Dict(move=spaces.Discrete(3), steer=spaces.Box(-1, 1, (2,)))
    ),
    "frozen layers": Case(_POLICY + _STATE, SEEN, spaces.Discrete(4), ("policy.latent",)),
    "memory": Case(_MEMORY + _STATE.replace(_DENSE, _GRU), SEEN, spaces.Discrete(4)),
    "memory of the policy": Case(_MEMORY + _STATE, SEEN, _FREE),
    "memory of the critic": Case(_POLICY + _STATE.replace(_DENSE, _GRU), SEEN, spaces.Discrete(4)),
    "shared memory": Case(
        _MEMORY.replace("  heads", "  shares: [memory]\n  heads")
        + _OF_SHARED.replace("latent", "memory"),
        SEEN,
        _FREE,
    ),
    "memory of numbers": Case(
        _MEMORY.replace("gru", "lstm") + _STATE.replace(_DENSE, _GRU), SEEN, _BOUNDED
    ),
    "a critic that sees more": Case(_SEES_MORE, _WITH_STATE, _FREE),
    "shared layers for numbers": Case(_SHARED + _OF_SHARED, SEEN, _FREE),
    "nested observations for numbers": Case(_TEMPLATES, _NESTED, _BOUNDED),
    "memory and masks": Case(_MEMORY + _MASKED + _STATE, _LEGAL, spaces.Discrete(4)),
    "values of choices": Case(_POLICY, SEEN, spaces.Discrete(4)),
    "values of actions": Case(_POLICY + _ACTIONS, SEEN, _BOUNDED),
    "remembered values of choices": Case(_MEMORY, SEEN, spaces.Discrete(4)),
    "remembered values of actions": Case(
        _MEMORY
        + _ACTIONS.replace(
            "    both: {block: concat, in: [observation",
            f"    memory: {_GRU}\n    both: {{block: concat, in: [memory",
        ),
        SEEN,
        _BOUNDED,
    ),
    "a deterministic policy": Case(
        "distributions: [{action: action, distribution: deterministic}]\n" + _POLICY + _ACTIONS,
        SEEN,
        _BOUNDED,
    ),
}
"""What a driver's ``cases`` may name; an adapter enters here what all should be able to do."""


class Forward(NamedTuple):
    """The answer to a batch of observations, each the first of its episode, without exploration.

    ``action`` is the environment's; ``log_prob`` and ``value`` are (B,), None where the host asks for none. ``value``
    is what the host calls so, for algorithms of action values of any shape.
    """

    action: Any
    log_prob: Tensor | None
    value: Tensor | None


class Driver(ABC):
    """An agent of a host with the model of ``case``.

    ``config`` is what the host is given that names or holds the spec; None makes it. A rollout must have at least 24
    steps of each environment, and a sequence in it at least 16, so that they cross episodes.
    """

    cases: ClassVar[Sequence[str]]
    without: ClassVar[Mapping[str, str]] = {}
    """Lines of the contract that make no sense for this algorithm, and why."""

    def __init__(self, case: Case, config: Any = None, learning_rate: float = 0.05) -> None:
        self.case = case
        self.config = self.make_config() if config is None else config
        self.build(learning_rate)

    @abstractmethod
    def make_config(self) -> Any:
        """What the host is given: its settings, which name or hold the spec, with the seed 0."""

    @abstractmethod
    def build(self, learning_rate: float) -> None:
        """Make the agent from ``self.config``, on environments that ``self.case.make_env`` makes."""

    @property
    @abstractmethod
    def model(self) -> Model:
        """The model inside of the agent."""

    @abstractmethod
    def forward(self, observations: Any) -> Forward:
        """What the host's own calls answer to ``observations``, a batch as `Case.observations` gives it."""

    def expected(self, model: Model, observations: Any) -> Forward:
        """The answer of ``model``, composed alone, as the algorithm uses it."""
        keywords = {"state": model.initial_state(BATCH)} if model.has_memory else {}
        with torch.no_grad():
            step = model.step(observations, deterministic=True, **keywords)
        return Forward(model.to_environment(step.action), step.log_prob, step.value)

    @abstractmethod
    def differences(self) -> Tensor:
        """Of a rollout and the first update after it, with the learning rate 0: one number for each step.

        |log-probability at the rollout - log-probability in the update|, where the update learns from the step.
        """

    @abstractmethod
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """All that the host steps."""

    @abstractmethod
    def train(self) -> None:
        """Train for a few rollouts, in the host's own way."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """The host's own checkpoint, in ``folder``, which exists and is empty."""

    @classmethod
    @abstractmethod
    def rebuilt(cls, case: Case, folder: Path) -> Self:
        """The agent from what `save` wrote, as a user of the host loads it; `forward` is asked."""


class TrainerContract:
    """The lines of the contract; pytest runs them for each of the driver's ``cases``."""

    driver: ClassVar[type[Driver]]

    def __init_subclass__(cls) -> None:
        for line, reason in cls.driver.without.items():
            assert line in LINES
            assert reason
            setattr(cls, f"test_{line}", None)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.driver.cases)

    def test_the_weights_are_as_composed(self, name: str) -> None:
        case = CASES[name]
        assert_same_weights(self.driver(case).model, case.model())

    def test_the_first_forward_is_the_models(self, name: str) -> None:
        driver, case = self.driver(CASES[name]), CASES[name]
        observations = case.observations()
        assert_same_answers(
            driver.forward(observations), driver.expected(case.model(), observations)
        )

    def test_the_ratio_of_the_first_update_is_1(self, name: str) -> None:
        driver = self.driver(CASES[name], learning_rate=0.0)
        differences = driver.differences()
        assert differences.numel() >= 24
        assert float(differences.max()) < MOST
        assert_same_weights(driver.model, CASES[name].model())

    def test_every_parameter_is_once_in_the_optimizers(self, name: str) -> None:
        driver = self.driver(CASES[name])
        stepped = [
            id(parameter)
            for optimizer in driver.optimizers()
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        counts = {
            name: stepped.count(id(parameter))
            for name, parameter in driver.model.named_parameters()
            if parameter.requires_grad
        }
        assert counts == dict.fromkeys(counts, 1)

    def test_gradients_reach_every_parameter_that_is_not_frozen(self, name: str) -> None:
        before = dict(CASES[name].model().named_parameters())
        after = dict(trained(self.driver, name).model.named_parameters())
        learning = {n for n, parameter in before.items() if parameter.requires_grad}
        targets = {n for n in before if n.startswith("critic.target.")}  # they follow
        moved = {n for n, old in before.items() if not torch.equal(old, after[n])}
        assert moved - targets == learning
        assert all(bool(value.isfinite().all()) for value in after.values())

    def test_what_is_saved_is_what_was_trained(self, name: str, tmp_path: Path) -> None:
        driver, observations = trained(self.driver, name), CASES[name].observations()
        driver.model.save(tmp_path / "model.safetensors")
        loaded = composer.load(tmp_path / "model.safetensors")
        assert_same_weights(loaded, driver.model)
        answers = driver.expected(loaded.eval(), observations)
        assert_same_answers(driver.forward(observations), answers)

    def test_a_checkpoint_of_the_host_is_rebuilt_in_a_fresh_process(self, name: str) -> None:
        module = type(self).__module__
        contracts = [c for c in TrainerContract.__subclasses__() if c.__module__ == module]
        answers = answers_of_a_fresh_process(*{c.driver for c in contracts})
        expected = trained(self.driver, name).forward(CASES[name].observations())
        answer = Forward(*answers[self.driver.__qualname__, name])
        assert_same_answers(answer, expected, atol=1e-6)

    def test_the_config_of_the_host_survives_copies(self, name: str) -> None:
        case = CASES[name]
        config = self.driver(case).config
        for copied in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
            assert_same_weights(self.driver(case, copied).model, case.model())


@cache
def trained(driver: type[Driver], name: str) -> Driver:
    """An agent that has learned, once for all that looks at it."""
    agent = driver(CASES[name])
    agent.train()
    return agent


@cache
def answers_of_a_fresh_process(*drivers: type[Driver]) -> dict[tuple[str, str], tuple]:
    """By driver and case, the answer of the agent that is rebuilt from its host's checkpoint; one process for all."""
    with TemporaryDirectory() as folder:
        jobs = []
        for driver in drivers:
            for name in driver.cases:
                saved = Path(folder) / str(len(jobs))
                saved.mkdir()
                trained(driver, name).save(saved)
                jobs.append([driver.__module__, driver.__qualname__, name, str(saved)])
        written = Path(folder) / "answers"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __name__, json.dumps(jobs), str(written)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return pickle.loads(written.read_bytes())  # of our own process


def assert_same_weights(model: Model, other: Model) -> None:
    assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def assert_same_answers(answer: Forward, expected: Forward, atol: float = 0.0) -> None:
    """What the host asks for is equal, but for ``atol``."""
    given, wanted = _arrays(answer.action), _arrays(expected.action)
    assert given.keys() == wanted.keys()
    for key, value in wanted.items():
        assert_close(given[key], value, rtol=0, atol=atol)
    assert answer.log_prob is not None or answer.value is not None
    for name in ("log_prob", "value"):
        number = getattr(answer, name)
        if number is not None:
            assert_close(number.detach(), getattr(expected, name).detach(), rtol=0, atol=atol)


def _arrays(action: Any, path: str = "") -> dict[str, np.ndarray]:
    """The arrays of a (nested) action by path, choices as int64 and numbers as float32."""
    if isinstance(action, (dict, tuple)):
        parts = action.items() if isinstance(action, dict) else enumerate(action)
        return {k: v for name, part in parts for k, v in _arrays(part, f"{path}/{name}").items()}
    array = np.asarray(action)
    return {path: array.astype(np.int64 if array.dtype.kind in "iub" else np.float32)}


def main(jobs: str, written: str) -> None:
    """In the fresh process: the answers of the agents that drivers rebuild from folders, in the file ``written``."""
    answers = {}
    for module, driver, name, folder in json.loads(jobs):
        cls = getattr(importlib.import_module(module), driver)
        answer = cls.rebuilt(CASES[name], Path(folder)).forward(CASES[name].observations())
        numbers = (each if each is None else each.detach() for each in answer[1:])
        answers[driver, name] = (answer.action, *numbers)
    Path(written).write_bytes(pickle.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
