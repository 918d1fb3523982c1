"""Training by each library with a composed policy, against the library's own policy of the same network.

Both have the library's default network and settings and train in turns in one process, which has no other library: the
median processor seconds of a rollout with its update, of 15 pairs. A trainer is entered in ``PAIRS``; ``--only TEXT``
measures those whose workload contains it.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from harness import Row, main, seconds

ROUNDS = 15
TOLERANCE = 0.02  # of a ratio, between two runs of the same
Train = Callable[[], object]
"""Trains on, by one rollout and its update."""


@dataclass(frozen=True)
class Pair:
    """Two ways to train one network with the same settings; each is made when its turn comes."""

    workload: str
    baseline: str
    ours: Callable[[], Train]
    theirs: Callable[[], Train]
    at_most: float | None = 1.0


def measured(pair: Pair) -> Row:
    trains = [make() for make in (pair.ours, pair.theirs)]
    times: list[list[float]] = [[], []]
    for train in trains:
        train()
    for _ in range(ROUNDS):
        for train, spent in zip(trains, times, strict=True):
            spent.append(seconds(train, clock=time.process_time))
    ours, theirs = map(statistics.median, times)
    at_most = None if pair.at_most is None else pair.at_most + TOLERANCE
    return Row(pair.workload, ours, pair.baseline, theirs, at_most)


# --- Stable-Baselines3 and sb3-contrib ---

PPO_SPEC = """
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [64, 64], activation: tanh}
  heads: {in: latent}
critic:
  graph:
    latent: {block: dense, in: observation, hidden_units: [64, 64], activation: tanh}
"""
SAC_SPEC = """
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [256, 256]}
  heads: {in: latent}
critic:
  kind: state_action
  ensemble: 2
  graph:
    both: {block: concat, in: [observation, action/action]}
    latent: {block: dense, in: both, hidden_units: [256, 256]}
"""
MEMORY = "{block: lstm, in: observation, hidden_units: 256}"
RECURRENT_SPEC = f"""
policy:
  graph:
    memory: {MEMORY}
    latent: {{block: dense, in: memory, hidden_units: [64, 64], activation: tanh}}
  heads: {{in: latent}}
critic:
  graph:
    memory: {MEMORY}
    latent: {{block: dense, in: memory, hidden_units: [64, 64], activation: tanh}}
"""


def sb3_pair(
    algorithm: str, env_id: str, spec: str, policy: str, network: dict[str, Any], steps: int,
    at_most: float, **settings: Any,
) -> Pair:  # fmt: skip
    """``steps`` of ``algorithm`` with ``settings``; the host's ``policy`` has the layers of ``network``."""

    def algorithm_class() -> Any:
        import sb3_contrib
        import stable_baselines3

        return getattr(stable_baselines3, algorithm, None) or getattr(sb3_contrib, algorithm)

    def ours() -> Train:
        from composer.adapters import sb3

        return trained(sb3.agent(algorithm_class(), f"version: 1{spec}", env_id, **shared))

    def theirs() -> Train:
        return trained(algorithm_class()(policy, env_id, policy_kwargs=network, **shared))

    def trained(agent: Any) -> Train:
        agent.learn(settings.get("learning_starts", 0))
        return lambda: agent.learn(steps, reset_num_timesteps=False)

    shared: dict[str, Any] = {"seed": 0, "device": "cpu", **settings}
    workload = f"{algorithm} of {'sb3-contrib' if 'Recurrent' in algorithm else 'SB3'}, {env_id}"
    return Pair(workload, f"its {policy}", ours, theirs, at_most)


# --- rsl_rl and skrl ---

GAUSSIAN = "distributions: [{action: action, distribution: gaussian, log_std: learned}]"
ELU_SPEC = PPO_SPEC.replace("tanh", "elu") + GAUSSIAN
LSTM = "{block: lstm, in: observation, hidden_units: 64}"
LSTM_SPEC = (
    RECURRENT_SPEC.replace(MEMORY, LSTM).replace("[64, 64]", "[64]").replace("tanh", "elu")
    + GAUSSIAN
)


