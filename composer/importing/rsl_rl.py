"""Configurations of rsl_rl: classes of IsaacLab, mjlab and legged_gym, dicts, and YAML; versions 2 to 5."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from composer.errors import Position, Problem, SpecError
from composer.importing.document import Document
from composer.importing.imported import Imported, finished
from composer.importing.kinds import Kind
from composer.importing.nodes import (
    ACTION,
    LOG_STD_RANGE,
    OBSERVATION,
    Nodes,
    activation_of,
    gaussian,
)
from composer.importing.taken import BASE, CLASS, Code, Taken
from composer.source.values import Located
from perception_blocks.words import describe, hint, listing

__all__ = ["RSL_RL", "read_rsl_rl"]

_ACTIVATIONS = {
    "elu": "elu",
    "selu": "selu",
    "relu": "relu",
    "crelu": "celu",
    "lrelu": "leaky_relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "softplus": "softplus",
    "gelu": "gelu",
    "swish": "silu",
    "mish": "mish",
    "identity": "identity",
}
_WIDTHS = [256, 256, 256]  # which rsl_rl has where nothing is said
_WIDE = [-80.0, 80.0]
_RECURRENT = ("ActorCriticRecurrent", "RNNModel")
_PLAIN = ("ActorCritic", "MLPModel")
_OF_RUNNERS = ("algorithm", "max_iterations", "num_steps_per_env", "runner")
_OWN = ("policy", "actor", "critic", "obs_groups")  # keys about networks


def _is_rsl_rl(document: Document) -> bool:
    return bool(_configurations(document))


def _configurations(document: Document) -> dict[str, Located]:
    """The runners of the file by name: what has a policy, or an actor and a critic."""
    if document.is_python:
        candidates = document.mappings
    else:
        candidates = {"": Located(document.root())} if document.root() else {}
        if candidates and "runner" in document.root():
            candidates["runner"] = document.root()["runner"]
    return {name: node for name, node in candidates.items() if _is_runner(node)}


def _is_runner(node: Located) -> bool:
    if not isinstance(node.value, dict):
        return False
    policy = node.value.get("policy")
    if policy is not None and isinstance(policy.value, dict):
        hints = ("actor_hidden_dims", "critic_hidden_dims", "init_noise_std")
        return any(key in policy.value for key in hints)
    if policy is not None and isinstance(policy.value, Code):
        return not node.value.keys().isdisjoint(_OF_RUNNERS)  # reading it says what is wrong
    models = [node.value.get(key) for key in ("actor", "critic")]
    return all(m is not None and isinstance(m.value, dict) and _is_model(m.value) for m in models)


def _is_model(value: dict[str, Located]) -> bool:
    return "hidden_dims" in value or "Model" in str(getattr(value.get(CLASS), "value", ""))


def read_rsl_rl(document: Document, name: str | None = None) -> Imported:
    """Actor and critic of a runner's configuration, the one called ``name`` where the file has several."""
    known = _configurations(document)
    if not known:
        message = (
            "no class, function or mapping in the file has a 'policy', or an 'actor' and a 'critic'"
        )
        raise _problem(document, message)
    if name is None and len(known) > 1:
        message = (
            f"the file has {listing(known)}; choose one: --class {next(iter(known))}, or name="
        )
        raise _problem(document, message)
    if name is not None and name not in known:
        message = f"there is no configuration {name!r} in the file{hint(name, known, 'it has')}"
        raise _problem(document, message)
    top = document.taken(known[next(iter(known)) if name is None else name])
    out = _Reader(top, Imported({"version": 1})).read()
    return finished(out, top, [path for path in top.left() if path[0] not in _OWN])


def _problem(document: Document, message: str) -> SpecError:
    return SpecError([Problem(message, (), Position(document.name, 1, 1))])


@dataclass(frozen=True)
class _Model:
    """One of the two networks: the mapping that describes it, and where a checkpoint has it."""

    taken: Taken
    widths: str  # its key
    network: str  # of the linear layers
    memory: str
    normalizer: str
    normalized: str  # its key


