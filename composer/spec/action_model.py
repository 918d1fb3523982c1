"""The key `model`: an action model of Hugging Face's transformers in the place of policy and critic, as typed data.

Read are our own keys and those that RLinf's files have for the same things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from composer.errors import Path
from composer.spec.fields import Fields, is_count
from composer.spec.keys import TOP_PLACES
from perception_blocks.words import describe, did_you_mean, listing

__all__ = ["MODEL_KEYS", "ActionModelSpec", "LoraSpec", "ValueHeadSpec", "read_action_model"]

INPUTS = {"image": "main_images", "text": "task_descriptions"}  # RLinf's names of observations
MODEL_PRECISIONS = {
    **dict.fromkeys(("bf16", "bf16-mixed"), "bfloat16"),
    **dict.fromkeys(("16", "fp16", "16-mixed"), "float16"),
    **dict.fromkeys(("32", "fp32", "32-true"), "float32"),
}
ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
HEAD_ACTIVATIONS = ("gelu", "relu", "tanh")
SIZES = ("hidden_size", "vocab_size", "image_size")
LORA_KEYS = ("rank", "alpha", "targets", "path")
VALUE_HEAD_KEYS = ("hidden_units", "activation")
RLINF_RANK = 32
MODEL_KEYS = ("model_type", "model_path", "config", "inputs", "action_token_len")
MODEL_KEYS += ("action_chunks_len", "unnorm_key", "precision", "attn_implementation", "value_head")
MODEL_KEYS += ("lora", "freeze", "micro_batch_size", "val_micro_batch_size", *SIZES)
MODEL_KEYS += ("gradient_checkpointing", "low_cpu_mem_usage", "trust_remote_code")
MODEL_KEYS += ("is_lora", "lora_rank", "lora_path", "add_value_head")
_SAMPLING = "it is an argument of predict_action_batch"
# Keys of RLinf's files that have no place here, and the way out.
ELSEWHERE = {
    "num_action_chunks": "write 'action_chunks_len'",
    "action_dim": "it follows from the statistics; write 'action_token_len', the number of tokens",
    "ckpt_path": "load weights with model.load_weights(path)",
    "vh_mode": "the value head always reads the features of the last token of the prompt; leave it out",
    "policy_setup": "the environment and the statistics say it; leave it out",
    "add_q_head": "there is no such head; leave it out",
    **dict.fromkeys(("do_sample", "temperature", "top_k", "top_p"), _SAMPLING),
}


@dataclass(frozen=True)
class LoraSpec:
    """``targets`` None: the usual linear layers. ``weights`` is a file or folder with adapters to begin with."""

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    weights: str | None = None
    key: str = "lora"  # where it was asked for


@dataclass(frozen=True)
class ValueHeadSpec:
    hidden_units: tuple[int, ...] = (512, 128)
    activation: str = "gelu"


@dataclass(frozen=True)
class ActionModelSpec:
    """Exactly one of ``model_path`` (a folder) and ``config`` (settings, for weights that are drawn) is not None.

    ``inputs`` says which observation is the "image" and which the "text". ``precision`` is a dtype of torch's, or None:
    that of the folder. ``sizes`` are those that the configuration must have.
    """

    path: Path
    model_type: str
    model_path: str | None = None
    config: dict[str, Any] | None = None
    inputs: dict[str, str] = field(default_factory=lambda: dict(INPUTS))
    action_token_len: int | None = None
    action_chunks_len: int = 1
    unnorm_key: str | None = None
    precision: str | None = None
    attention: str = "auto"
    value_head: ValueHeadSpec | None = ValueHeadSpec()
    lora: LoraSpec | None = None
    freeze: tuple[str, ...] = ()
    micro_batch_size: int | None = None
    val_micro_batch_size: int | None = None
    gradient_checkpointing: bool = False
    sizes: dict[str, Any] = field(default_factory=dict)


def read_action_model(fields: Fields) -> ActionModelSpec | None:
    """What the mapping says; None where it cannot be told, as `Fields` has noted."""
    return _Parser(fields).spec()


class _Parser:
    def __init__(self, fields: Fields) -> None:
        self.fields = fields

    def spec(self) -> ActionModelSpec | None:
        fields = self.fields
        meant = self._keys()
        self._no_remote_code()
        fields.boolean("low_cpu_mem_usage")  # a model is always checked before it has weights
        model_type = fields.text("model_type")
        if "model_type" not in fields and "model_type" not in meant:
            fields.problems.add(
                fields.path, "'model' needs a 'model_type', as register_hf names it"
            )
        model_path, config = self._origin(meant)
        spec = ActionModelSpec(
            fields.path,
            model_type or "",
            model_path=model_path,
            config=config,
            inputs=self._inputs(),
            action_token_len=self._count("action_token_len"),
            action_chunks_len=self._count("action_chunks_len") or 1,
            unnorm_key=self._text_or_null("unnorm_key"),
            precision=self._precision(),
            attention=self._attention(),
            value_head=self._value_head(),
            lora=self._lora(),
            freeze=fields.texts("freeze"),
            micro_batch_size=self._count("micro_batch_size"),
            val_micro_batch_size=self._count("val_micro_batch_size"),
            gradient_checkpointing=fields.boolean("gradient_checkpointing"),
            sizes=self._sizes(),
        )
        return spec if model_type and (model_path or config is not None) else None

    def _keys(self) -> set[str]:
        for key, advice in ELSEWHERE.items():
            if key in self.fields:
                message = f"{key!r} is not a key of a model here: {advice}"
                self.fields.note(key, message, on_key=True)
        rest = {key: value for key, value in self.fields.values.items() if key not in ELSEWHERE}
        known = Fields(rest, self.fields.path, self.fields.problems)
        return known.unknown(MODEL_KEYS, "a model", places=TOP_PLACES)

    def _no_remote_code(self) -> None:
        if self.fields.boolean("trust_remote_code"):
            message = "'trust_remote_code' cannot be true: code of a checkpoint never runs; "
            message += "register its classes in a module that you allow"
            self.fields.note("trust_remote_code", message)

    def _origin(self, meant: set[str]) -> tuple[str | None, dict[str, Any] | None]:
        """Where weights and configuration come from."""
        fields = self.fields
        model_path = fields.text("model_path")
        config = None
        if "config" in fields:
            config = fields.mapping("config", "a mapping of the model type's own settings")
        if "model_path" in fields and "config" in fields:
            message = "'model_path' and 'config' exclude one another; keep one of them"
            fields.note("config", message, on_key=True)
        elif not {"model_path", "config"} & {*fields.values, *meant}:
            message = "'model' needs a 'model_path', a local folder, or a 'config' for new weights"
            fields.problems.add(fields.path, message)
        return model_path, config

    def _inputs(self) -> dict[str, str]:
        if "inputs" not in self.fields:
            return dict(INPUTS)
        example = "a mapping such as {image: main_images, text: task_descriptions}"
        given = self.fields.text_mapping("inputs", example)
        if self.fields.values["inputs"] == {}:
            self.fields.note("inputs", "'inputs' is empty; name an image, a text or both")
        Fields(given, self.fields.at("inputs"), self.fields.problems).unknown(
            tuple(INPUTS), "'inputs'"
        )
        return given

    def _precision(self) -> str | None:
        value = self.fields.values.get("precision")
        word = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
        if word in MODEL_PRECISIONS:
            return MODEL_PRECISIONS[word]
        if value is not None and word != "null":
            near = did_you_mean(word, list(MODEL_PRECISIONS)) if word else ""
            expected = f"one of {', '.join(MODEL_PRECISIONS)}, or null for that of the folder"
            message = f"'precision' must be {expected}, got {describe(value)}" + near
            self.fields.note("precision", message)
        return None

    def _attention(self) -> str:
        word = self.fields.text("attn_implementation") if self._has("attn_implementation") else None
        if word is None or word in ATTENTION:
            return word or "auto"
        if "/" in word:
            message = f"'attn_implementation' names {word!r}, code that would be downloaded; "
            message += f"there is {listing(ATTENTION)}"
        else:
            near = did_you_mean(word, ATTENTION) or f"; there is {listing(ATTENTION)}"
            message = f"'attn_implementation' names {word!r}, which is not known" + near
        self.fields.note("attn_implementation", message)
        return "auto"

    def _value_head(self) -> ValueHeadSpec | None:
        if "add_value_head" in self.fields and self._has("value_head"):
            message = "'value_head' and 'add_value_head' exclude one another; keep one of them"
            self.fields.note("add_value_head", message, on_key=True)
        if not self._has("value_head"):
            given = "add_value_head" in self.fields
            wanted = self.fields.boolean("add_value_head") if given else True
            return ValueHeadSpec() if wanted else None
        value = self.fields.values["value_head"]
        if isinstance(value, bool):
            return ValueHeadSpec() if value else None
        inner = self._inner("value_head", "a mapping such as {hidden_units: [512, 128]}, or false")
        if inner is None:
            return None
        inner.unknown(VALUE_HEAD_KEYS, "a value head")
        units = inner.values.get("hidden_units", [512, 128])
        if not isinstance(units, list) or not all(map(is_count, units)):
            inner.wrong("hidden_units", "a list of whole numbers of at least 1")
            units = []
        activation = inner.text("activation") or "gelu"
        if activation not in HEAD_ACTIVATIONS:
            near = did_you_mean(activation, HEAD_ACTIVATIONS)
            message = f"'activation' must be one of {listing(HEAD_ACTIVATIONS)}, got {activation!r}"
            message += near
            inner.note("activation", message)
        return ValueHeadSpec(tuple(units), activation)

    def _lora(self) -> LoraSpec | None:
        fields = self.fields
        is_lora = fields.boolean("is_lora")
        rank, path = self._count("lora_rank"), self._text_or_null("lora_path")
        if not self._has("lora"):
            return LoraSpec(rank or RLINF_RANK, weights=path, key="is_lora") if is_lora else None
        if "is_lora" in fields:
            message = "'lora' and 'is_lora' exclude one another; keep one of them"
            fields.note("is_lora", message, on_key=True)
        inner = self._inner("lora", "a mapping such as {rank: 8, targets: [q_proj, v_proj]}")
        if inner is None:
            return None
        inner.unknown(LORA_KEYS, "'lora'")
        alpha: Any = inner.values.get("alpha")
        if alpha is not None and not _is_positive(alpha):
            inner.wrong("alpha", "a number above 0", _is_positive)
        targets = inner.texts("targets") if inner.values.get("targets") is not None else None
        if targets == () and inner.values["targets"] == []:
            inner.note("targets", "'targets' is empty; name modules, or leave it out")
        path = inner.text("path") if inner.values.get("path") is not None else None
        return LoraSpec(inner.count("rank", 8), alpha, targets, path)

    def _sizes(self) -> dict[str, Any]:
        sizes: dict[str, Any] = {}
        for key in SIZES:
            value = self.fields.values.get(key)
            if value is None:
                continue
            is_pair = key == "image_size" and isinstance(value, list) and len(value) == 2
            if all(map(is_count, value if is_pair else [value])):  # type: ignore[arg-type]
                sizes[key] = value
            else:
                two = ", or two of them" if key == "image_size" else ""
                self.fields.wrong(key, f"a whole number of at least 1{two}")
        return sizes

    def _has(self, key: str) -> bool:
        return self.fields.values.get(key) is not None

    def _count(self, key: str) -> int | None:
        return self.fields.count(key, 1) if self._has(key) else None

    def _text_or_null(self, key: str) -> str | None:
        return self.fields.text(key) if self._has(key) else None

    def _inner(self, key: str, expected: str) -> Fields | None:
        value = self.fields.values[key]
        if not isinstance(value, Mapping):
            self.fields.wrong(key, expected)
            return None
        return Fields(value, self.fields.at(key), self.fields.problems)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**63
