"""Folders of language models as weights of the block `decoder`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor

from perception_blocks.blocks.families import (
    FAMILIES,
    HEAD,
    FamilyError,
    family_of,
    largest,
)
from perception_blocks.blocks.family_weights import EMBEDDING, WeightMap, decoder_shapes
from perception_blocks.blocks.model_folder import ModelFolder
from perception_blocks.settings import SettingProblem, SettingsError

__all__ = ["FamilyFolder", "read_folder", "with_places"]

BESIDE = ("checkpoint", "family", "vocab_size", "max_length", "tied_head", "lora", "freeze")


class FamilyFolder(ModelFolder):
    """A folder of a language model: its ``family``, and the ``settings`` of a decoder for it.

    ``max_length`` reserves fewer places than the model has. Of several families for one type of model it is the
    ``family``. Raises SettingsError for the ``setting`` that names it, or
    FamilyError where that is None.
    """

    def __init__(
        self,
        path: str,
        setting: str | None = "checkpoint",
        *,
        max_length: int | None = None,
        family: str | None = None,
    ) -> None:
        self._raises_family_error = setting is None
        super().__init__(path, setting or "")
        self.refuse_code()
        try:
            self.family = family_of(self._values, family)
            every = self.family.read(self._values)
            self.settings = with_places(every, max_length)
            decoder_shapes(self.settings)  # whether they fit each other
        except FamilyError as error:
            raise self._wrong(f"{path!r} is no model for a decoder: {error}") from error
        self.places = every["max_length"]

    def weight_map(self, head: Literal["tokens", "value"] | None) -> WeightMap:
        """How its tensors become those of a decoder. Raises for files that do not hold them whole."""
        try:
            weights = WeightMap(self.family, self.settings, head, places=self.places)
            weights.check(self.stored_shapes())
        except FamilyError as error:
            raise self._wrong(f"{self.path!r}: {error}") from error
        self.require_floats(weights.has_meaning)
        return weights

    def body_tensors(self, *, tied: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The weights of a decoder by its own names, one after the other.

        With ``tied`` its embedding is the head too. Raises where the files have another head.
        """
        weights = self.weight_map("tokens" if tied else None)
        wanted = [name for name in self.stored_shapes() if weights.has_meaning(name)]
        if tied:
            ends = [name for name in wanted if {EMBEDDING, HEAD} & {*weights.our_names(name)}]
            try:
                weights.all_converted(self.tensors_called(ends))
            except FamilyError as error:
                raise self._wrong(f"{self.path!r}: {error}") from error
        for name, tensor in self.tensors_called(wanted):
            yield from (pair for pair in weights.converted(name, tensor) if pair[0] != HEAD)

    def _wrong(self, message: str) -> ValueError:
        return FamilyError(message) if self._raises_family_error else super()._wrong(message)


def with_places(settings: Mapping[str, Any], max_length: int | None) -> dict[str, Any]:
    """``settings`` with places for ``max_length`` tokens only. Raises FamilyError where there are not as many."""
    every = settings["max_length"]
    if max_length is None:
        return dict(settings)
    if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 1:
        raise FamilyError(f"'max_length' must be a positive integer, got {max_length!r}")
    if max_length > every:
        raise FamilyError(f"it has places for {every} tokens, and 'max_length' is {max_length}")
    window = settings.get("sliding_window")
    seen = None if window is None or window >= max_length else window
    return {**settings, "max_length": max_length, "sliding_window": seen}


def read_folder(path: str, given: Mapping[str, Any]) -> tuple[FamilyFolder, dict[str, Any]]:
    """The folder ``checkpoint``, and the settings that it and what is ``given`` beside it make together.

    Raises SettingsError for settings that it brings itself, and for an input that it does not know all tokens of.
    """
    brings = "a checkpoint brings its own configuration; leave out"
    problems = [SettingProblem(name, f"{brings} {name!r}") for name in given if name not in BESIDE]
    if problems:
        raise SettingsError(problems)
    family = given.get("family")
    folder = FamilyFolder(path, max_length=given.get("max_length"), family=family)
    settings = folder.settings
    if family is not None and (family not in FAMILIES or FAMILIES.get(family) is not folder.family):
        message = f"'checkpoint': {path!r} is of the family {folder.family.name!r}, not {family!r}"
        problems.append(SettingProblem("checkpoint", message))
    if given.get("tied_head") and not settings["tied_head"]:
        message = f"'tied_head': the head of {path!r} has weights of its own; leave out 'tied_head'"
        problems.append(SettingProblem("tied_head", message))
    words = largest(given.get("vocab_size") or 1)
    if words > settings["vocab_size"]:
        message = f"'checkpoint' knows {settings['vocab_size']} tokens, the input has {words}"
        problems.append(SettingProblem("checkpoint", message))
    if problems:
        raise SettingsError(problems)
    beside = {name: given[name] for name in ("lora", "freeze") if name in given}
    return folder, {**settings, "tied_head": bool(given.get("tied_head")), **beside}
