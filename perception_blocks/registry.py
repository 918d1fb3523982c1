"""The one class for all names: blocks, activations, functions, initialisers, and composer's own kinds of names."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from perception_blocks.words import describe, hint

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

__all__ = [
    "APART",
    "ACTIVATIONS",
    "BLOCKS",
    "EXTRAS",
    "FUNCTIONS",
    "INITIALIZERS",
    "MissingExtraError",
    "NameTakenError",
    "Registry",
    "UnknownNameError",
    "extra_for",
    "missing_extra",
    "missing_library",
    "needs_extra",
]

# Libraries that only a part of the code needs, by the extra of setup.cfg that brings them (a test compares the two).
EXTRAS = {
    "graph": ["torch_geometric"],
    "pettingzoo": ["pettingzoo", "mpe2", "pymunk", "scipy"],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
    "llm": ["transformers", "tokenizers", "peft"],
    "sb3": ["stable_baselines3", "sb3_contrib"],
    "torchrl": ["torchrl", "tensordict"],
    "rsl-rl": ["rsl_rl"],
    "skrl": ["skrl"],
    "rl-games": ["rl_games"],
    "tianshou": ["tianshou"],
    "rllib": ["tree"],  # which RLlib needs beside ray
    "benchmarl": ["benchmarl"],
    "ray": ["ray"],
    "train": ["matplotlib", "tqdm", "imageio", "imageio_ffmpeg", "tensorboard"],
    "editor": ["pygls", "lsprotocol", "starlette", "uvicorn", "watchfiles"],
    "envs": ["mujoco", "Box2D", "pygame", "ale_py", "minigrid"],
}
APART = ("rllib", "benchmarl")  # extras that do not go together with the others
PLUGIN_GROUP = "perception_blocks.plugins"
T = TypeVar("T")


class UnknownNameError(ValueError):
    """A name that no registry entry has; the message ends with the nearest known name."""


class NameTakenError(ValueError):
    """A name is registered for two things; the message names both."""


class MissingExtraError(ImportError):
    """An entry needs a library that is not installed; the message names the extra that brings it."""


def needs_extra(what: str, libraries: Sequence[str], extra: str) -> str:
    """What is not installed, and the extra that brings it.

    >>> print(needs_extra("TokenEnv", ["torchrl"], "torchrl"))
    TokenEnv needs 'torchrl'; install it with: pip install "perception-composer[torchrl]"
    """
    names = " and ".join(", ".join(map(repr, s)) for s in (libraries[:-1], libraries[-1:]) if s)
    it = "it" if len(libraries) == 1 else "them"
    for apart in APART:
        if apart in extra.split(","):
            return (
                f"{what} needs {names}; install {it} in an environment of its own, from a clone of the repository: "
                f'pip install -c .ci/constraints-{apart}.txt ".[{extra}]"'
            )
    return f'{what} needs {names}; install {it} with: pip install "perception-composer[{extra}]"'


def missing_extra(what: str, error: ImportError, extra: str) -> MissingExtraError:
    """The error for a library that could not be imported."""
    return MissingExtraError(needs_extra(what, [missing_library(error) or extra], extra))


def missing_library(error: BaseException | None) -> str | None:
    """The library whose absence is the error, or led to it, or None."""
    while error is not None:
        if isinstance(error, ImportError) and error.name:
            return error.name.partition(".")[0]
        error = error.__cause__ or error.__context__
    return None


def extra_for(error: Exception, what: str, extra: str | None = None) -> str | None:
    """`needs_extra` where the error is that a library of an extra is not installed, else None.

    ``extra`` is the one to name, where more than one brings that library.
    """
    library = missing_library(error)
    homes = [name for name, libraries in EXTRAS.items() if library in libraries]
    return needs_extra(what, [str(library)], extra or homes[0]) if homes else None


@dataclass
class _Entry:
    """What a name stands for: the object itself, or ``"module:attribute"`` until it is asked for."""

    value: object
    extra: str | None

    @property
    def address(self) -> str:
        return self.value if isinstance(self.value, str) else _address(self.value)


def _address(value: object) -> str:
    return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"


class Registry:
    """Names for classes and functions of one ``kind``.

    >>> SHAPES = Registry("shape")
    >>> @SHAPES.register("circle")
    ... class Circle: ...
    >>> SHAPES.get("circle") is Circle
    True
    >>> SHAPES.get("circel")
    Traceback (most recent call last):
    ...
    perception_blocks.registry.UnknownNameError: unknown shape 'circel'; did you mean 'circle'?
    """

    def __init__(self, kind: str, *, hyphens: bool = False) -> None:
        """With ``hyphens`` a name may have them, as the names of data sets do that others publish."""
        self.kind = kind
        self.hyphens = hyphens
        self._entries: dict[str, _Entry] = {}
        self._names: dict[str, str] = {}  # address -> first name

    def register(
        self, name: str, entry: object = None, *, extra: str | None = None, replace: bool = False
    ) -> Callable[[T], T] | Any:
        """Give ``entry`` (a class, a function or a lazy ``"module:Class"``) a name; a decorator without ``entry``.

        Raises NameTakenError when the name is taken and ``replace`` is not set, TypeError for a name that is no text (a
        decorator without parentheses) and ValueError for one that is no identifier.
        """
        example = f"my_{self.kind.replace(' ', '_')}"
        if not isinstance(name, str):
            raise TypeError(
                f"register takes a {self.kind} name first, such as @register({example!r}), got {describe(name)}"
            )
        if not (name.replace("-", "_") if self.hyphens else name).isidentifier():
            characters = "letters, digits, hyphens" if self.hyphens else "letters, digits"
            raise ValueError(
                f"a {self.kind} name has only {characters} and underscores, and no digit first, such as "
                f"{example!r}; got {name!r}"
            )
        if entry is None:
            return lambda value: self.register(name, value, extra=extra, replace=replace)
        new = _Entry(entry, extra)
        taken = self._entries.get(name)
        if taken is not None and not replace and taken.address != new.address:
            raise NameTakenError(
                f"the {self.kind} name {name!r} of {new.address} is taken by {taken.address}; "
                "choose another, or pass replace=True"
            )
        self._entries[name] = new
        self._names.setdefault(new.address, name)
        return entry

    def register_all(
        self, module: str, entries: dict[str, str], *, extra: str | None = None
    ) -> None:
        """Register several attributes of one module lazily."""
        for name, attribute in entries.items():
            self.register(name, f"{module}:{attribute}", extra=extra)

    def get(self, name: str) -> Any:
        """The entry called ``name``, imported now if it was lazy.

        Raises UnknownNameError for an unknown name, MissingExtraError when its library is not installed.
        """
        self.require(name)
        entry = self._entries[name]
        value = entry.value  # read once: another thread may import it meanwhile
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            try:
                value = entry.value = getattr(importlib.import_module(module), attribute)
            except ImportError as error:
                if entry.extra is None:
                    raise
                raise missing_extra(f"{self.kind} {name!r}", error, entry.extra) from error
        return value

    def require(self, name: str) -> None:
        """Raise UnknownNameError unless ``name`` is known; imports nothing but plugins."""
        if name not in self:
            raise UnknownNameError(f"unknown {self.kind} {name!r}" + self.hint(name))

    def hint(self, name: str) -> str:
        """The end of a message about the unknown ``name``: the nearest known one, or else all of them."""
        return hint(name, self._entries, "known are", kind=self.kind)

    def name_of(self, value: object) -> str | None:
        """The name under which ``value`` is registered, or None."""
        return self._names.get(_address(value))

    def extra_of(self, name: str) -> str | None:
        """The extra that brings the library which ``name`` needs, or None."""
        return self._entries[name].extra

    def module_of(self, name: str) -> str:
        """The module that ``name`` comes from. Imports nothing."""
        return self._entries[name].address.partition(":")[0]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(self._entries)

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}, {len(self._entries)} names)"


_plugins_loaded = False
_PLUGINS = threading.RLock()  # other threads wait for them; a plugin may look for names itself


def load_plugins() -> None:
    """Import what installed packages announce under the entry point group, once.

    A plugin that cannot be imported gives a warning: it must not stop specs that do not use it. A plugin whose name is
    taken raises NameTakenError: the order of imports must not decide what a spec means.
    """
    global _plugins_loaded
    with _PLUGINS:
        if _plugins_loaded:
            return
        _plugins_loaded = True
        for point in _installed_plugins():
            try:
                point.load()
            except NameTakenError as error:
                _plugins_loaded = False  # it is said again, until one of the two is gone
                raise NameTakenError(f"plugin {point.name!r} ({point.value}): {error}") from error
            except Exception as error:
                warnings.warn(
                    f"plugin {point.name!r} ({point.value}) could not be loaded: {error}",
                    stacklevel=2,
                )


def _installed_plugins() -> list[EntryPoint]:
    """The entry points of installed packages; those in the current folder and the script's folder do not count."""
    from importlib import metadata  # takes longer to import than all that reads a spec

    script = getattr(sys.modules.get("__main__"), "__file__", None)
    never = {os.path.realpath(folder) for folder in ("", os.path.dirname(script or ""))}
    folders = [folder for folder in sys.path if os.path.realpath(folder) not in never]
    # By package: Python imports the first.
    points: dict[str, EntryPoints] = {}
    for package in metadata.distributions(path=folders):
        announced = package.entry_points.select(group=PLUGIN_GROUP)
        if announced:
            points.setdefault(package.metadata["Name"], announced)
    return [point for announced in points.values() for point in announced]


