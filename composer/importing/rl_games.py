"""The YAML of rl_games: networks of its actor_critic builder, version 1.6."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from composer.errors import Path
from composer.importing.document import Document
from composer.importing.imported import Imported, finished
from composer.importing.kinds import Kind
from composer.importing.nodes import (
    ACTION,
    OBSERVATION,
    Nodes,
    activation_of,
    gaussian,
)
from composer.importing.taken import Taken
from perception_blocks.words import describe, hint

__all__ = ["RL_GAMES", "read_rl_games"]

_ACTIVATIONS = {
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "elu": "elu",
    "selu": "selu",
    "swish": "silu",
    "gelu": "gelu",
    "softplus": "softplus",
    "None": "identity",
}
_INITIALIZERS = {
    "orthogonal_initializer": "orthogonal",
    "orthogonal": "orthogonal",
    "glorot_normal_initializer": "xavier_normal",
    "glorot_uniform_initializer": "xavier_uniform",
}
_DEFAULT = "fan_in_uniform"  # torch's own for weights, and biases of zero
_CONVOLUTIONS = ("conv2d", "conv2d_flatten", "conv1d")
_SPACES = ("continuous", "discrete", "multi_discrete")
_MODEL = "model.a2c_network."  # where a checkpoint has the network


def _is_rl_games(document: Document) -> bool:
    root = document.root()
    params = root["params"].value if "params" in root else root
    return (
        isinstance(params, dict)
        and "network" in params
        and {"algo", "model"} & params.keys() != set()
    )


def read_rl_games(document: Document, name: str | None = None) -> Imported:
    """The actor-critic that a YAML file of rl_games describes."""
    top = document.taken()
    if name is not None:
        raise top.refusal(None, f"a file of rl_games has one network, and none is called {name!r}")
    params = top.below("params") if "params" in top else top
    net = params.below("network")
    builder = net.text("name")
    if builder not in ("actor_critic", ""):  # the latter of what was refused already
        reason = f"the network {builder!r} has a builder of its own; only 'actor_critic' can be written as a spec"
        raise net.refusal("name", reason)
    if not net.has("space"):
        raise net.refusal(None, "'space' is missing: this is a central value, no policy")
    reader = _Reader(net, Imported({"version": 1}))
    reader.read()
    _normalization(params, reader)
    networks: list[Path] = [net.path, (*params.path, "config", "central_value_config")]
    return finished(reader.out, top, _outside(top, networks))


def _outside(top: Taken, networks: Iterable[Path]) -> list[Path]:
    """The paths of all that is left but for what is below the ``networks``: it is about training."""
    roots = [*networks]
    return [path for path in top.left() if not any(path[: len(root)] == root for root in roots)]


def _normalization(params: Taken, reader: _Reader) -> None:
    """What the model does around its network."""
    out = reader.out
    if not params.has("config"):
        return
    config = params.below("config")
    is_normalized = config.flag("normalize_input", False)
    nodes = out.spec["policy"]["graph"].values()
    if is_normalized and any(node["block"] == "scale_image" for node in nodes):
        reason = "images are scaled from their bounds here, and not normalised as well; write False and import again"
        config.refuse("normalize_input", reason)
    elif is_normalized:
        out.spec["normalize"] = [OBSERVATION]
        out.weights.append((f"policy.normalizers.{OBSERVATION}", "model.running_mean_std"))
        out.note(
            f"{config.name('normalize_input')}: clipped at 5 standard deviations there, at 10 here"
        )
    if config.flag("normalize_value", False):
        out.spec["critic"] = {"normalize_value": True, **out.spec["critic"]}
        out.weights.append(("critic.value_normalizer", "model.value_mean_std"))
    if config.has("central_value_config"):
        out.note(
            f"{config.name('central_value_config')}: a value of the state; write it as a critic with "
            "'observations:' of its own"
        )
    if reader.space == "continuous" and config.flag("clip_actions", True):
        out.note(
            f"{config.name('clip_actions')}: actions from -1 to 1 are scaled to the bounds of the space there; here "
            "they are in its own units"
        )


class _Reader:
    """Reads the mapping ``network`` into a spec."""

    def __init__(self, net: Taken, out: Imported) -> None:
        self.net, self.out = net, out
        self.separate = net.flag("separate", False)
        self.space = self._space()
        self.mlp = net.below("mlp")
        self.units = self.mlp.wholes("units")
        self.activation = activation_of(self.mlp, "activation", _ACTIVATIONS)
        self.init = self._initializer(self.mlp)
        self.normalization = net.text("normalization", "None")

    def _space(self) -> str:
        space = self.net.below("space")
        kind = next((kind for kind in _SPACES if kind in space), None)
        if kind is None:
            space.refuse(None, f"there is no space of actions{hint('', _SPACES)}")
        return kind or "discrete"

    def read(self) -> None:
        """Fill in ``out.spec``, and the names of the weights."""
        nodes = self._network("policy", "actor_", "a_" if self.separate else "")
        last = nodes.end()
        heads = self._heads(last)
        policy: dict[str, Any] = {"graph": nodes.graph, "heads": heads}
        if self.separate:
            nodes = self._network("critic", "critic_", "c_")
            nodes.end()
        else:
            policy["shares"] = [last]
            nodes = Nodes(self.out, "critic")
            nodes.begin_with(last)
        self._linear_outputs()
        critic = nodes.critic(nodes.last, f"{_MODEL}value", self.init)
        self.out.spec |= {"policy": policy, "critic": critic}

    def _linear_outputs(self) -> None:
        """Refuse activations after the heads, and values that are no number."""
        _require_linear(self.net, "value_activation", "the value")
        if self.net.text("value_type", "legacy") != "legacy":
            self.net.refuse("value_type", "a value is one linear output here")
        for key in ("central_value", "joint_obs_actions"):
            if self.net.has(key) and self.net[key] is not False:
                self.net.refuse(key, "a network that is no policy; leave the key out")

    def _heads(self, last: str) -> dict[str, Any]:
        """The entry ``heads``, and the distribution of the action."""
        head = {"in": last, **({} if self.init is None else {"init": self.init})}
        owner = self.net.below("space")
        linear = f"policy.heads.{ACTION}.linear"
        if self.space != "continuous":
            owner.get(self.space)  # whose value says nothing
            is_one = self.space == "discrete"
            family = "categorical" if is_one else "multi_categorical"
            self.out.spec["distributions"] = [{"action": ACTION, "distribution": family}]
            theirs = "logits" if is_one else "logits.*"
            self.out.weights.append((linear, f"{_MODEL}{theirs}"))
            return head
        box = owner.below("continuous")
        for key, what in (("mu_activation", "the mean"), ("sigma_activation", "log_std")):
            _require_linear(box, key, what)
        fixed = box.flag("fixed_sigma")
        if fixed:
            rule = gaussian("learned", init_log_std=self._first_log_std(box))
            self.out.weights.append((f"policy.distributions.{ACTION}.log_std", f"{_MODEL}sigma"))
            self.out.weights.append((linear, f"{_MODEL}mu"))
        else:
            rule = gaussian("state")
            self.out.weights.append((linear, f"{_MODEL}mu+{_MODEL}sigma"))
            self._ignored_initializer(box, "sigma_init")
        self.out.spec["distributions"] = [rule]
        if not fixed:
            self._ignored_initializer(box, "mu_init")
        elif (init := self._initializer(box, "mu_init", None)) is not None:
            head["init"] = init
        return head

    def _first_log_std(self, box: Taken) -> float:
        if not box.has("sigma_init"):
            return 0.0
        init = box.below("sigma_init")
        if init.text("name", "default") == "const_initializer":
            return init.number("val", 0.0)
        if init.text("name", "default") != "default":
            self.out.note(
                f"{box.name('sigma_init')}: log_std begins at 0 here, not as {init.text('name')!r}"
            )
        return 0.0

    def _ignored_initializer(self, box: Taken, key: str) -> None:
        if not box.has(key):
            return
        name = box.below(key).text("name", "default")
        if name != "default":
            box.ask(key)
            self.out.note(
                f"{box.name(key)}: the head of mean and log_std has one initialiser here, not {name!r}"
            )

    def _initializer(self, owner: Taken, key: str = "initializer", default: Any = _DEFAULT) -> Any:
        """Our ``init`` for the entry ``key`` of ``owner``; ``default`` where rl_games leaves torch's own."""
        if not owner.has(key):
            return default
        given = owner.below(key)
        name = given.text("name", "default")
        if name == "default":
            return default
        if name in _INITIALIZERS:
            gain = given.number("gain", 1.0)
            return _INITIALIZERS[name] if gain == 1.0 else {_INITIALIZERS[name]: {"gain": gain}}
        if name == "kaiming_normal" and given.text("mode", "fan_in") == "fan_in":
            rule = given.text("nonlinearity", "leaky_relu")
            return (
                "kaiming_normal" if rule == "relu" else {"kaiming_normal": {"nonlinearity": rule}}
            )
        owner.ask(key)
        self.out.note(f"{owner.name(key)}: weights begin as torch has them, not as {name!r}")
        return default

    # --- the body -------------------------------------------------------------------------------------------------

    def _network(self, part: str, letters: str, recurrent: str) -> Nodes:
        """The layers before the heads: convolutions, MLP, and memory before or after it."""
        nodes = Nodes(self.out, part)
        if self.net.has("cnn"):
            self._convolutions(nodes, f"{_MODEL}{letters}cnn")
        features = nodes.last
        rnn = self.net.below("rnn") if self.net.has("rnn") else None
        is_first = rnn is not None and rnn.flag("before_mlp", False)
        if rnn is not None and is_first:
            rnn.ask("concat_input")  # which rl_games reads after an MLP alone
            self._memory(nodes, rnn, features, f"{_MODEL}{recurrent}", concat_input=False)
        self._mlp(nodes, f"{_MODEL}{letters}mlp")
        if rnn is not None and not is_first:
            concat_input = rnn.flag("concat_input", False)
            self._memory(nodes, rnn, features, f"{_MODEL}{recurrent}", concat_input)
        return nodes

    def _convolutions(self, nodes: Nodes, theirs: str) -> None:
        cnn = self.net.below("cnn")
        kind = cnn.text("type")
        if kind not in _CONVOLUTIONS:
            cnn.refuse("type", f"there are no layers {kind!r}{hint(kind, _CONVOLUTIONS)}")
        if self.normalization != "None":
            reason = (
                f"{self.normalization!r} between convolutions, after the activation, has no block"
            )
            self.net.refuse("normalization", reason)
        if cnn.flag("permute_input", True) and kind != "conv1d":
            nodes.add("image", "scale_image")
            self.out.note(
                f"{cnn.name('permute_input')}: bytes are divided by 255 there, here any image is scaled from its "
                "bounds to 0 and 1; for one that is to stay as it is write channels_first"
            )
        elif kind != "conv1d":
            self.out.note(
                f"{cnn.name('permute_input')}: bytes are divided by 255 there; if yours are bytes, put a scale_image "
                "before 'conv'"
            )
        layers = [_convolution(conv) for conv in cnn.entries("convs")]
        settings = {key: [layer[key] for layer in layers] for key in layers[0]} if layers else {}
        if not layers:
            cnn.refuse("convs", "needs at least one convolution")
        activation = activation_of(cnn, "activation", _ACTIVATIONS)
        init = self._initializer(cnn)
        conv = nodes.add("conv", "strided_conv", **settings, activation=activation, init=init)
        for index in range(len(layers)):
            nodes.weigh(f"{conv}.convs.{index}", f"{theirs}.{2 * index}")
        nodes.add("features", "flatten")

    def _mlp(self, nodes: Nodes, theirs: str) -> None:
        if not self.units:
            self.mlp.ask("d2rl", "norm_only_first_layer")
            return
        self.mlp.ask("norm_only_first_layer")  # which rl_games reads and never uses
        if self.mlp.flag("d2rl", False):
            return self._d2rl(nodes, theirs)
        names = [f"{theirs}.{2 * index}" for index in range(len(self.units))]
        nodes.dense("latent", self.units, self.activation, names, init=self.init)

    def _d2rl(self, nodes: Nodes, theirs: str) -> None:
        """Each layer but the first also reads the input (Sinha et al., 2020, arXiv:2010.09163)."""
        if self.normalization not in ("None", "layer_norm"):
            reason = f"{self.normalization!r} after the first activation has no block"
            self.net.refuse("normalization", reason)
        is_normed = self.normalization == "layer_norm"
        start = nodes.last
        for index, width in enumerate(self.units):
            if index:
                nodes.concat(f"with_input_{index}", [nodes.last, start])
            norm = "layer" if is_normed and index else None
            names = [f"{theirs}.linears.{index}"]
            settings = {"norm": norm, "init": self.init}
            name = nodes.dense(f"layer_{index}", [width], self.activation, names, **settings)
            if norm:
                nodes.weigh(f"{name}.norms.0", f"{theirs}.norm_layers.{index}")
            elif is_normed:
                name = nodes.add("norm_0", "torch.nn.LayerNorm", normalized_shape=width)
                nodes.weigh(name, f"{theirs}.norm_layers.0")

    def _memory(
        self, nodes: Nodes, rnn: Taken, features: str, theirs: str, concat_input: bool
    ) -> None:
        name = rnn.text("name")
        if name not in ("lstm", "gru"):
            rnn.refuse("name", f"there is no memory {name!r}{hint(name, ['lstm', 'gru'])}")
        if concat_input:
            nodes.concat("memory_input", [nodes.last, features])
        units, layers = rnn.whole("units"), rnn.layers("layers")
        more: dict[str, Any] = {"num_layers": layers} if layers > 1 else {}
        memory = nodes.add("memory", name, hidden_units=units, **more)
        for index in range(layers):
            nodes.weigh(f"{memory}.layers.{index}", f"{theirs}rnn.rnn#{index}")
        if rnn.flag("layer_norm", False):
            norm = nodes.add("memory_norm", "torch.nn.LayerNorm", normalized_shape=units)
            nodes.weigh(norm, f"{theirs}layer_norm")
        if rnn.flag("concat_output", False):
            nodes.concat("memory_output", [nodes.last, features])


def _require_linear(owner: Taken, key: str, what: str) -> None:
    if owner.has(key) and owner[key] != "None":
        owner.refuse(key, f"{what} is linear here, and {describe(owner[key])} would follow it")


def _convolution(conv: Taken) -> dict[str, Any]:
    return {
        "hidden_channels": conv.whole("filters"),
        "hidden_kernels": conv.one_or_many("kernel_size"),
        "strides": conv.one_or_many("strides"),
        "padding": conv.one_or_many("padding", least=0),
    }


RL_GAMES = Kind("YAML with 'params:' and a 'network:' in it", _is_rl_games, read_rl_games)
