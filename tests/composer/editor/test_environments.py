"""Environments are made in a process of their own, once each."""

import sys
import time

import pytest
from gymnasium.spaces import Box, Discrete

from composer.editor.environments import SpaceKeeper, SpacesUnknownError
from composer.errors import Position, SpecError
from composer.spaces.lookup import made_spaces
from composer.trust import allow_beside

PLACE = Position("agent.yaml", 2, 14)
MODULE = """
import gymnasium
from gymnasium.spaces import Box, Discrete

print("it says much")

class Loud(gymnasium.Env):
    observation_space, action_space = Box(-1, 1, (3,)), Discrete(2)
    def __init__(self): print("and more")
    def close(self): print("and ends")

gymnasium.register("Loud-v0", Loud)
"""


def test_an_environment_that_prints_is_made_elsewhere_once(tmp_path, monkeypatch):
    (tmp_path / "loud_envs.py").write_text(MODULE)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    allow_beside([str(tmp_path)], ["loud_envs"])
    keeper = SpaceKeeper()
    made = keeper.of_environment("loud_envs:Loud-v0", ["loud_envs"], (), None)
    assert made.spaces == (Box(-1, 1, (3,)), Discrete(2))
    assert "loud_envs" not in sys.modules
    start = time.perf_counter()
    assert keeper.of_environment("loud_envs:Loud-v0", ["loud_envs"], (), None) is made
    assert time.perf_counter() - start < 0.1


@pytest.mark.full
def test_an_environment_that_cannot_be_made_is_a_problem_at_its_place():
    keeper = SpaceKeeper()
    with pytest.raises(SpecError) as caught:
        keeper.of_environment("CartPoel-v1", (), ("environment",), PLACE)
    with pytest.raises(SpecError) as directly:
        made_spaces("CartPoel-v1", ("environment",))
    (problem,) = caught.value.problems
    assert problem.message == directly.value.problems[0].message
    assert (problem.path, problem.position) == (("environment",), PLACE)


def test_an_environment_that_takes_too_long_is_ended():
    keeper = SpaceKeeper(time_limit=0.05)
    message = r"^the environment 'CartPole-v1' was not made within 0\.05 seconds$"
    for _ in range(2):
        with pytest.raises(SpacesUnknownError, match=message):
            keeper.of_environment("CartPole-v1", (), (), None)


@pytest.mark.full
def test_a_process_that_ends_without_an_answer(tmp_path, monkeypatch):
    (tmp_path / "ending_envs.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"^the process that makes 'ending_envs:A-v0' ended with status 3$"
    with pytest.raises(SpacesUnknownError, match=message):
        SpaceKeeper().of_environment("ending_envs:A-v0", ["ending_envs"], (), None)
