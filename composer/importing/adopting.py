"""The weights of another library's checkpoint in a model: which tensor goes where, and how it is changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import LoadReport, fill
from composer.checkpoint.first_weights import has_nan, is_plain
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.graph.wiring import module_name
from perception_blocks.port import format_shape
from perception_blocks.words import did_you_mean, few_of

__all__ = ["NOT_USED", "adopt_weights"]

Pairs = Iterable[tuple[str, str]]

_TERM = re.compile(r"(?:(log|transposed)\()?([^()\[\]#+]+?)(?:#(\d+))?(\))?(?:\[(\d*):(\d*)\])?")
NOT_USED = "not used: "  # begins the line of a report about tensors of the file
_FIRST_LAYER = "_l0"  # ends the names of our recurrent layers, each of which has one
_NORMALIZERS = ".normalizers."  # before the name of an observation
_MOST_COUNTED = 2**53  # observations
_EPSILON = 1e-8  # that a NormalizeBlock adds to the variance


@dataclass(frozen=True)
class _Statistics:
    """The names that a library has for a running mean and variance, and what it adds before it divides."""

    mean: str
    variance: str
    count: str
    to_variance: float = 0.0
    to_deviation: float = 0.0

    def moments(self, tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
        """Mean, variance and count, the variance such that our division is theirs."""
        mean, variance = (tensors[f"{name}.{key}"] for key in (self.mean, self.variance))
        count = tensors.get(f"{name}.{self.count}", torch.zeros(()))
        is_real = not any(tensor.is_complex() for tensor in (mean, variance, count))
        if not is_real or count.numel() != 1 or not 0 <= float(count) < _MOST_COUNTED:
            raise CheckpointError(
                f"{name!r} holds no running statistics: real numbers, and how many they are of"
            )
        deviation = (variance.double() + self.to_variance).sqrt() + self.to_deviation
        return {
            "mean": mean.double(),
            "var": (deviation.square() - _EPSILON).clamp_min(0.0),
            "count": count.double().round().to(torch.int64).reshape(()),
        }


_STATISTICS = (
    _Statistics("running_mean", "running_var", "count", to_variance=1e-5),  # rl_games
    _Statistics("running_mean", "running_variance", "current_count", to_deviation=1e-8),  # skrl
    _Statistics("_mean", "_var", "count", to_deviation=1e-2),  # rsl_rl
    _Statistics("mean", "var", "count", to_variance=1e-8),  # Stable-Baselines3
)


def adopt_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], pairs: Pairs, *, strict: bool = False
) -> LoadReport:
    """Copy the ``tensors`` of another library into ``model``, by ``pairs`` of a name here and a name there.

    A name is that of a tensor or of a module, with all tensors below it. The name there may also be:

    - ``"mu+sigma"``: one below the other; ``"logits.*"``: the same for ``logits.0``, ``logits.1`` and so on
    - ``"rnn#1"``: the second layer of a recurrent module of torch, whose tensors are called ``weight_ih_l1``
    - ``"log(std)"``: the logarithm; ``"transposed(kernel)"``: the last two axes exchanged
    - ``"qkv[0:64]"``: these rows alone

    A `NormalizeBlock` here takes a running mean and variance, under the names of rl_games, skrl, rsl_rl or
    Stable-Baselines3. Its variance is changed by what the library adds before it divides, so that the outputs are
    equal, except where one of the two clips.

    The report names every tensor of the model that is not met, and every one of ``tensors`` that is not used. Raises
    CheckpointError, and changes nothing, for a pair that names nothing of the model, for weights that are NaN, if no
    weight fits, and with ``strict`` if any tensor of the model is not met. Without ``strict``, of a layer all of its
    tensors are copied or none.

    >>> model, theirs = nn.Sequential(nn.Linear(3, 2)), nn.Linear(3, 2)
    >>> print(adopt_weights(model, {f"actor.{n}": t for n, t in theirs.state_dict().items()}, [("0", "actor")]))
    2 tensors loaded, 0 differences
    """
    adoption = _Adoption(model, tensors)
    for here, theirs in dict.fromkeys(pairs):
        adoption.take(here, theirs)
    adoption.take_tied()
    adoption.refuse_nan()
    report = fill(
        model,
        adoption.adopted,
        strict=strict,
        stored=adoption.origins,
        source="the file",
        advice="strict=False takes over what fits",
    )
    if not report.loaded:
        lines = "\n  ".join(report.skipped)
        raise CheckpointError(
            f"nothing of the weights fits: they are of another network\n  {lines}"
        )
    unused = adoption.unused()
    if unused:
        report.skipped.append(f"{NOT_USED}{few_of(unused)}")
    return report


class _Adoption:
    """Collects, by our names, what the pairs give: ``adopted``, and in ``origins`` the names that it has there."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        wrong = [name for name, tensor in tensors.items() if not is_plain(tensor)]
        if wrong:
            raise CheckpointError(
                f"the weights hold what is no dense tensor of the CPU at {few_of(wrong)}; leave it out"
            )
        self._model, self._tensors = model, tensors
        self._state: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self.adopted: dict[str, Tensor] = {}
        self.origins: dict[str, str] = {}
        self.used: set[str] = set()

    def take(self, here: str, theirs: str) -> None:
        """Adopt what is called ``theirs`` for the tensor, or all tensors of the module, ``here``."""
        names = self._names_below(here)
        part, of_observation, key = here.partition(_NORMALIZERS)
        if not names and of_observation:  # which a module may not be called
            here = f"{part}{_NORMALIZERS}{module_name(key)}"
            names = self._names_below(here)
        if not names:
            modules = (name for name, _ in self._model.named_modules())
            near = did_you_mean(here, [*self._state, *modules])
            raise CheckpointError(f"the model has no tensor or module {here!r}{near}")
        if self._take_statistics(here, theirs, names):
            return
        for name in names:
            self.origins[name] = self._origin(theirs, name[len(here) :])
            parts = [self._part(term, name[len(here) :]) for term in self._terms(theirs)]
            rows = [part for part in parts if part is not None]
            if len(rows) < len(parts):
                continue
            try:
                self.adopted[name] = rows[0] if len(rows) == 1 else torch.cat(rows)
            except RuntimeError as error:
                shapes = ", ".join(format_shape(part.shape) for part in rows)
                raise CheckpointError(
                    f"{theirs!r} cannot be one below the other for {name!r}: {shapes}"
                ) from error

    def _names_below(self, here: str) -> list[str]:
        return [n for n in self._state if n == here or n.startswith(f"{here}.")]

    def _take_statistics(self, here: str, theirs: str, names: Sequence[str]) -> bool:
        """Adopt a running mean and variance for a NormalizeBlock; False for any other module."""
        try:
            block = self._model.get_submodule(here)
        except AttributeError:
            return False
        if not isinstance(block, NormalizeBlock):
            return False
        self.origins |= dict.fromkeys(names, theirs)
        for kind in _STATISTICS:
            needed = [f"{theirs}.{kind.mean}", f"{theirs}.{kind.variance}"]
            if all(name in self._tensors for name in needed):
                self.used |= {name for name in self._tensors if name.startswith(f"{theirs}.")}
                for key, exact in kind.moments(self._tensors, theirs).items():
                    ours = self._state[f"{here}.{key}"]
                    if exact.numel() == ours.numel():
                        exact = exact.reshape(ours.shape)  # rsl_rl's have an axis of size 1
                    self.adopted[f"{here}.{key}"] = value = exact.to(ours.dtype)
                    if key != "count":
                        self.adopted[f"{here}.{key}_rest"] = (exact - value.double()).to(ours.dtype)
                break
        return True

    def _terms(self, theirs: str) -> list[str]:
        """The terms of ``theirs``, with each ``.*`` as all that it stands for."""
        terms: list[str] = []
        for term in theirs.split("+"):
            if term.endswith(".*"):
                start = re.escape(term[:-1])
                matches = {re.match(rf"{start}\d+(?=\.|$)", name) for name in self._tensors}
                numbered = {match[0] for match in matches if match}
                terms += sorted(numbered, key=lambda name: int(name.rpartition(".")[2])) or [term]
            else:
                terms.append(term)
        return terms

    def _part(self, term: str, rest: str) -> Tensor | None:
        """The tensor that ``term`` says, where ``rest`` ends the name of ours; None where it is not there."""
        match = _TERM.fullmatch(term)
        if match is None or bool(match[1]) != bool(match[4]):
            raise CheckpointError(
                f"{term!r} is no name of a tensor; others are 'rnn#1', 'log(std)', 'transposed(kernel)', 'qkv[0:64]' "
                "and, one below the other, 'mu+sigma'"
            )
        change, module, layer, _, first, last = match.groups()
        name = _named(module, layer, rest)
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        self.used.add(name)
        if change is not None:
            tensor = _CHANGES[change](tensor)
        return tensor if first is None else tensor[int(first or 0) : int(last or len(tensor))]

    def _origin(self, theirs: str, rest: str) -> str:
        names = []
        for term in theirs.split("+"):
            match = _TERM.fullmatch(term)
            names.append(_named(match[2], match[3], rest) if match else term)
        return "+".join(names)

    def take_tied(self) -> None:
        """Adopt for each name of a tensor what another name of it gets."""
        by_tensor = {id(self._state[name]): name for name in self.adopted}
        for name, tensor in self._state.items():
            other = by_tensor.get(id(tensor))
            if name not in self.adopted and other is not None:
                self.adopted[name] = self.adopted[other]

    def unused(self) -> list[str]:
        """The names there of tensors that no pair took, under this name or another one of the same numbers."""
        same = {_place(self._tensors[name]) for name in self.used}
        return [
            n
            for n, tensor in self._tensors.items()
            if n not in self.used and _place(tensor) not in same
        ]

    def refuse_nan(self) -> None:
        wrong = [self.origins.get(n, n) for n, tensor in self.adopted.items() if has_nan(tensor)]
        if wrong:
            raise CheckpointError(
                f"the weights are NaN at {few_of(dict.fromkeys(wrong))}: their training has failed; take those of an "
                "earlier step"
            )


def _named(module: str, layer: str | None, rest: str) -> str:
    """The name there of what is called ``rest`` within our module."""
    if layer is not None:
        rest = f"{rest.removesuffix(_FIRST_LAYER)}_l{layer}"
    return f"{module}{rest}"


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Where the numbers of a tensor are: equal for two names of one tensor."""
    start = tensor.data_ptr() if tensor.numel() else id(tensor)
    return start, tensor.shape, tensor.stride(), tensor.dtype


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(-1, -2) if tensor.dim() > 1 else tensor


_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {"log": torch.log, "transposed": _transposed}
