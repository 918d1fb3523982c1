"""The networks of Stable-Baselines3 and sb3-contrib: ``policy_kwargs`` as a spec."""

from __future__ import annotations

import re
from typing import Any, TypeGuard

from composer.importing.imported import Imported
from composer.importing.nodes import ACTION, OBSERVATION, Nodes
from composer.importing.sb3_policies import ACTIVATIONS, ALGORITHMS, EXTRACTORS, Agent, last_name
from composer.importing.taken import MOST_LAYERS, Taken
from perception_blocks.words import describe, hint

__all__ = ["fill_in"]

_SQRT_2 = 1.414214
_FEATURES = "features"  # the node that an extractor ends with
_HEAD = f"policy.heads.{ACTION}.linear"
_LOG_STD = f"policy.distributions.{ACTION}.log_std"


def fill_in(out: Imported, agent: Agent, kwargs: Taken) -> None:
    """Add the spec of an ``agent`` with these ``kwargs``, the names of its weights, and what differs."""
    _Reader(out, agent, kwargs).read()


class _Reader:
    def __init__(self, out: Imported, agent: Agent, kwargs: Taken) -> None:
        self.out, self.agent, self.kwargs = out, agent, kwargs
        self.algorithm = ALGORITHMS[agent.algorithm]
        self.extractor = self._extractor()
        self.activation = self._activation()
        self.use_sde = kwargs.flag("use_sde", False) or agent.use_sde
        if agent.action not in (None, "Box"):
            self.use_sde = False
        self.init_log_std = kwargs.number(
            "log_std_init", -3.0 if self.algorithm.actor == "sac" else 0.0
        )
        self.shared, self.policy_units, self.critic_units = self._units()
        is_actor_critic = self.algorithm.actor == "actor_critic"
        self.shares = kwargs.flag("share_features_extractor", is_actor_critic)
        self.is_orthogonal = is_actor_critic and kwargs.flag("ortho_init", True)
        self.scales = kwargs.flag("normalize_images", True)

    def read(self) -> None:
        if self.extractor == "CombinedExtractor" and self.agent.seen is None:
            self._templates()
        else:
            getattr(self, f"_{self.algorithm.actor}")()
        self._distribution()
        for key in ("full_std", "use_expln", "squash_output", "clip_mean", "log_std_init"):
            self.kwargs.ask(key)  # they say nothing without use_sde
        if self.agent.algorithm == "ppo_mask":
            self.out.note(
                "action_masks() of the environment: name the observation that holds the mask under 'action_mask:'"
            )

    # --- what the kwargs say --------------------------------------------------------------------------------------

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
            return [], units, units
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

    # --- the body -------------------------------------------------------------------------------------------------

    def _nodes(self, part: str) -> Nodes:
        return Nodes(self.out, part, observations=[seen.key for seen in self.agent.seen or ()])

    def _features(self, nodes: Nodes, there: str) -> bool:
        """Append what the features extractor called ``there`` does; whether it has weights."""
        units = self._units_of_images()
        if self.extractor == "NatureCNN":
            self._cnn(nodes, "image", _FEATURES, OBSERVATION, there, units)
            return True
        if self.agent.seen is None:
            return False
        return self._known(nodes, there, units)

    def _units_of_images(self) -> int:
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

    def _known(self, nodes: Nodes, there: str, units: int) -> bool:
        """Append a node for each observation that is not a vector yet, and join them; whether one has weights."""
        vectors, has_weights = [], False
        for seen in self.agent.seen or ():
            name = nodes.last = seen.key
            if seen.form == "categories":
                nodes.add(f"{name}_codes", "one_hot")
            elif seen.form == "image" and self.extractor == "CombinedExtractor":
                inner = f"{there}.extractors.{seen.there}"
                self._cnn(nodes, f"{name}_image", f"{name}_features", seen.key, inner, units)
                has_weights = True
            elif seen.form == "image":
                self._scaled(nodes, f"{name}_image", seen.key)
                nodes.add(f"{name}_features", "flatten")
            elif seen.form == "array":
                nodes.add(f"{name}_features", "flatten")
            vectors.append(nodes.last)
        if len(vectors) > 1:
            nodes.add(_FEATURES, "concat", vectors)
        return has_weights

    def _cnn(self, nodes: Nodes, image: str, name: str, reads: str, there: str, units: int) -> None:
        self._scaled(nodes, image, reads)
        name = nodes.add(name, "nature_cnn_dense", hidden_units=units)
        for index in range(3):
            nodes.weigh(f"{name}.conv.convs.{index}", f"{there}.cnn.{2 * index}")
        nodes.weigh(f"{name}.flatten_dense.dense.linears.0", f"{there}.linear.0")

    def _scaled(self, nodes: Nodes, name: str, reads: str) -> None:
        bounds: dict[str, Any] = {} if self.scales else {"low": 0, "high": 1}  # as it is
        nodes.add(name, "scale_image", reads, **bounds)

    def _latent(self, nodes: Nodes, units: list[int], there: str, name: str = "latent") -> None:
        if units:
            names = [f"{there}.{2 * index}" for index in range(len(units))]
            nodes.dense(name, units, self.activation, names)

    def _memory(self, nodes: Nodes, there: str) -> None:
        layers = self.kwargs.layers("n_lstm_layers", 1)
        units = self.kwargs.whole("lstm_hidden_size", 256)
        init = {"init": "default"} if self.is_orthogonal else {}
        more = {"num_layers": layers} if layers > 1 else {}
        memory = nodes.add("memory", "lstm", hidden_units=units, **more, **init)
        for index in range(layers):
            nodes.weigh(f"{memory}.layers.{index}", f"{there}#{index}")

    # --- policies -------------------------------------------------------------------------------------------------

    def _actor_critic(self) -> None:
        policy, critic = self._nodes("policy"), self._nodes("critic")
        extractors = ("pi_features_extractor", "vf_features_extractor")
        if self.shares:
            extractors = ("features_extractor", "features_extractor")
        has_weights = self._features(policy, extractors[0])
        shares = [policy.last] if has_weights and self.shares else []
        if self.shared:
            self._latent(policy, self.shared, "mlp_extractor.shared_net", "shared")
            shares = [policy.last]
        if self.agent.algorithm == "ppo_lstm":
            shares = self._memories(policy, critic, shares, extractors[1])
        elif shares:
            critic.begin_with(shares[0])
        else:
            self._features(critic, extractors[1])
        self._latent(policy, self.policy_units, "mlp_extractor.policy_net")
        self._latent(critic, self.critic_units, "mlp_extractor.value_net")
        self._write("policy", policy, "action_net", 0.01, shares)
        self._write("critic", critic, "value_net", 1.0)

    def _memories(
        self, policy: Nodes, critic: Nodes, shares: list[str], extractor: str
    ) -> list[str]:
        """Append the LSTM of the policy, and what the critic has in its place; what the policy shares."""
        kwargs, features = self.kwargs, policy.last
        if self.shared:
            kwargs.refuse("net_arch", "layers that both share after a memory are not read")
        self._memory(policy, "lstm_actor")
        if kwargs.flag("shared_lstm", False):
            kwargs.ask("enable_critic_lstm")
            critic.begin_with(policy.last)
            critic.add("fixed", "detach")  # its loss does not train the memory
            return [policy.last]
        if shares:
            critic.begin_with(features)
        else:
            self._features(critic, extractor)
        if kwargs.flag("enable_critic_lstm", True):
            self._memory(critic, "lstm_critic")
        else:
            units = [kwargs.whole("lstm_hidden_size", 256)]
            rule = {"init": "default"} if self.is_orthogonal else {}
            critic.dense("features_for_value", units, "identity", ["critic"], **rule)
        return shares

    def _dqn(self) -> None:
        policy = self._nodes("policy")
        self._features(policy, "q_net.features_extractor")
        self._latent(policy, self.policy_units, "q_net.q_net")
        self._write("policy", policy, f"q_net.q_net.{2 * len(self.policy_units)}", None)

    def _sac(self) -> None:
        head = "actor.mu.0" if self.use_sde else "actor.mu+actor.log_std"
        self._off_policy("actor.latent_pi", head)

    def _td3(self) -> None:
        self._off_policy("actor.mu", f"actor.mu.{2 * len(self.policy_units)}")

    def _off_policy(self, layers: str, head: str) -> None:
        policy, critic = self._nodes("policy"), self._nodes("critic")
        has_weights = self._features(policy, "actor.features_extractor")
        shares = [policy.last] if has_weights and self.shares else []
        self._latent(policy, self.policy_units, layers)
        self._write("policy", policy, head, None, shares)
        count = self.kwargs.layers("n_critics", self.algorithm.critics)
        before = len(self.out.weights)
        if shares:
            critic.begin_with(shares[0])
        else:
            self._features(critic, "critic.features_extractor")
            if has_weights and count > 1:
                self.out.note(
                    f"features_extractor: one for the {count} Q functions there; here each has its own"
                )
        critic.add("both", "concat", [critic.last, f"action/{ACTION}"])
        self._latent(critic, self.critic_units, "critic.qf")
        graph = {"kind": "state_action", **({"ensemble": count} if count > 1 else {})}
        self.out.spec["critic"] = {**graph, "graph": critic.graph, "heads": {"in": critic.last}}
        pairs = self.out.weights[before:]
        pairs.append(("critic.heads.q_value.linear", f"critic.qf.{2 * len(self.critic_units)}"))
        self.out.weights[before:] = _of_each(pairs, count)

    def _templates(self) -> None:
        """Write networks that follow from observations that the file does not name."""
        if self.agent.algorithm == "ppo_lstm" or self.shared:
            reason = (
                "its observations are not known here, and a template has no layers after a memory"
            )
            self.kwargs.refuse(None, reason)
        units = self._units_of_images()
        self.out.note(
            f"MultiInputPolicy: a template; an image has 512 features here, and {units} there"
        )
        policy, critic = (self._template(u) for u in (self.policy_units, self.critic_units))
        if self.shares:
            policy["shares"] = [_FEATURES]
        self.out.spec["policy"] = policy
        if self.algorithm.actor == "actor_critic":
            self.out.spec["critic"] = critic
        elif self.algorithm.actor != "dqn":
            count = self.kwargs.layers("n_critics", self.algorithm.critics)
            kind = {"kind": "state_action", **({"ensemble": count} if count > 1 else {})}
            self.out.spec["critic"] = {**kind, **critic}

    def _template(self, units: list[int]) -> dict[str, Any]:
        trunk = {"block": "dense", "hidden_units": units, "activation": self.activation}
        return {"template": {"trunk": trunk if units else None}}

    def _write(
        self,
        part: str,
        nodes: Nodes,
        head: str,
        gain: float | None,
        shares: list[str] | None = None,
    ) -> None:
        is_policy = part == "policy"
        reads = nodes.end() if is_policy or nodes.last == nodes.start else nodes.last
        init: dict[str, Any] = {}
        if self.is_orthogonal:
            body = {"orthogonal": {"gain": _SQRT_2}}
            init = {"init": {"body": body, "heads": {"orthogonal": {"gain": gain}}}}
        spec = {**init, "graph": nodes.graph, "heads": {"in": reads}}
        if shares:
            spec["shares"] = shares
        self.out.spec[part] = spec
        linear = _HEAD if is_policy else "critic.heads.value.linear"
        if not (is_policy and self.use_sde):
            self.out.weights.append((linear, head))

    # --- the distribution -----------------------------------------------------------------------------------------

    def _distribution(self) -> None:
        actor, action = self.algorithm.actor, self.agent.action
        rule: dict[str, Any] = {"space": "box"}
        if actor == "td3":
            rule["distribution"] = "deterministic"
        elif self.use_sde:
            rule |= self._sde()
        elif actor == "actor_critic" and action in (None, "Box"):
            rule |= {"distribution": "gaussian", "log_std": "learned"}
            if self.init_log_std:
                rule["init_log_std"] = self.init_log_std
            self.out.weights.append((_LOG_STD, "log_std"))
        else:
            return
        if action is None and actor == "actor_critic":
            rule["optional"] = True  # the actions may be choices
        self.out.spec["distributions"] = [rule]

    def _sde(self) -> dict[str, Any]:
        kwargs = self.kwargs
        units = self.policy_units or self.shared
        rule: dict[str, Any] = {"distribution": "gsde", "init_log_std": self.init_log_std}
        if units:
            rule["latent_units"] = units[-1]
        if not kwargs.flag("full_std", True):
            rule["full_std"] = False
        if kwargs.flag("use_expln", False):
            rule["use_expln"] = True
        if self.algorithm.actor == "sac":
            rule["learn_features"] = True
            kwargs.number("clip_mean", 2.0)
            self.out.note(
                "clip_mean: the mean is within its bounds there before tanh; here it is not clipped"
            )
        elif not kwargs.flag("squash_output", False):
            self.out.note(
                "squash_output: actions are clipped to the bounds there; here tanh squashes them"
            )
        self.out.note(
            "use_sde: the noise depends on the last layer there; here on features of their own, one linear layer and "
            "tanh after it, so that weights of an agent cannot be taken over"
        )
        return rule


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > MOST_LAYERS:
        return False
    return all(type(size) is int and size > 0 for size in value)


def _of_each(pairs: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """``pairs`` of one Q function for each of ``count``, and for their targets."""
    every = []
    for target, theirs in (("", "critic"), ("target.", "critic_target")):
        for index in range(count):
            member = f"ensemble.{index}." if count > 1 else ""
            for ours, there in pairs:
                there = re.sub(r"^critic\.qf\b", f"critic.qf{index}", there)
                there = re.sub(r"^critic\b", theirs, there)
                ours = ours.removeprefix("critic.")
                every.append((f"critic.{target}{member}{ours}", there))
    return every