def rsl_rl_pair(spec: str, **network: Any) -> Pair:
    """24 steps of 16 environments with rsl_rl's PPO; the host's model has the ``network``."""

    def runner(actor: dict[str, Any], critic: dict[str, Any]) -> Train:
        from rsl_rl.runners import OnPolicyRunner

        from composer.adapters.rsl_rl import vector_env

        config = {
            "num_steps_per_env": 24,
            "save_interval": 1,
            "obs_groups": {"actor": ["observation"], "critic": ["observation"]},
            "algorithm": {"class_name": "PPO", "schedule": "adaptive"},
            "actor": actor,
            "critic": critic,
        }
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            trained = OnPolicyRunner(vector_env("Pendulum-v1", 16, seed=0), config)
        return lambda: trained.learn(1)

    def ours() -> Train:
        classes = [f"composer.adapters.rsl_rl:{name}" for name in ("Actor", "Critic")]
        given = {"spec": f"version: 1{spec}", "seed": 0}
        return runner({"class_name": classes[0], **given}, {"class_name": classes[1]})

    def theirs() -> Train:
        network["hidden_dims"] = [64] if recurrent else [64, 64]
        name = "RNNModel" if recurrent else "MLPModel"
        critic = {"class_name": name, **network}
        return runner(
            {**critic, "distribution_cfg": {"class_name": "GaussianDistribution"}}, critic
        )

    recurrent = "rnn_type" in network
    memory = ", memory" if recurrent else ""
    return Pair(f"PPO of rsl_rl{memory}", "its models", ours, theirs)