BLOCKS = Registry("block")
"""The blocks by the names that specs and `Graph.add` use."""
ACTIVATIONS = Registry("activation")
"""Activations by name."""
FUNCTIONS = Registry("function")
INITIALIZERS = Registry("initialiser")
"""Initialisers by name; `perception_blocks.init` has them as functions."""

# Built-in names are listed here, lazily, so that they can be checked and suggested without importing torch.
_BLOCKS = {  # by file; the class of ``strided_conv`` is ``StridedConvBlock``
    "dense": "dense linear_output flatten_dense",
    "conv": "strided_conv strided_conv_dense vgg_conv vgg_conv_dense nature_cnn nature_cnn_dense",
    "recurrent": "lstm gru lstm_last_step rnn",
    "combine": "concat",
    "reshape": "flatten permute channels_first detach slice multi_index_slice repeat_to_match",
    "embed": "one_hot embedding",
    "scale": "scale_image normalize",
    "preprocess": "preprocess_image",
    "elementwise": "add multiply gated_sum correlation",
    "pooling": "global_average_pooling masked_global_pooling vgg_conv_gap",
    "residual_conv": "impala_cnn res_conv",
    "residual_dense": "residual_dense",
    "noisy": "noisy_dense",
    "features": "fourier_features positional_encoding",
    "attention": "multi_head_attention self_attention_seq cross_attention",
    "attention_conv": "self_attention_conv",
    "transformer": "transformer_encoder",
    "language_model": "transformer",
    "vision_model": "vision_model",
    "sets": "deep_set attention_pooling point_net",
    "windows": "frame_stack",
    "linear_memory": "min_gru lru",
    "gtrxl": "gtrxl",
    "decoder": "decoder",
    "adjacency": "adjacency graph_conv graph_attention",
    "graph_network": "graph_network",
    "message_passing": "message_passing",
    "heads": "dueling value quantile_value categorical_value action_masking",
    "custom": "functional",
}
_EXTRAS_OF_BLOCKS = {"language_model": "llm", "vision_model": "llm", "message_passing": "graph"}
for _file, _names in _BLOCKS.items():
    BLOCKS.register_all(
        f"perception_blocks.blocks.{_file}",
        {name: f"{name.title().replace('_', '')}Block" for name in _names.split()},
        extra=_EXTRAS_OF_BLOCKS.get(_file),
    )

ACTIVATIONS.register_all(
    "torch.nn",
    {
        "celu": "CELU",
        "elu": "ELU",
        "gelu": "GELU",
        "hardtanh": "Hardtanh",
        "hardsigmoid": "Hardsigmoid",
        "hardswish": "Hardswish",
        "identity": "Identity",
        "leaky_relu": "LeakyReLU",
        "mish": "Mish",
        "prelu": "PReLU",
        "relu": "ReLU",
        "relu6": "ReLU6",
        "selu": "SELU",
        "sigmoid": "Sigmoid",
        "silu": "SiLU",
        "softplus": "Softplus",
        "softsign": "Softsign",
        "tanh": "Tanh",
    },
)

FUNCTIONS.register_all(
    "perception_blocks.blocks.custom",
    {name: name for name in ("add", "identity", "mean", "multiply")},
)
_INITIALIZERS = """
    default orthogonal xavier_uniform xavier_normal kaiming_uniform kaiming_normal fan_in_uniform trunc_normal
    normc zeros
"""
INITIALIZERS.register_all("perception_blocks.init", {name: name for name in _INITIALIZERS.split()})
