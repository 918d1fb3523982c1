"""The contract of all trainers, for PPO of rl_games: choices and numbers, with and without memory."""

import atexit
import contextlib
import io
import shutil
import tempfile
from functools import cache

import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from composer.adapters.rl_games.environments import HostedEnv, as_tensors
from composer.adapters.rl_games.hosted import HostedActions
from tests.helpers.rl_games_agents import agent, config, player
from tests.helpers.trainer_contract import BATCH, Driver, Forward, TrainerContract

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*numpy.core is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


@cache
def folder():
    """Where rl_games writes; drivers outlive the tests that made them."""
    made = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


class RlGamesDriver(Driver):
    """An agent that the Runner makes of a config with the text of the spec."""

    cases = (
        "choices", "several choices", "numbers", "bounded numbers", "shared layers", "masks",
        "nested observations", "frozen layers", "memory", "memory of the policy",
        "memory of the critic", "shared memory", "memory and masks",
    )  # fmt: skip

    def make_config(self):
        is_box = isinstance(self.case.action_space, spaces.Box)
        return config(
            self.case.spec,
            algorithm="a2c_continuous" if is_box else "a2c_discrete",
            env_config={"make": self.case.make_env},
            num_actors=2, minibatch_size=32, seq_length=16, max_epochs=3,
        )  # fmt: skip

    def build(self, learning_rate):
        settings = self.config["params"]["config"]
        settings |= {"learning_rate": learning_rate, "train_dir": folder()}
        self.agent = agent(self.config)
        for name, parameter in self.model.named_parameters():
            if any(part in name for part in self.case.frozen):
                parameter.requires_grad_(False)

    @property
    def model(self):
        return self.agent.model.composed

    def forward(self, observations):
        env = HostedEnv(self.case.make_env())
        rows = [env._observed(row_of(observations, index))["obs"] for index in range(BATCH)]
        space = env.observation_space["obs"]
        seen = as_tensors(concatenate(space, rows, create_empty_array(space, BATCH)), "cpu")
        acts = player(self.config)
        acts.model.load_state_dict(self.agent.model.state_dict())
        acts.has_batch_dimension, acts.batch_size = True, BATCH
        acts.reset()
        taken = acts.get_action(seen, is_deterministic=True)
        drawn = HostedActions(self.model.policy.action_tree).from_host(taken, (BATCH,))
        given = {"is_train": False, "obs": acts._preproc_obs(seen)}
        if self.model.has_memory:
            given["rnn_states"] = [torch.zeros(1, BATCH, self.model.state_width)]
        with torch.no_grad():
            values = self.agent.model(given)["values"]
            log_prob = None
            if not self.model.has_memory:  # else it is of sequences
                judged = self.agent.model({**given, "is_train": True, "prev_actions": taken})
                log_prob = -judged["prev_neglogp"]
        return Forward(self.model.to_environment(drawn), log_prob, values.squeeze(-1))

    def differences(self):
        """Recorded where the agent's loss compares the two."""
        seen, loss = [], self.agent.actor_loss_func

        def spied(old, new, *rest):
            seen.append((old - new).detach().abs())
            return loss(old, new, *rest)

        self.agent.actor_loss_func = spied
        self.train()
        return torch.cat(seen)

    def optimizers(self):
        return [self.agent.optimizer]

    def train(self):
        with contextlib.redirect_stdout(io.StringIO()):
            self.agent.train()

    def save(self, folder):
        with contextlib.redirect_stdout(io.StringIO()):
            self.agent.save(str(folder / "agent"))

    @classmethod
    def rebuilt(cls, case, folder):
        driver = cls(case)
        with contextlib.redirect_stdout(io.StringIO()):
            driver.agent.restore(str(folder / "agent.pth"))
        return driver


def row_of(observations, index):
    if isinstance(observations, dict):
        return {key: row_of(part, index) for key, part in observations.items()}
    return observations[index]


class TestRlGames(TrainerContract):
    driver = RlGamesDriver