def skrl_pair(algorithm: str, spec: str, **settings: Any) -> Pair:
    """A rollout of 8 environments with skrl's ``algorithm``; the host's networks are those of its instantiators."""

    def environments() -> Any:
        import gymnasium
        from skrl import logger
        from skrl.envs.wrappers.torch import wrap_env

        logger.setLevel("ERROR")
        mode = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
        vector = gymnasium.make_vec("CartPole-v1", 8, vectorization_mode="sync", vector_kwargs=mode)
        return wrap_env(vector, wrapper="gymnasium", verbose=False)

    def algorithm_class() -> Any:
        from skrl.agents.torch import a2c, ppo

        return getattr(ppo if algorithm == "PPO" else a2c, algorithm)

    def ours() -> Train:
        from composer.adapters import skrl

        env = environments()
        return trained(
            env, skrl.agent(algorithm_class(), f"version: 1{spec}", env, seed=0, cfg=cfg)
        )

    def theirs() -> Train:
        from skrl.memories.torch import RandomMemory
        from skrl.utils.model_instantiators.torch import categorical_model, deterministic_model

        env = environments()
        net = {"name": "net", "input": "OBSERVATIONS", "layers": [64, 64], "activations": "tanh"}
        given = {"observation_space": env.observation_space, "action_space": env.action_space}
        models: dict[str, Any] = {
            "policy": categorical_model(**given, device="cpu", network=[net], output="ACTIONS"),
            "value": deterministic_model(**given, device="cpu", network=[net], output="ONE"),
        }
        for role, model in models.items():
            model.init_state_dict(role=role)
        memory = RandomMemory(memory_size=settings["rollouts"], num_envs=8, device="cpu")
        return trained(
            env, algorithm_class()(models=models, memory=memory, cfg=cfg, device="cpu", **given)
        )

    def trained(env: Any, agent: Any) -> Train:
        from skrl.trainers.torch import SequentialTrainer

        quiet = {"headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
        trainer_cfg = {"timesteps": settings["rollouts"], **quiet}
        return SequentialTrainer(cfg=trainer_cfg, env=env, agents=agent).train

    cfg = {**settings, "experiment": {"write_interval": 0, "checkpoint_interval": 0}}
    return Pair(f"{algorithm} of skrl, CartPole-v1", "its models", ours, theirs)


# --- rl_games and Tianshou ---


def rl_games_pair() -> Pair:
    """64 steps of 8 environments with rl_games' a2c_discrete; the host's network has the layers of the spec."""

    def agent(model: dict[str, Any], network: dict[str, Any]) -> Train:
        import tempfile

        from rl_games.torch_runner import Runner

        from composer.adapters.rl_games import register

        register()
        config = {
            "name": "run", "env_name": "composer", "env_config": {"id": "CartPole-v1"},
            "num_actors": 8, "horizon_length": 64, "minibatch_size": 128, "mini_epochs": 4,
            "max_epochs": -1, "learning_rate": 3e-4, "lr_schedule": None, "gamma": 0.99,
            "tau": 0.95, "e_clip": 0.2, "clip_value": False, "critic_coef": 1.0,
            "entropy_coef": 0.0, "grad_norm": 0.5, "truncate_grads": True,
            "normalize_advantage": True, "normalize_input": False, "reward_shaper": {},
            "device": "cpu", "device_name": "cpu", "print_stats": False,
            "train_dir": tempfile.mkdtemp(),
        }  # fmt: skip
        params = {
            "seed": 3, "torch_threads": 0, "algo": {"name": "a2c_discrete"},
            "model": model, "network": network, "config": config,
        }  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            runner = Runner()
            runner.load({"params": params})
            made = runner.algo_factory.create("a2c_discrete", base_name="run", params=runner.params)
        made.init_tensors()
        made.obs = made.env_reset()

        def train() -> None:
            made.update_epoch()
            made.train_epoch()
            made.dataset.update_values_dict(None)

        return train

    def ours() -> Train:
        return agent({"name": "composer"}, {"name": "composer", "spec": f"version: 1{PPO_SPEC}"})

    def theirs() -> Train:
        mlp = {"units": [64, 64], "activation": "tanh", "initializer": {"name": "default"}}
        network = {"name": "actor_critic", "separate": True, "space": {"discrete": {}}, "mlp": mlp}
        return agent({"name": "discrete_a2c"}, network)

    return Pair("PPO of rl_games, CartPole-v1", "its network", ours, theirs)


def tianshou_pair() -> Pair:
    """128 steps of 4 environments with Tianshou's PPO; the host's actor and critic have the layers of the spec."""

    def ours() -> Train:
        from composer.adapters import tianshou

        policy = tianshou.policy(f"version: 1{PPO_SPEC}", "CartPole-v1", seed=0)
        return trained(policy, tianshou.critic(policy))

    def theirs() -> Train:
        import gymnasium
        from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
        from tianshou.utils.net.common import Net
        from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

        actor, critic = (
            Net(state_shape=(4,), hidden_sizes=[64, 64], activation=torch.nn.Tanh) for _ in range(2)
        )
        policy = DiscreteActorPolicy(
            actor=DiscreteActor(preprocess_net=actor, action_shape=2, softmax_output=False),
            dist_fn=lambda logits: torch.distributions.Categorical(logits=logits),
            action_space=gymnasium.make("CartPole-v1").action_space,
        )
        return trained(policy, DiscreteCritic(preprocess_net=critic))

    def trained(policy: Any, critic: Any) -> Train:
        import gymnasium
        from tianshou.algorithm.modelfree.ppo import PPO
        from tianshou.algorithm.optim import AdamOptimizerFactory
        from tianshou.data import Collector, CollectStats, VectorReplayBuffer
        from tianshou.env import DummyVectorEnv
        from tianshou.utils.torch_utils import policy_within_training_step

        algorithm = PPO(policy=policy, critic=critic, optim=AdamOptimizerFactory(lr=3e-4))
        envs = DummyVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 4)
        collector = Collector[CollectStats](algorithm, envs, VectorReplayBuffer(512, 4))
        collector.reset()

        def train() -> None:
            with policy_within_training_step(policy):
                collector.collect(n_step=512)
                algorithm.update(collector.buffer, 64, 4)
            collector.reset_buffer(keep_statistics=True)

        return train

    return Pair("PPO of Tianshou, CartPole-v1", "its networks", ours, theirs)


# --- TorchRL ---


