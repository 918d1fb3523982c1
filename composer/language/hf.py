"""Models of Hugging Face's transformers by name, and their local folders, of which no code ever runs.

Nothing is downloaded: a folder is data (JSON and safetensors), and whatever in it would lead elsewhere or name code is
refused before the library sees it.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PretrainedConfig,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from composer.language.action_bins import ActionBins
from perception_blocks.blocks.model_folder import ModelFolder, misfits, reason_of
from perception_blocks.init import derive_seed
from perception_blocks.port import format_shape
from perception_blocks.random_states import random_states_kept
from perception_blocks.registry import NameTakenError
from perception_blocks.words import cut, describe, did_you_mean, hint

__all__ = ["VALUE_HEAD_FILE", "HfFolder", "HfModel", "config_problems", "make_config", "make_model"]
__all__ += ["model_type_of", "parameters_on_meta", "quiet", "register_hf"]

MOST_LABELS = 100_000  # a configuration makes a name for each
# Keys that say what a call returns, which is ours to say.
_OF_CALLS = ("output_hidden_states", "output_attentions", "return_dict")
_IGNORED = r"rotary_emb\.inv_freq$"  # which files of earlier versions have


class HfModel(NamedTuple):
    """The classes of a model type. ``bins`` makes the bins: ``bins(statistics, n_bins, vocab_size)``."""

    config: Any
    model: Any
    image_processor: Any = None
    processor: Any = None
    bins: Any = ActionBins


_MODELS: dict[str, HfModel] = {}


def register_hf(
    model_type: str,
    *,
    config: Any,
    model: Any,
    image_processor: Any = None,
    processor: Any = None,
    bins: Any = None,
    replace: bool = False,
) -> None:
    """Make the classes of a model known, here and to transformers' ``AutoConfig`` and the like.

    ``model`` is a class of transformers with ``generate``. ``bins`` is an `ActionBins`, or a function of the same
    arguments. A processor without a folder is made by its ``from_config(config)``.

    Raises NameTakenError where the name is that of other classes and ``replace`` is not set, and ValueError for classes
    that do not fit.
    """
    if not isinstance(model_type, str) or not model_type:
        raise ValueError(f"register_hf takes a model type first, got {describe(model_type)}")
    got = getattr(config, "model_type", None)
    if got != model_type:
        raise ValueError(
            f"the config {config.__name__!r} has model_type {got!r}, not {model_type!r}; they must be equal"
        )
    if not callable(getattr(model, "generate", None)):
        raise ValueError(
            f"the model {model.__name__!r} has no generate; derive it from GenerationMixin"
        )
    entry = HfModel(config, model, image_processor, processor, bins or ActionBins)
    taken = _MODELS.get(model_type)
    if not replace:
        if taken is not None and not _is_same(taken, entry):
            raise _taken(model_type, taken.config)
        others = _known_to_transformers(model_type)
        if taken is None and others not in (None, config):
            raise _taken(model_type, others)
    AutoConfig.register(model_type, config, exist_ok=True)
    if not config.__module__.startswith("transformers."):
        AutoModelForImageTextToText.register(config, model, exist_ok=True)
        if image_processor is not None:
            AutoImageProcessor.register(
                config, image_processor_classes={"pil": image_processor}, exist_ok=True
            )
        if processor is not None:
            AutoProcessor.register(config, processor, exist_ok=True)
    _MODELS[model_type] = entry


def _known_to_transformers(model_type: str) -> Any:
    try:
        return CONFIG_MAPPING[model_type]  # which is lazy: `in` and `get` see nothing
    except KeyError:
        return None


def _is_same(first: HfModel, second: HfModel) -> bool:
    """Whether both are the same classes; a module that is imported again defines new ones of the same names."""
    return [*map(_address, first)] == [*map(_address, second)]


def _address(value: Any) -> tuple[object, object]:
    return getattr(value, "__module__", None), getattr(value, "__qualname__", None)


def _taken(model_type: str, by: Any) -> NameTakenError:
    return NameTakenError(
        f"the model type {model_type!r} is taken by {by.__module__}.{by.__qualname__}; "
        "choose another, or pass replace=True"
    )


def model_type_of(name: str) -> HfModel:
    """The classes of a model type. Raises ValueError for a name that is not registered."""
    if name not in _MODELS:
        advice = "; a module that calls register_hf for it belongs under 'extensions', and in allow"
        near = did_you_mean(name, _MODELS) or (hint(name, _MODELS) if _MODELS else "")
        raise ValueError(f"unknown model type {name!r}{near or advice}")
    return _MODELS[name]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, transformers draws no bars and warns of nothing, such as special tokens that no model here reads."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    bars_of_hub = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # and those of the hub
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if bars and not bars_of_hub:
            disable_progress_bars()


# --- configurations ---------------------------------------------------------------------------------------------------


def config_problems(
    cls: Any, values: Mapping[str, Any], where: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, message) of every key that ``cls`` does not know: transformers takes them without a word."""
    known = _known_keys(cls)
    parts = getattr(cls, "sub_configs", {})
    for key, value in values.items():
        if key == "model_type" and value == cls.model_type:
            continue
        if key not in known:
            near = did_you_mean(key, known) or f"; it is no setting of {cls.__name__}"
            message = f"{key!r} is not a setting of the model type {cls.model_type!r}{near}"
            yield (*where, key), message
        elif isinstance(value, Mapping) and getattr(parts.get(key), "model_type", None):
            yield from config_problems(parts[key], value, (*where, key))