class _Reader:
    """Reads a runner's configuration into a spec."""

    def __init__(self, top: Taken, out: Imported) -> None:
        self.top, self.out = top, out
        self.is_old = top.has("policy")  # one mapping for both networks
        self.sets = self._observation_sets()

    def read(self) -> Imported:
        self._note_base()
        actor, critic = self._models()
        self.out.spec["distributions"] = [self._distribution(actor.taken)]
        nodes, output = self._network(actor, "policy")
        nodes.weigh(f"heads.{ACTION}.linear", output)
        self.out.spec["policy"] = {"graph": nodes.graph, "heads": {"in": nodes.last}}
        nodes, output = self._network(critic, "critic")
        self.out.spec["critic"] = nodes.critic(nodes.last, output)
        self._normalize(actor, critic)
        return self.out

    def _note_base(self) -> None:
        """Name the base class that could not be read; those of IsaacLab and mjlab set no widths."""
        policy = self.top["policy"] if self.is_old else None
        for owner in (self.top, policy):
            base = owner.node.value.get(BASE) if isinstance(owner, Taken) else None
            name = None if base is None else base.value
            if isinstance(name, str) and not _last(name).startswith("RslRl"):
                self.out.note(
                    f"{name}: this base class is in a file that is not beside this one, or cannot be read; what it "
                    "sets is not known"
                )

    def _models(self) -> tuple[_Model, _Model]:
        if not self.is_old:
            return self._model("actor"), self._model("critic")
        policy = self.top.below("policy")
        return _old_model(policy, "actor", "memory_a"), _old_model(policy, "critic", "memory_c")

    def _model(self, part: str) -> _Model:
        taken, state = self.top.below(part), f"{part}_state_dict."
        where = f"{state}mlp", f"{state}rnn.rnn", f"{state}obs_normalizer"
        return _Model(taken, "hidden_dims", *where, "obs_normalization")

    def _observation_sets(self) -> dict[str, list[str]]:
        """The observations that policy and critic read, by what 'obs_groups' says."""
        default = {"policy": [OBSERVATION], "critic": [OBSERVATION]}
        if not self.top.has("obs_groups"):
            return default
        groups = self.top["obs_groups"]
        if not isinstance(groups, Taken) or not len(groups):
            return default
        sets = dict(default)
        for part, keys in (
            ("policy", ("actor", "policy")),
            ("critic", ("critic", "actor", "policy")),
        ):
            key = next((key for key in keys if groups.has(key)), None)
            names = None if key is None else groups[key]
            names = [names] if isinstance(names, str) else names
            if names is None:
                continue
            if not (isinstance(names, list) and names and all(type(each) is str for each in names)):
                groups.refuse(key, f"must be a list of observations, got {describe(names)}")
                continue
            sets[part] = names
        return sets

    # --- networks ---------------------------------------------------------------------------------------------------

    def _network(self, model: _Model, part: str) -> tuple[Nodes, str]:
        """The layers of ``part`` but the last, and where a checkpoint has that one."""
        taken, names = model.taken, self.sets[part]
        nodes = Nodes(self.out, part, names[0], itertools.chain(*self.sets.values()))
        if len(names) > 1:
            nodes.concat("joined", names)
        if self._is_recurrent(taken):
            self._memory(nodes, model)
        widths = self._widths(model)
        activation = activation_of(taken, "activation", _ACTIVATIONS, "elu")
        nodes.dense(
            "latent", widths, activation, [f"{model.network}.{2 * i}" for i in range(len(widths))]
        )
        return nodes, f"{model.network}.{2 * len(widths)}"

    def _widths(self, model: _Model) -> list[int]:
        taken, key = model.taken, model.widths
        if not taken.has(key):
            self.out.note(
                f"{taken.name(key)}: not in the file; {_WIDTHS} is rsl_rl's own default, and a base in another "
                "file may say otherwise"
            )
            return _WIDTHS
        given = taken[key]
        if isinstance(given, list) and -1 in given:
            taken.refuse(key, "-1 stands for the size of the observation; write the number")
            return _WIDTHS
        widths = taken.wholes(key)
        if not widths:
            taken.refuse(key, "needs at least one layer")
        return widths

    def _memory(self, nodes: Nodes, model: _Model) -> None:
        taken = model.taken
        kind = taken.text("rnn_type", "lstm").lower()
        if kind not in ("lstm", "gru"):
            taken.refuse("rnn_type", f"there is no memory {kind!r}{hint(kind, ['lstm', 'gru'])}")
        size = "rnn_hidden_size" if taken.has("rnn_hidden_size") else "rnn_hidden_dim"
        layers = taken.layers("rnn_num_layers", 1)
        more: dict[str, Any] = {"num_layers": layers} if layers > 1 else {}
        memory = nodes.add("memory", kind, hidden_units=taken.whole(size, 256), **more)
        for index in range(layers):
            nodes.weigh(f"{memory}.layers.{index}", f"{model.memory}#{index}")

    def _is_recurrent(self, taken: Taken) -> bool:
        """By the name of the class; networks of other classes are refused."""
        name, key = self._class_name(taken)
        if name in _RECURRENT:
            return True
        if name not in _PLAIN:
            known = (
                (*_PLAIN[:1], *_RECURRENT[:1]) if self.is_old else (*_PLAIN[1:], *_RECURRENT[1:])
            )
            taken.refuse(
                key, f"the class {name!r} is no plain network{hint(name, known, 'those are')}"
            )
            return False
        taken.ask("rnn_type", "rnn_hidden_dim", "rnn_hidden_size", "rnn_num_layers")
        for setting in ("cnn_cfg", "cnns"):
            if taken.has(setting):
                taken.refuse(
                    setting,
                    "the file does not say which observations are images; write the graph by hand",
                )
        return False

    def _class_name(self, taken: Taken) -> tuple[str, str | None]:
        """The class of the network, and the key that says it."""
        if taken.has("class_name"):
            return _last(taken.text("class_name")), "class_name"
        runner = (
            self.top.below("runner")
            if "runner" in self.top and isinstance(self.top["runner"], Taken)
            else None
        )
        if self.is_old and runner is not None and runner.has("policy_class_name"):  # legged_gym
            return _last(runner.text("policy_class_name")), None
        name = _last(taken.text(CLASS, ""))
        if "StudentTeacher" in name or "CNN" in name:
            return name, None
        is_recurrent = "Recurrent" in name or "RNN" in name
        return (_RECURRENT if is_recurrent else _PLAIN)[not self.is_old], None

    # --- distribution -------------------------------------------------------------------------------------------------

    def _distribution(self, taken: Taken) -> dict[str, Any]:
        if self.is_old or taken.has("init_noise_std") or taken.has("stochastic"):
            taken.ask("stochastic")
            is_of_state = taken.flag("state_dependent_std", False)
            return self._gaussian(taken, "noise_std_type", "init_noise_std", "", is_of_state)
        if not taken.has("distribution_cfg"):
            taken.refuse(
                None, "'distribution_cfg' is missing: an actor without noise is no policy here"
            )
            return gaussian("learned")
        given = taken.below("distribution_cfg")
        name = _last(
            given.text("class_name", given.text(CLASS, "GaussianDistribution"))
        ).removesuffix("Cfg")
        known = ("GaussianDistribution", "HeteroscedasticGaussianDistribution", "BetaDistribution")
        if name == known[2]:
            where = given.name("action_range") if given.has("action_range") else given.name()
            self.out.note(f"{where}: the range is that of the space's bounds here")
            given.ask("action_range")
            return {"action": ACTION, "distribution": "beta"}
        if name not in known:
            key = "class_name" if given.has("class_name") else None
            given.refuse(key, f"there is no distribution {name!r} here{hint(name, known)}")
            return gaussian("learned")
        if not given.flag("learn_std", True):
            given.refuse(
                "learn_std", "log_std is learned here; leave the key out, and freeze it in Python"
            )
        return self._gaussian(given, "std_type", "init_std", "distribution.", name == known[1])

    def _gaussian(
        self, taken: Taken, type_key: str, std_key: str, inside: str, is_of_state: bool
    ) -> dict[str, Any]:
        kind = taken.text(type_key, "scalar")
        if kind not in ("scalar", "log"):
            taken.refuse(type_key, f"is 'scalar' or 'log', got {kind!r}")
        std = taken.number(std_key, 1.0)
        if std <= 0:
            taken.refuse(std_key, f"a standard deviation is above 0, got {std:g}")
            std = 1.0
        settings = self._log_std_range(taken, math.log(std))
        if is_of_state:
            if kind != "log":
                taken.refuse(
                    type_key if taken.has(type_key) else None,
                    "the network gives a standard deviation there, its logarithm here; only 'log' is alike",
                )
            if std != 1.0:
                self.out.note(
                    f"{taken.name(std_key)}: log_std follows from the observation and begins near 0 here"
                )
            return gaussian("state", **settings)
        name = ("log_std" if kind == "log" else "std") + ("_param" if inside else "")
        state = "model_state_dict." if self.is_old else "actor_state_dict."
        theirs = f"{state}{inside}{name}"
        self.out.weights.append(
            (
                f"policy.distributions.{ACTION}.log_std",
                theirs if kind == "log" else f"log({theirs})",
            )
        )
        if kind == "scalar":
            self.out.note(
                f"{taken.name(type_key)}: the standard deviation is the parameter there, its logarithm here"
            )
        return gaussian("learned", init_log_std=round(math.log(std), 12), **settings)

    def _log_std_range(self, taken: Taken, start: float) -> dict[str, Any]:
        if not taken.has("std_range"):
            low, high = LOG_STD_RANGE
            return {} if low <= start <= high else {"log_std_range": _WIDE}
        given = taken["std_range"]
        numbers = given if isinstance(given, list) and len(given) == 2 else []
        if not numbers or not all(isinstance(n, int | float) and n > 0 for n in numbers):
            taken.refuse("std_range", f"must be two numbers above 0, got {describe(given)}")
            return {}
        return {"log_std_range": [round(math.log(number), 12) for number in numbers]}

    # --- running statistics -------------------------------------------------------------------------------------------

    def _normalize(self, actor: _Model, critic: _Model) -> None:
        """Running statistics of what each network reads; an observation has the same ones in both here."""
        everywhere = self.top.flag("empirical_normalization", False)
        names: dict[str, None] = {}
        flags = {}
        for part, model in (("policy", actor), ("critic", critic)):
            key = model.normalized
            flags[part] = model.taken.flag(key, everywhere)
            names |= dict.fromkeys(self.sets[part] if flags[part] else ())
        if not names:
            return
        self.out.spec["normalize"] = list(names)
        where = actor.taken.name(actor.normalized)
        if everywhere:
            where = "empirical_normalization"
        self.out.note(
            f"{where}: divided by the standard deviation plus 0.01 there, clipped at 10 of them here"
        )
        shared = set(self.sets["policy"]) & set(self.sets["critic"])
        if shared and flags["policy"] != flags["critic"]:
            self.out.note(f"{where}: what both networks read is normalised for both here")
        self._pair_statistics(actor, critic, flags, everywhere)
        if any(len(self.sets[part]) > 1 for part, flag in flags.items() if flag):
            self.out.note(
                f"{where}: statistics of several observations together cannot be taken from a checkpoint"
            )

    def _pair_statistics(
        self, actor: _Model, critic: _Model, flags: dict[str, bool], everywhere: bool
    ) -> None:
        paired: dict[str, None] = {}
        for part, model in (("policy", actor), ("critic", critic)):
            (name, *others) = self.sets[part]
            if not flags[part] or others or name in paired:
                continue
            theirs = model.normalizer
            if everywhere and self.is_old:  # version 2 has them beside the networks
                theirs = (
                    "obs_norm_state_dict" if part == "policy" else "privileged_obs_norm_state_dict"
                )
            self.out.weights.append((f"policy.normalizers.{name}", theirs))  # the critic's, too
            paired[name] = None


def _old_model(policy: Taken, part: str, memory: str) -> _Model:
    state = "model_state_dict."
    where = f"{state}{part}", f"{state}{memory}.rnn", f"{state}{part}_obs_normalizer"
    return _Model(policy, f"{part}_hidden_dims", *where, f"{part}_obs_normalization")


def _last(path: str) -> str:
    """The class of ``rsl_rl.modules:ActorCritic`` or ``rsl_rl.modules.ActorCritic``."""
    return path.replace(":", ".").rpartition(".")[2]


RSL_RL = Kind(
    "Python with a class, function or dict, or YAML, that has a 'policy' or 'actor' with hidden_dims",
    _is_rsl_rl,
    read_rsl_rl,
)