def torchrl_ppo(make_modules: Callable[[Any], tuple[Any, Any, Any]]) -> Train:
    """PPO of TorchRL on CartPole by what ``make_modules`` makes for it: to collect with, the actor and the critic."""
    import gymnasium
    from torchrl.collectors import Collector
    from torchrl.envs import GymWrapper
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    torch.manual_seed(0)
    env = GymWrapper(gymnasium.make("CartPole-v1"), categorical_action_encoding=True)
    env.set_seed(0)
    collecting, actor, critic = make_modules(env)
    advantages = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(actor, critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4)
    batches = iter(Collector(env, collecting, frames_per_batch=512, total_frames=-1))

    def train() -> None:
        steps = next(batches)
        advantages(steps)
        for _ in range(10):
            for rows in torch.randperm(len(steps)).split(64):
                losses = loss(steps[rows])
                optimizer.zero_grad()
                total: Any = sum(v for name, v in losses.items() if name.startswith("loss_"))
                total.backward()
                optimizer.step()

    return train


def torchrl_ours(env: Any) -> tuple[Any, Any, Any]:
    from torchrl.objectives import ClipPPOLoss

    import composer
    from composer.adapters.torchrl import to_torchrl

    model = composer.compose(f"version: 1{PPO_SPEC}", env="CartPole-v1", seed=0)
    modules = to_torchrl(model, env, loss=ClipPPOLoss)
    return modules.collecting, modules.actor_training, modules.critic_training


def torchrl_theirs(env: Any) -> tuple[Any, Any, Any]:
    from tensordict.nn import TensorDictModule
    from torch.distributions import Categorical
    from torchrl.modules import MLP, ProbabilisticActor, ValueOperator

    logits, values = (MLP(in_features=4, out_features=n, num_cells=[64, 64]) for n in (2, 1))
    actor = ProbabilisticActor(
        TensorDictModule(logits, ["observation"], ["logits"]),
        in_keys=["logits"], spec=env.action_spec, distribution_class=Categorical,
        return_log_prob=True,
    )  # fmt: skip
    return actor, actor, ValueOperator(values, in_keys=["observation"])


PAIRS = [
    rsl_rl_pair(ELU_SPEC),
    rsl_rl_pair(LSTM_SPEC, rnn_type="lstm", rnn_hidden_dim=64),
    skrl_pair("PPO", PPO_SPEC, rollouts=64, mini_batches=4, learning_epochs=8),
    skrl_pair("A2C", PPO_SPEC, rollouts=64, mini_batches=4),
    rl_games_pair(),
    tianshou_pair(),
    sb3_pair(
        "PPO", "CartPole-v1", PPO_SPEC, "MlpPolicy", {"net_arch": [64, 64]}, 512, 1.00,
        n_steps=512, batch_size=64, n_epochs=10,
    ),
    sb3_pair(
        "SAC", "Pendulum-v1", SAC_SPEC, "MlpPolicy", {"net_arch": [256, 256]}, 100, 1.00,
        learning_starts=300, batch_size=256,
    ),
    sb3_pair(
        "RecurrentPPO", "CartPole-v1", RECURRENT_SPEC, "MlpLstmPolicy", {}, 128, 0.30,
        n_steps=128, batch_size=128, n_epochs=10,
    ),
    Pair(
        "PPO of TorchRL, CartPole-v1", "its modules",
        lambda: torchrl_ppo(torchrl_ours), lambda: torchrl_ppo(torchrl_theirs),
    ),
]  # fmt: skip


def measured_alone(index: int) -> Row:
    """A pair, in a process that has imported nothing else."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the libraries themselves
    return measured(PAIRS[index])


def rows() -> Iterator[Row]:
    wanted = os.environ.get("ONLY", "")
    chosen = [index for index, pair in enumerate(PAIRS) if wanted in pair.workload]
    # Libraries change one another: skrl turns off the checks of torch.distributions, of SB3's networks too.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        yield from pool.map(measured_alone, chosen)


if __name__ == "__main__":
    if "--only" in sys.argv:
        at = sys.argv.index("--only")
        _, os.environ["ONLY"] = sys.argv[at : at + 2]
        del sys.argv[at : at + 2]
    main(
        "Training",
        rows,
        peers=["stable-baselines3", "sb3-contrib", "rsl-rl-lib", "skrl", "rl-games", "tianshou"],
    )