def _known_keys(cls: Any) -> list[str]:
    """What a configuration may be given: declared fields, arguments of ``__init__``, and other names of both."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        names |= dict.fromkeys(inspect.get_annotations(base))
        if "__init__" in vars(base):
            names |= dict.fromkeys(inspect.signature(base.__init__).parameters)
    names |= dict.fromkeys(getattr(cls, "attribute_map", {}))
    return [n for n in names if not n.startswith("_") and n not in ("self", "kwargs", "args")]


def make_config(cls: Any, values: Mapping[str, Any]) -> Any:
    """The configuration. Raises ValueError with what the library says of values that only it knows."""
    try:
        _refuse_odd_keys(values)
        with quiet():
            config = cls.from_dict({k: v for k, v in values.items() if k not in _OF_CALLS})
        if not isinstance(config.get_text_config(), PretrainedConfig):
            raise ValueError("the settings of its text model must be a mapping")
        if config.is_encoder_decoder:
            raise ValueError("it is an encoder with a decoder, and an action model is a decoder")
    except Exception as error:  # StrictDataclassError is an Exception and nothing more
        raise ValueError(f"{cls.__name__} cannot be made: {reason_of(error)}") from error
    return config


def _refuse_odd_keys(values: Mapping[str, Any]) -> None:
    """The library would put anything in the place of its methods, and make as many names as there are labels."""
    for key, value in values.items():
        if callable(getattr(PretrainedConfig, key, None)):
            raise ValueError(f"{key!r} is a method, not a setting")
        if key == "num_labels" and isinstance(value, int) and value > MOST_LABELS:
            raise ValueError(f"'num_labels' is {value}, more than {MOST_LABELS:,}")
        if key.endswith("_config") and isinstance(value, Mapping):
            _refuse_odd_keys(value)


# --- folders ----------------------------------------------------------------------------------------------------------


class HfFolder(ModelFolder):
    """A local folder of a model: ``config.json``, safetensors files and the files of its processor.

    Raises SettingsError for the ``setting`` where the folder is not such a one, or names code.
    """

    def __init__(self, path: str, setting: str = "model_path") -> None:
        super().__init__(path, setting)
        self.refuse_code()
        self.files = [file for file in self.files if file.name != VALUE_HEAD_FILE]

    def values(self, model_type: str) -> dict[str, Any]:
        """The content of config.json; raises SettingsError where it is of another type."""
        stated = self._values.get("model_type")
        if stated != model_type:
            raise self._wrong(f"{self.path!r} is of the model type {stated!r}, not {model_type!r}")
        return {key: value for key, value in self._values.items() if not key.startswith("_")}

    def statistics(self) -> dict[str, Any]:
        """Those that stand in a file of their own, as OpenVLA has it."""
        file = self.place / "dataset_statistics.json"
        return self._json(file) if file.is_file() else {}

    def check_whole(self, model: nn.Module) -> None:
        """Raise SettingsError with every tensor that is missing, of another shape, or of another architecture."""
        stored, state = self.stored_shapes(), model.state_dict(keep_vars=True)
        names: dict[int, list[str]] = {}  # of each tensor: those that are tied have several
        for name, tensor in state.items():
            names.setdefault(id(tensor), []).append(name)
        missing = [
            f"{aliases[0]} {format_shape(state[aliases[0]].shape)} is missing"
            for aliases in names.values()
            if not stored.keys() & set(aliases)
        ]
        strange = [name for name in stored if name not in state and not _may_be_left(name, model)]
        wrong = [*missing, *(f"{cut(name, 200)} is no tensor of this model" for name in strange)]
        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                for name in sorted(state.keys() & {*opened.keys()}):
                    wrong += misfits(name, opened.get_slice(name), state[name])
        if wrong:
            more = f"; and {len(wrong) - 8} others" if len(wrong) > 8 else ""
            advice = _RENAMED if missing and strange else ""
            raise self._wrong(
                f"{self.path!r} holds weights of another architecture: {'; '.join(wrong[:8])}{more}{advice}"
            )

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into ``model``, whose names are those of the files."""
        state = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, tensor in self.all_tensors():
                if name in state:
                    state[name].copy_(tensor)

    def value_head(self) -> dict[str, Tensor]:
        """The weights of a value head that was saved beside the model; empty without."""
        file = self.place / VALUE_HEAD_FILE
        if not file.is_file():
            return {}
        names = self._names_in(file)
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in names}


VALUE_HEAD_FILE = "value_head.safetensors"
_RENAMED = (
    "; if transformers renames such weights as it reads them, load the folder by its from_pretrained, write it by "
    "save_pretrained(other, save_original_format=False), and name that one"
)


def _may_be_left(name: str, model: Any) -> bool:
    patterns = [_IGNORED, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    return any(re.search(pattern, name) for pattern in patterns)


# --- models -----------------------------------------------------------------------------------------------------------


@quiet()
def make_model(
    entry: HfModel,
    config: Any,
    attention: str,
    seed: int,
    *,
    device: str,
    dtype: torch.dtype,
    draws: bool,
) -> Any:
    """The library's module on "meta" or "cpu", its weights drawn from ``seed`` if it ``draws`` them.

    Random states outside do not move. Each module's weights follow ``seed`` and its name.
    """
    config = copy.deepcopy(config)  # the library writes into it
    initial = contextlib.nullcontext() if draws else no_init_weights()
    with random_states_kept(seed), initial, torch.device(device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # which are refused
        model = entry.model._from_config(config, attn_implementation=attention, dtype=dtype)
    model.tie_weights()
    if draws and device != "meta":
        with torch.no_grad():
            for name, part in reversed([*model.named_modules()]):  # inner ones first
                with random_states_kept(derive_seed(seed, name)):
                    model._init_weights(part)
        model.tie_weights()
    model.generation_config = GenerationConfig()  # a folder's would change what is sampled
    return model.eval()


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within, parameters of new modules hold no memory, and buffers are what their modules compute."""

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return None  # as it is: two modules may share it
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        handle.remove()
