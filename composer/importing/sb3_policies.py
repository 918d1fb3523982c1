"""What is known of the policies of Stable-Baselines3 and sb3-contrib before their settings are read."""

from __future__ import annotations

from dataclasses import dataclass

from composer.importing.sb3_spaces import Seen
from composer.importing.taken import CLASS, Taken

__all__ = ["ACTIVATIONS", "ALGORITHMS", "EXTRACTORS", "Agent", "Algorithm", "last_name"]

EXTRACTORS = {  # of the policies, by the end of their names
    "MlpPolicy": "FlattenExtractor",
    "CnnPolicy": "NatureCNN",
    "MultiInputPolicy": "CombinedExtractor",
    "MlpLstmPolicy": "FlattenExtractor",
    "CnnLstmPolicy": "NatureCNN",
    "MultiInputLstmPolicy": "CombinedExtractor",
}
ACTIVATIONS = {
    "CELU": "celu",
    "ELU": "elu",
    "GELU": "gelu",
    "Hardtanh": "hardtanh",
    "Identity": "identity",
    "LeakyReLU": "leaky_relu",
    "Mish": "mish",
    "PReLU": "prelu",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "SELU": "selu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
}


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm builds without ``policy_kwargs``."""

    actor: str  # what its policy is: actor_critic, dqn, qrdqn, sac or td3
    units: tuple[int, ...]
    units_of_images: tuple[int, ...] = ()  # behind a NatureCNN
    activation: str = "ReLU"
    critics: int = 0  # Q functions
    quantiles: int = 0  # of each
    critic_units: tuple[int, ...] | None = None  # where they differ from those of the policy
    has_norms: bool = False  # before every linear layer


ALGORITHMS = {
    "ppo": Algorithm("actor_critic", (64, 64), activation="Tanh"),
    "a2c": Algorithm("actor_critic", (64, 64), activation="Tanh"),
    "trpo": Algorithm("actor_critic", (64, 64), activation="Tanh"),
    "ppo_lstm": Algorithm("actor_critic", (64, 64), activation="Tanh"),
    "ppo_mask": Algorithm("actor_critic", (64, 64), activation="Tanh"),
    "dqn": Algorithm("dqn", (64, 64)),
    "qrdqn": Algorithm("qrdqn", (64, 64), quantiles=200),
    "sac": Algorithm("sac", (256, 256), (256, 256), critics=2),
    "tqc": Algorithm("sac", (256, 256), (256, 256), critics=2, quantiles=25),
    "crossq": Algorithm(
        "sac", (256, 256), (256, 256), critics=2, critic_units=(1024, 1024), has_norms=True
    ),
    "td3": Algorithm("td3", (400, 300), (256, 256), critics=2),
    "ddpg": Algorithm("td3", (400, 300), (256, 256), critics=1),
}


@dataclass(frozen=True)
class Agent:
    """What is known of an agent beside its ``policy_kwargs``.

    ``seen`` are its observations, None where they are not known; ``action`` is the class of its space of actions.
    ``shares_first`` says that a list as ``net_arch`` means shared layers, as it did before version 1.8. ``quantiles``
    are those that the algorithm was made with, ``actions`` the numbers in a Box of actions.
    """

    algorithm: str
    extractor: str
    use_sde: bool = False
    seen: list[Seen] | None = None
    action: str | None = None
    shares_first: bool = False
    quantiles: int | None = None
    actions: int | None = None


def last_name(value: object) -> str:
    """``ReLU`` of ``nn.ReLU``, and of ``<class 'torch.nn.modules.activation.ReLU'>``."""
    if isinstance(value, Taken) and isinstance(value.get(CLASS), str):
        return str(value[CLASS])
    return str(value).removeprefix("<class '").removesuffix("'>").rpartition(".")[2]
