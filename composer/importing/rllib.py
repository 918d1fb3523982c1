"""RLlib: the networks of the old API stack's ``model``, and of the new one's ``DefaultModelConfig``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from composer.importing.imported import Imported
from composer.importing.nodes import ACTION, Nodes
from composer.importing.taken import Taken
from composer.source.values import plain
from perception_blocks.words import describe, hint

__all__ = ["fill_in_model"]

_ACTIVATIONS = {
    "elu": "elu",
    "gelu": "gelu",
    "leaky_relu": "leaky_relu",
    "linear": "identity",
    "relu": "relu",
    "selu": "selu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_INITIALIZERS = {  # of torch.nn.init
    "kaiming_normal_": "kaiming_normal",
    "kaiming_uniform_": "kaiming_uniform",
    "orthogonal_": "orthogonal",
    "xavier_normal_": "xavier_normal",
    "xavier_uniform_": "xavier_uniform",
    "zeros_": "zeros",
}
_HIDDEN, _LAST = "normc", {"normc": {"norm": 0.01}}  # of the old stack
_UNLIMITED = 80.0  # what float32 holds


def fill_in_model(out: Imported, model: Taken, is_old: bool) -> None:
    """Add the spec of the settings ``model``, of the old API stack or of the new one, and what differs."""
    _Reader(model, is_old, out).read()


class _Reader:
    def __init__(self, model: Taken, is_old: bool, out: Imported) -> None:
        self.model, self.is_old, self.out = model, is_old, out
        self.has_lstm = model.flag("use_lstm", False)
        self.has_attention = is_old and model.flag("use_attention", False)
        self.convolutions = self._filters() if model.has("conv_filters") else []

    def read(self) -> None:
        model = self.model
        self._refuse_code()
        model.ask("max_seq_len", "_time_major", "always_check_shapes", "attention_memory_training")
        if not self.convolutions:
            model.ask(
                "framestack", "dim", "grayscale", "zero_mean", "conv_filters", "conv_activation"
            )
        policy, critic = Nodes(self.out, "policy"), Nodes(self.out, "critic")
        self._encoder(policy)
        shares = model.flag("vf_share_layers", True)
        if not shares and self.is_old and (self.has_lstm or self.has_attention):
            self.out.note(
                f"{model.name('vf_share_layers')}: the value reads the memory there, whatever it says"
            )
            shares = True
        last = policy.last
        if not policy.graph:
            last = policy.end()
        if shares:
            critic.begin_with(last)
        else:
            self._encoder(critic)
        self._head_layers(policy)
        self._head_layers(critic)
        self._write(policy, critic, [last] if shares else [])
        self._distribution()

    def _refuse_code(self) -> None:
        for key in ("custom_model", "custom_action_dist", "custom_preprocessor"):
            if self.model.has(key) and self.model[key]:
                self.model.refuse(key, "it is registered in code, which is not read")
        if self.model.has("custom_model_config") and not plain(
            self.model.node.value["custom_model_config"]
        ):
            self.model.ask("custom_model_config")
        if self.model.flag("no_final_linear", False):
            self.model.refuse("no_final_linear", "a head is linear here")
        if self.has_lstm and self.has_attention:
            self.model.refuse("use_attention", "with 'use_lstm' there are two memories")

    def _encoder(self, nodes: Nodes) -> None:
        """Convolutions or dense layers, then the memory."""
        if self.convolutions:
            self._convolutional(nodes)
        else:
            self._dense(nodes)
        if self.has_lstm:
            self._with_previous(nodes, "lstm_use_prev_action", "lstm_use_prev_reward")
            init = None if self.is_old else self._initializer("lstm")
            nodes.add(
                "memory", "lstm", hidden_units=self.model.whole("lstm_cell_size", 256), init=init
            )
        elif self.has_attention:
            self._attention(nodes)
        else:
            self.model.ask("lstm_cell_size", "lstm_use_prev_action", "lstm_use_prev_reward")
            self.model.ask(*(key for key in self.model if key.startswith("attention_")))

    def _dense(self, nodes: Nodes) -> None:
        model = self.model
        units = model.wholes("fcnet_hiddens", [256, 256])
        activation = self._activation("fcnet_activation", "tanh")
        if self.is_old:
            more = model.wholes("post_fcnet_hiddens", [])
            after = self._activation("post_fcnet_activation", "relu")
            activation = activation if units else after
            if more and units and after != activation:
                layers = model.name("fcnet_hiddens")
                self.out.note(
                    f"{model.name('post_fcnet_activation')}: not used there, where {layers} has layers"
                )
            units = [*units, *more]
        if not units:
            return
        norm = "layer" if not self.is_old and model.flag("fcnet_use_layernorm", False) else None
        init = _HIDDEN if self.is_old else self._initializer("fcnet")
        nodes.dense("latent", units, activation, [], norm=norm, init=init)

    def _filters(self) -> list[dict[str, Any]]:
        layers = []
        given = self.model["conv_filters"]
        for index, each in enumerate(given if isinstance(given, list) else [None]):
            if not _is_filter(each):
                reason = (
                    f"must be a list of [channels, kernel, stride], got {describe(each)} at {index}"
                )
                self.model.refuse("conv_filters", reason, index)
                continue
            padding = each[3] if len(each) == 4 else "same"
            if self.is_old and index == len(given) - 1:
                padding = "valid"  # the last one alone
            layers.append(
                {
                    "hidden_channels": each[0],
                    "hidden_kernels": each[1],
                    "strides": each[2],
                    "padding": 0 if padding == "valid" else padding,
                }
            )
        return layers

    def _convolutional(self, nodes: Nodes) -> None:
        model = self.model
        settings = {
            key: [layer[key] for layer in self.convolutions] for key in self.convolutions[0]
        }
        init = "xavier_uniform" if self.is_old else self._initializer("conv")
        activation = self._activation("conv_activation", "relu")
        nodes.add("image", "scale_image")
        nodes.add("conv", "strided_conv", **settings, activation=activation, init=init)
        nodes.add("features", "flatten")
        self.out.note(
            f"{model.name('conv_filters')}: images are read as they come there; here scale_image brings them to 0 "
            "and 1, channels first"
        )
        if "same" in settings["padding"]:
            self.out.note(
                f"{model.name('conv_filters')}: how many pixels 'same' adds depends on the size of the image there; "
                "here on the kernel alone"
            )
        if self.is_old and model.wholes("post_fcnet_hiddens", []):
            after = self._activation("post_fcnet_activation", "relu")
            units = model.wholes("post_fcnet_hiddens", [])
            # The last of them has no activation there.
            nodes.dense("latent", units, after, [], last_activation="identity", init=_HIDDEN)
        elif self.is_old:
            model.ask("post_fcnet_hiddens", "post_fcnet_activation")

    def _attention(self, nodes: Nodes) -> None:
        model = self.model
        self._with_previous(nodes, "attention_use_n_prev_actions", "attention_use_n_prev_rewards")
        units, heads = model.whole("attention_dim", 64), model.whole("attention_num_heads", 1)
        if units % heads:
            reason = f"{heads} heads cannot share {units} units equally, which they do here"
            model.refuse("attention_num_heads", reason)
        features = model.whole("attention_head_dim", 32)
        if features * heads != units:
            self.out.note(
                f"{model.name('attention_head_dim')}: {features} for each of {heads} heads there, {units // heads} here"
            )
        nodes.add(
            "memory",
            "gtrxl",
            hidden_units=units,
            num_layers=model.whole("attention_num_transformer_units", 1),
            num_heads=heads,
            memory_length=model.whole("attention_memory_inference", 50),
            feedforward_units=model.whole("attention_position_wise_mlp_dim", 32),
            gate_bias=model.number("attention_init_gru_gate_bias", 2.0),
        )
        model.ask("lstm_cell_size", "lstm_use_prev_action", "lstm_use_prev_reward")

    def _with_previous(self, nodes: Nodes, action: str, reward: str) -> None:
        """Let the memory read the last action and reward as well."""
        model, previous = self.model, []
        for key, what in ((action, "action"), (reward, "reward")):
            count = model[key] if model.has(key) else 0
            if count not in (False, True, 0, 1):
                model.refuse(key, f"{count!r} steps back; only the last one can be read")
            if count:
                previous.append(what)
        if not previous:
            return
        self.out.spec["previous"] = previous
        names = [
            f"previous/{ACTION}" if what == "action" else "previous/reward" for what in previous
        ]
        nodes.concat("with_previous", [nodes.last, *names])

    def _head_layers(self, nodes: Nodes) -> None:
        """The layers before the last one of policy and value, of the new stack."""
        if self.is_old:
            return
        model = self.model
        units = model.wholes("head_fcnet_hiddens", [])
        activation = self._activation("head_fcnet_activation", "relu")
        norm = "layer" if model.flag("head_fcnet_use_layernorm", False) else None
        init = self._initializer("head_fcnet")
        if units:
            nodes.dense("head", units, activation, [], norm=norm, init=init)

    def _write(self, policy: Nodes, critic: Nodes, shares: list[str]) -> None:
        init: dict[str, Any] = {}
        if self.is_old:
            has_memory = self.has_lstm or self.has_attention
            init = {"init": "xavier_uniform" if has_memory else _LAST}
        self.out.spec["policy"] = {
            "graph": policy.graph,
            "heads": {"in": policy.end(), **init},
            **({"shares": shares} if shares else {}),
        }
        reads = critic.last if critic.last != critic.start else critic.end()
        self.out.spec["critic"] = {"graph": critic.graph, "heads": {"in": reads, **init}}

    def _distribution(self) -> None:
        model = self.model
        limit = min(
            model.number("log_std_clip_param", 20.0) if _is_finite(model) else _UNLIMITED,
            _UNLIMITED,
        )
        log_std = "learned" if model.flag("free_log_std", False) else "state"
        rule = {"space": "box", "distribution": "gaussian", "log_std": log_std}
        self.out.spec["distributions"] = [
            {**rule, "log_std_range": [-limit, limit], "optional": True}
        ]

    # --- words ----------------------------------------------------------------------------------------------------

    def _activation(self, key: str, default: str) -> str:
        model = self.model
        value = model.get(key, default)
        word = "identity" if value is None else _ACTIVATIONS.get(str(value).lower())
        if word is None:
            model.refuse(key, f"there is no activation {value!r}{hint(value, _ACTIVATIONS)}")
        return word or "identity"

    def _initializer(self, layers: str) -> Any:
        """Our ``init`` for the ``layers`` of the new stack; None for torch's own."""
        model, key = self.model, f"{layers}_kernel_initializer"
        for ending in ("kernel_initializer", "bias_initializer"):
            for more in ("", "_kwargs"):
                model.has(f"{layers}_{ending}{more}")  # a null says nothing
        if not model.has(key):
            return None
        name = str(model[key]).rpartition(".")[2]
        if name not in _INITIALIZERS:
            model.refuse(key, f"there is no initialiser {name!r}{hint(name, _INITIALIZERS)}")
            return None
        known: dict[str, Any] = {}
        if model.has(f"{key}_kwargs"):
            settings = model.below(f"{key}_kwargs")
            known = {k: settings.plain(k) for k in ("gain", "nonlinearity") if settings.has(k)}
        return {_INITIALIZERS[name]: known} if known else _INITIALIZERS[name]


def _is_filter(value: object) -> TypeGuard[list[Any]]:
    """Whether it is ``[channels, kernel, stride]``, perhaps with a padding."""
    if not isinstance(value, list) or len(value) not in (3, 4) or not _is_size(value[0]):
        return False
    both = [each if isinstance(each, list) else [each] for each in value[1:3]]
    sizes = all(len(axes) in (1, 2) and all(map(_is_size, axes)) for axes in both)
    return sizes and value[3:] in ([], ["same"], ["valid"])


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _is_finite(model: Mapping[str, Any]) -> bool:
    value = model.get("log_std_clip_param", 20.0)
    return isinstance(value, int | float) and value != float("inf")
