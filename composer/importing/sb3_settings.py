"""What the ``policy_kwargs`` of a Stable-Baselines3 policy say, with the defaults of its algorithm."""

from __future__ import annotations

from typing import TypeGuard

from composer.importing.nodes import LOG_STD_RANGE
from composer.importing.sb3_policies import ACTIVATIONS, ALGORITHMS, EXTRACTORS, Agent, last_name
from composer.importing.taken import MOST, MOST_LAYERS, Taken
from perception_blocks.words import describe, hint

__all__ = ["Sb3Settings"]


class Sb3Settings:
    """The settings of an ``agent`` with these ``kwargs``."""

    def __init__(self, agent: Agent, kwargs: Taken) -> None:
        self.agent, self.kwargs = agent, kwargs
        self.algorithm = ALGORITHMS[agent.algorithm]
        self.extractor = self._extractor()
        self.activation = self._activation()
        self.use_sde = kwargs.flag("use_sde", False) or agent.use_sde
        if agent.action not in (None, "Box"):
            self.use_sde = False
        self.init_log_std = kwargs.number(
            "log_std_init", -3.0 if self.algorithm.actor == "sac" else 0.0, *LOG_STD_RANGE
        )
        self.shared, self.policy_units, self.critic_units = self._units()
        is_actor_critic = self.algorithm.actor == "actor_critic"
        self.shares = kwargs.flag("share_features_extractor", is_actor_critic)
        self.is_orthogonal = is_actor_critic and kwargs.flag("ortho_init", True)
        self.scales = kwargs.flag("normalize_images", True)

    def units_of_images(self) -> int:
        """How many features an image has; 0 where it is flattened."""
        sizes = {"NatureCNN": ("features_dim", 512), "CombinedExtractor": ("cnn_output_dim", 256)}
        if self.extractor not in sizes:
            return 0
        key, units = sizes[self.extractor]
        if self.kwargs.has("features_extractor_kwargs"):
            given = self.kwargs.below("features_extractor_kwargs")
            units = given.whole(key, units)
            given.ask("normalized_image")
        return units

    def number_of_features(self) -> int | None:
        """How many numbers a features extractor gives; None where the file does not say it."""
        images = self.units_of_images()
        if self.extractor == "NatureCNN":
            return images
        seen = self.agent.seen or []
        is_combined = self.extractor == "CombinedExtractor"
        sizes = [images if each.form == "image" and is_combined else each.size for each in seen]
        return sum(size or 0 for size in sizes) if seen and all(sizes) else None

    def number_of_latents(self) -> int | None:
        """How many numbers the policy's head reads."""
        units = self.policy_units or self.shared
        if units:
            return units[-1]
        if self.agent.algorithm == "ppo_lstm":
            return self.kwargs.whole("lstm_hidden_size", 256)
        return self.number_of_features()

    def quantiles(self) -> int:
        return self.kwargs.layers("n_quantiles", self.agent.quantiles or self.algorithm.quantiles)

    def clips_mean(self) -> bool:
        return self.kwargs.number("clip_mean", 2.0) > 0

    def _extractor(self) -> str:
        if not self.kwargs.has("features_extractor_class"):
            return self.agent.extractor
        name = last_name(self.kwargs["features_extractor_class"])
        known = sorted(set(EXTRACTORS.values()))
        if name not in known:
            reason = (
                f"{name!r} is a class of your own, whose layers are not read{hint(name, known)}"
            )
            self.kwargs.refuse("features_extractor_class", reason)
            return self.agent.extractor
        return name

    def _activation(self) -> str:
        if not self.kwargs.has("activation_fn"):
            return ACTIVATIONS[self.algorithm.activation]
        name = last_name(self.kwargs["activation_fn"])
        if name not in ACTIVATIONS:
            reason = f"there is no activation {name!r}{hint(name, ACTIVATIONS)}"
            self.kwargs.refuse("activation_fn", reason)
        return ACTIVATIONS.get(name, "identity")

    def _units(self) -> tuple[list[int], list[int], list[int]]:
        """The sizes of the layers that both share, of the policy, and of the critic."""
        if not self.kwargs.has("net_arch"):
            defaults = self.algorithm
            is_cnn = self.extractor == "NatureCNN"
            units = [*(defaults.units_of_images if is_cnn else defaults.units)]
            return [], units, [*(defaults.critic_units or units)]
        given = self.kwargs["net_arch"]
        critic = "vf" if self.algorithm.actor == "actor_critic" else "qf"
        if isinstance(given, Taken):
            return [], given.wholes("pi", []), given.wholes(critic, [])
        if isinstance(given, list) and given and isinstance(given[-1], Taken):
            last = given[-1]
            return (
                self._wholes(given[:-1]),
                last.wholes("pi", []),
                last.wholes(critic, []),
            )
        units = self._wholes(given)
        return (units, [], []) if self.agent.shares_first else ([], units, units)

    def _wholes(self, value: object) -> list[int]:
        if not _are_sizes(value):
            critic = "vf" if self.algorithm.actor == "actor_critic" else "qf"
            reason = (
                f"must be a list of sizes, or {{pi: [...], {critic}: [...]}}, got {describe(value)}"
            )
            self.kwargs.refuse("net_arch", reason)
            return []
        return value


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > MOST_LAYERS:
        return False
    return all(type(size) is int and 0 < size <= MOST for size in value)
