"""The YAML of skrl's Runner: its 'models', each a list of containers of layers; versions 1 and 2."""

from __future__ import annotations

from typing import Any

from composer.importing.document import Document
from composer.importing.imported import Imported, finished
from composer.importing.kinds import Kind
from composer.importing.nodes import ACTION, LOG_STD_RANGE, OBSERVATION, Nodes, gaussian
from composer.importing.skrl_network import Containers, named_observations
from composer.importing.taken import Taken
from composer.source.values import plain
from perception_blocks.words import hint

__all__ = ["SKRL", "read_skrl"]

_FAMILIES = {
    "gaussian": "gaussian",
    "multivariategaussian": "gaussian",  # whose covariance is diagonal
    "categorical": "categorical",
    "multicategorical": "multi_categorical",
}
_SCALER = "RunningStandardScaler"


def _is_skrl(document: Document) -> bool:
    models = document.root().get("models")
    return models is not None and isinstance(models.value, dict) and "policy" in models.value


def read_skrl(document: Document, name: str | None = None) -> Imported:
    """Policy and value that a YAML file of skrl describes."""
    top = document.taken()
    if name is not None:
        raise top.refusal(None, f"a file of skrl has one policy, and none is called {name!r}")
    models = top.below("models")
    reader = _Reader(models, Imported({"version": 1}))
    reader.read()
    if top.has("agent"):
        reader.read_preprocessors(top.below("agent"))
    training = [path for path in top.left() if path[0] != "models"]
    return finished(reader.out, top, training)


class _Reader:
    """Reads the mapping ``models`` into a spec."""

    def __init__(self, models: Taken, out: Imported) -> None:
        self.models, self.out = models, out
        self.separate = models.flag("separate", True)
        self.observations: dict[str, None] = {}
        self.names = [OBSERVATION, *named_observations(models)]

    def read(self) -> None:
        policy = self.models.below("policy")
        family = self._family(policy)
        nodes, after = self._network(policy, "policy", "policy.")
        self._distribution(policy, family)
        _require_output(policy, "ACTIONS")
        linear = after if self.separate else "policy.policy_layer"
        self.out.weights.append((f"policy.heads.{ACTION}.linear", linear))
        self.out.spec["policy"] = {"graph": nodes.graph, "heads": {"in": nodes.last}}
        if self.models.has("value"):
            self._value(self.models.below("value"), nodes)

    def _value(self, value: Taken, policy: Nodes) -> None:
        """The critic. Where it is not separate, skrl looks at the policy's network alone."""
        if self._class(value) != "deterministic":
            value.refuse("class", "a value is deterministic")
        value.ask("clip_actions")  # of a value it changes nothing
        _require_output(value, "ONE")
        if self.separate:
            nodes, theirs = self._network(value, "critic", "value.")
        else:
            layers = self.models.below("policy").node.value.get("network")
            if value.has("network") and value.plain("network") != (layers and plain(layers)):
                self.out.note(
                    f"{value.name('network')}: a shared model has the layers of the policy alone, as in skrl"
                )
            self.out.spec["policy"]["shares"] = [policy.last]
            nodes, theirs = Nodes(self.out, "critic"), "policy.value_layer"
            nodes.begin_with(policy.last)
        self.out.spec["critic"] = nodes.critic(nodes.last, theirs)

    def _network(self, model: Taken, part: str, theirs: str) -> tuple[Nodes, str]:
        nodes = Nodes(self.out, part, observations=self.names)
        containers = Containers(nodes, theirs)
        containers.read(model)
        self.observations |= containers.observations
        return nodes, containers.after

    def _class(self, model: Taken) -> str:
        return model.text("class").lower().removesuffix("mixin").removesuffix("model")

    def _family(self, policy: Taken) -> str:
        family = _FAMILIES.get(self._class(policy))
        if family is None:
            given = policy.text("class")
            known = [
                "GaussianMixin",
                "CategoricalMixin",
                "MultiCategoricalMixin",
                "MultivariateGaussianMixin",
            ]
            policy.refuse("class", f"there is no policy {given!r} here{hint(given, known)}")
        return family or "categorical"

    def _distribution(self, policy: Taken, family: str) -> None:
        if policy.has("reduction") and policy.text("reduction") != "sum":
            self.out.note(f"{policy.name('reduction')}: log_prob is a sum over the actions here")
        if family != "gaussian":
            if not policy.flag("unnormalized_log_prob", True):
                policy.refuse("unnormalized_log_prob", "outputs are logits here, no probabilities")
            self.out.spec["distributions"] = [{"action": ACTION, "distribution": family}]
            return
        if policy.flag("fixed_log_std", False):
            policy.refuse(
                "fixed_log_std",
                "log_std is learned here; leave the key out, and freeze it in Python",
            )
        for key, what in (("clip_actions", "actions"), ("clip_mean_actions", "the mean")):
            if policy.flag(key, False):
                self.out.note(
                    f"{policy.name(key)}: {what} clipped before log_prob there, what `act` returns here"
                )
        limits = [policy.number("min_log_std", -20.0), policy.number("max_log_std", 2.0)]
        if not policy.flag("clip_log_std", True):
            limits = [-80.0, 80.0]
        if limits[0] > limits[1]:
            policy.refuse("min_log_std", f"is {limits[0]:g}, above 'max_log_std' {limits[1]:g}")
            limits = [*LOG_STD_RANGE]
        settings: dict[str, Any] = {} if limits == [*LOG_STD_RANGE] else {"log_std_range": limits}
        initial = policy.number("initial_log_std", min(max(0.0, limits[0]), limits[1]), *limits)
        rule = gaussian("learned", init_log_std=initial, **settings)
        self.out.spec["distributions"] = [rule]
        self.out.weights.append(
            (f"policy.distributions.{ACTION}.log_std", "policy.log_std_parameter")
        )

    def read_preprocessors(self, agent: Taken) -> None:
        """Running statistics of observations and values."""
        for key in ("observation_preprocessor", "state_preprocessor"):
            if agent.has(key) and agent[key] == _SCALER and "normalize" not in self.out.spec:
                self._normalize(agent, key)
        if (
            agent.has("value_preprocessor")
            and agent["value_preprocessor"] == _SCALER
            and "critic" in self.out.spec
        ):
            self.out.spec["critic"] = {"normalize_value": True, **self.out.spec["critic"]}
            self.out.weights.append(("critic.value_normalizer", "value_preprocessor"))

    def _normalize(self, agent: Taken, key: str) -> None:
        names = list(self.observations)
        self.out.spec["normalize"] = names
        self.out.note(f"{agent.name(key)}: clipped at 5 standard deviations there, at 10 here")
        if names == [OBSERVATION]:
            self.out.weights.append((f"policy.normalizers.{OBSERVATION}", key))
        else:
            self.out.note(
                f"{agent.name(key)}: statistics of a dict of observations cannot be taken from a checkpoint"
            )


def _require_output(model: Taken, word: str) -> None:
    """Refuse outputs that are more than one linear layer."""
    if model.text("output") != word:
        model.refuse(
            "output",
            f"one linear layer ends this network here, {word!r}, got {model.text('output')!r}",
        )


SKRL = Kind("YAML with 'models:' and a 'policy:' in it", _is_skrl, read_skrl)
