"""The networks of Stable-Baselines3 and sb3-contrib: ``policy_kwargs`` as a spec."""

from __future__ import annotations

import re
from typing import Any

from composer.importing.imported import Imported
from composer.importing.nodes import ACTION, Nodes
from composer.importing.sb3_layers import FEATURES, Sb3Layers
from composer.importing.sb3_policies import ALGORITHMS, Agent
from composer.importing.sb3_settings import Sb3Settings
from composer.importing.taken import Taken

__all__ = ["NOISE", "Q_VALUES", "fill_in"]

_SQRT_2 = 1.414214
_HEAD = f"policy.heads.{ACTION}.linear"
_LOG_STD = f"policy.distributions.{ACTION}.log_std"
NOISE = "noise_features"  # what a checkpoint of an agent with use_sde has beside its tensors: the identity
Q_VALUES = "q_values"  # and that of a QR-DQN: the means of its quantiles


def fill_in(out: Imported, agent: Agent, kwargs: Taken) -> None:
    """Add the spec of an ``agent`` with these ``kwargs``, the names of its weights, and what differs."""
    _Reader(out, agent, kwargs).read()


class _Reader:
    def __init__(self, out: Imported, agent: Agent, kwargs: Taken) -> None:
        self.out, self.agent, self.kwargs = out, agent, kwargs
        self.algorithm = ALGORITHMS[agent.algorithm]
        self.settings = Sb3Settings(agent, kwargs)
        self.layers = Sb3Layers(out, self.settings)

    def read(self) -> None:
        if self.settings.extractor == "CombinedExtractor" and self.agent.seen is None:
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

    # --- policies -------------------------------------------------------------------------------------------------

    def _actor_critic(self) -> None:
        policy, critic = self.layers.nodes("policy"), self.layers.nodes("critic")
        extractors = ("pi_features_extractor", "vf_features_extractor")
        if self.settings.shares:
            extractors = ("features_extractor", "features_extractor")
        has_weights = self.layers.features(policy, extractors[0])
        shares = [policy.last] if has_weights and self.settings.shares else []
        if self.settings.shared:
            self.layers.latent(policy, self.settings.shared, "mlp_extractor.shared_net", "shared")
            shares = [policy.last]
        if self.agent.algorithm == "ppo_lstm":
            shares = self._memories(policy, critic, shares, extractors[1])
        elif shares:
            critic.begin_with(shares[0])
        else:
            self.layers.features(critic, extractors[1])
        self.layers.latent(policy, self.settings.policy_units, "mlp_extractor.policy_net")
        self.layers.latent(critic, self.settings.critic_units, "mlp_extractor.value_net")
        self._write("policy", policy, "action_net", 0.01, shares)
        self._write("critic", critic, "value_net", 1.0)

    def _memories(
        self, policy: Nodes, critic: Nodes, shares: list[str], extractor: str
    ) -> list[str]:
        """Append the LSTM of the policy, and what the critic has in its place; what the policy shares."""
        kwargs, features = self.kwargs, policy.last
        if self.settings.shared:
            kwargs.refuse("net_arch", "layers that both share after a memory are not read")
        self.layers.memory(policy, "lstm_actor")
        if kwargs.flag("shared_lstm", False):
            kwargs.ask("enable_critic_lstm")
            critic.begin_with(policy.last)
            critic.add("fixed", "detach")  # its loss does not train the memory
            return [policy.last]
        if shares:
            critic.begin_with(features)
        else:
            self.layers.features(critic, extractor)
        if kwargs.flag("enable_critic_lstm", True):
            self.layers.memory(critic, "lstm_critic")
        else:
            units = [kwargs.whole("lstm_hidden_size", 256)]
            rule = {"init": "default"} if self.settings.is_orthogonal else {}
            critic.dense("features_for_value", units, "identity", ["critic"], **rule)
        return shares

    def _dqn(self) -> None:
        policy = self.layers.nodes("policy")
        self.layers.features(policy, "q_net.features_extractor")
        output = self.layers.latent(policy, self.settings.policy_units, "q_net.q_net")
        self._write("policy", policy, output, None)

    def _qrdqn(self) -> None:
        """The critic has the quantiles; the policy has their means, which are linear in the same features."""
        policy, critic = self.layers.nodes("policy"), self.layers.nodes("critic")
        self._quantile_layers(policy)
        self._write("policy", policy, Q_VALUES, None)
        before = len(self.out.weights)
        output = self._quantile_layers(critic)
        head = self._quantile_head(critic.end())
        self.out.spec["critic"] = {"kind": "state_action", "graph": critic.graph, "heads": head}
        linear = f"critic.heads.{ACTION}_q_values.head.linear"
        pairs = [*self.out.weights[before:], (linear, output)]
        self.out.weights[before:] = _with_targets(pairs, "quantile_net", "quantile_net_target")
        self.out.note(
            "n_quantiles: the policy's logits are the means of the critic's quantiles; they are layers of their own, "
            "and training one of the two does not change the other"
        )

    def _quantile_head(self, reads: str) -> dict[str, Any]:
        return {"block": "quantile_value", "in": reads, "num_quantiles": self.settings.quantiles()}

    def _quantile_layers(self, nodes: Nodes) -> str:
        self.layers.features(nodes, "quantile_net.features_extractor")
        return self.layers.latent(nodes, self.settings.policy_units, "quantile_net.quantile_net")

    def _sac(self) -> None:
        mean = "actor.mu"
        if self.settings.use_sde:
            mean = f"actor.mu.0+{NOISE}" if self.settings.clips_mean() else f"actor.mu+{NOISE}"
        self._off_policy(
            "actor.latent_pi", mean if self.settings.use_sde else "actor.mu+actor.log_std"
        )

    def _td3(self) -> None:
        self._off_policy("actor.mu", None)

    def _off_policy(self, layers: str, head: str | None) -> None:
        """Actor and Q functions; ``head`` is the last layer of the actor, where it is not one of its ``layers``."""
        is_normed = self.algorithm.has_norms and self.kwargs.flag("batch_norm", True)
        policy, critic = self.layers.nodes("policy"), self.layers.nodes("critic")
        has_weights = self.layers.features(policy, "actor.features_extractor")
        shares = [policy.last] if has_weights and self.settings.shares else []
        width = self.settings.number_of_features()
        if is_normed and self.settings.policy_units:
            output = self.layers.normed(policy, self.settings.policy_units, layers, width)
        else:
            output = self.layers.latent(policy, self.settings.policy_units, layers)
        self._write("policy", policy, head or output, None, shares)
        self._q_functions(critic, shares, has_weights, is_normed)

    def _q_functions(
        self, critic: Nodes, shares: list[str], has_weights: bool, is_normed: bool
    ) -> None:
        """Write the critic; ``has_weights`` says whether the features extractor has some."""
        count = self.kwargs.layers("n_critics", self.algorithm.critics)
        before = len(self.out.weights)
        if shares:
            critic.begin_with(shares[0])
        else:
            self.layers.features(critic, "critic.features_extractor")
            if has_weights and count > 1:
                self.out.note(
                    f"features_extractor: one for the {count} Q functions there; here each has its own"
                )
        critic.add("both", "concat", [critic.last, f"action/{ACTION}"])
        if is_normed:
            width, actions = self.settings.number_of_features(), self.agent.actions
            width = None if width is None or actions is None else width + actions
            output = self.layers.normed(critic, self.settings.critic_units, "critic.qf", width)
        else:
            output = self.layers.latent(critic, self.settings.critic_units, "critic.qf")
        kind = {"kind": "state_action", **({"ensemble": count} if count > 1 else {})}
        heads: dict[str, Any] = {"in": critic.last}
        linear = "critic.heads.q_value.linear"
        if self.algorithm.quantiles:
            heads = self._quantile_head(critic.last)
            linear = "critic.heads.q_value.head.linear"
        self.out.spec["critic"] = {**kind, "graph": critic.graph, "heads": heads}
        pairs = [*self.out.weights[before:], (linear, output)]
        target = "critic" if self.algorithm.has_norms else "critic_target"
        self.out.weights[before:] = _with_targets(_of_each(pairs, count), "critic", target)
        if self.algorithm.has_norms:
            self._note_norms(is_normed)

    def _note_norms(self, is_normed: bool) -> None:
        self.kwargs.ask("renorm_warmup_steps")
        self.out.note("critic: there are no target networks there; here they begin as copies")
        if is_normed:
            self.out.note(
                "batch_norm: BatchRenorm there; BatchNorm1d here, whose outputs are equal in eval mode; while it is "
                "trained it normalises by the batch alone"
            )

    def _templates(self) -> None:
        """Write networks that follow from observations that the file does not name."""
        if self.agent.algorithm == "ppo_lstm" or self.settings.shared:
            reason = (
                "its observations are not known here, and a template has no layers after a memory"
            )
            self.kwargs.refuse(None, reason)
        if self.algorithm.quantiles and not self.settings.critic_units:
            reason = "its observations are not known here, and the quantiles of a template read a layer before them"
            self.kwargs.refuse(None, reason)
        units = self.settings.units_of_images()
        self.out.note(
            f"MultiInputPolicy: a template; an image has 512 features here, and {units} there"
        )
        policy, critic = (
            self._template(u) for u in (self.settings.policy_units, self.settings.critic_units)
        )
        if self.settings.shares:
            policy["shares"] = [FEATURES]
        self.out.spec["policy"] = policy
        if self.algorithm.actor == "actor_critic":
            self.out.spec["critic"] = critic
        elif self.algorithm.actor != "dqn":
            count = self.kwargs.layers("n_critics", self.algorithm.critics)
            kind = {"kind": "state_action", **({"ensemble": count} if count > 1 else {})}
            heads = {"heads": self._quantile_head("latent")} if self.algorithm.quantiles else {}
            self.out.spec["critic"] = {**kind, **critic, **heads}

    def _template(self, units: list[int]) -> dict[str, Any]:
        trunk = {"block": "dense", "hidden_units": units, "activation": self.settings.activation}
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
        if self.settings.is_orthogonal:
            body = {"orthogonal": {"gain": _SQRT_2}}
            init = {"init": {"body": body, "heads": {"orthogonal": {"gain": gain}}}}
        spec = {**init, "graph": nodes.graph, "heads": {"in": reads}}
        if shares:
            spec["shares"] = shares
        self.out.spec[part] = spec
        linear = _HEAD if is_policy else "critic.heads.value.linear"
        if is_policy and self.settings.use_sde and "+" not in head:
            head = f"{head}+{NOISE}"
        self.out.weights.append((linear, head))

    # --- the distribution -----------------------------------------------------------------------------------------

    def _distribution(self) -> None:
        actor, action = self.algorithm.actor, self.agent.action
        rule: dict[str, Any] = {"space": "box"}
        if actor == "td3":
            rule["distribution"] = "deterministic"
        elif self.settings.use_sde:
            rule |= self._sde()
        elif actor == "actor_critic" and action in (None, "Box"):
            rule |= {"distribution": "gaussian", "log_std": "learned"}
            if self.settings.init_log_std:
                rule["init_log_std"] = self.settings.init_log_std
            self.out.weights.append((_LOG_STD, "log_std"))
        else:
            return
        if action is None and actor == "actor_critic":
            rule["optional"] = True  # the actions may be choices
        self.out.spec["distributions"] = [rule]

    def _sde(self) -> dict[str, Any]:
        kwargs, is_sac = self.kwargs, self.algorithm.actor == "sac"
        rule: dict[str, Any] = {"distribution": "gsde", "init_log_std": self.settings.init_log_std}
        width = self.settings.number_of_latents()
        if width is None:
            self.out.note(
                "use_sde: set 'latent_units' of gsde to the number of features that the head reads"
            )
        else:
            rule["latent_units"] = width
        rule["feature_activation"] = "identity"  # they are the last layer itself
        self.out.weights.append((_LOG_STD, "actor.log_std" if is_sac else "log_std"))
        if not kwargs.flag("full_std", True):
            rule["full_std"] = False
        if kwargs.flag("use_expln", False):
            rule["use_expln"] = True
        if is_sac:
            rule["learn_features"] = True
            if self.settings.clips_mean():
                self.out.note(
                    "clip_mean: the mean is within its bounds there before tanh; here it is not clipped"
                )
        elif not kwargs.flag("squash_output", False):
            rule["squash"] = False
        learned = ", and it is trained" if is_sac else ""
        self.out.note(
            "use_sde: the noise depends on the last layer there; here on a linear layer after it, which the weights of "
            f"an agent make the identity{learned}"
        )
        return rule


def _of_each(pairs: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """``pairs`` of one Q function for each of ``count``."""
    every = []
    for index in range(count):
        member = f"ensemble.{index}." if count > 1 else ""
        for ours, theirs in pairs:
            theirs = re.sub(r"^critic\.qf\b", f"critic.qf{index}", theirs)
            every.append((f"critic.{member}{ours.removeprefix('critic.')}", theirs))
    return every


def _with_targets(pairs: list[tuple[str, str]], critic: str, target: str) -> list[tuple[str, str]]:
    """``pairs`` of a critic, which is called ``critic`` there, and of its target networks."""
    targets = [
        (f"critic.target.{ours.removeprefix('critic.')}", f"{target}{theirs.removeprefix(critic)}")
        for ours, theirs in pairs
    ]
    return [*pairs, *targets]
