"""The weights of a family of language models as those of `decoder`, both ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from perception_blocks.blocks.families import BESIDE, HEAD, Family, FamilyError, Row, names_of
from perception_blocks.port import Shape, format_shape
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import SettingsError
from perception_blocks.words import few_of

__all__ = ["EMBEDDING", "WeightMap", "decoder_shapes"]

EMBEDDING, POSITIONS = "embed_tokens.weight", "embed_positions.weight"
CRITIC_HEAD = "score.weight"  # theirs of a critic's, in all families: that of a classifier of sequences with one label
CRITIC_ROW: Row = (CRITIC_HEAD, HEAD, "")
MOST_LISTED = 8


class WeightMap:
    """The tensors of a model of ``family`` with ``settings``: their names, ours, and how the one becomes the other.

    Our names are those of a decoder, and ``head.weight``. The ``head`` is that over the tokens, or a critic's of width
    1, which is never tied; None is the body alone, whatever head a file has. ``places`` are those of a file, where it
    has more learned positions than the settings.
    """

    def __init__(
        self,
        family: Family,
        settings: Mapping[str, Any],
        head: Literal["tokens", "value"] | None = "tokens",
        *,
        places: int | None = None,
    ) -> None:
        self.family = family
        self.prefix = family.prefix
        self.tied = bool(settings.get("tied_head")) and head == "tokens"
        self.shapes = decoder_shapes(settings)
        words, width = self.shapes[EMBEDDING]
        if head is not None:
            self.shapes[HEAD] = (1 if head == "value" else words, width)
        self.stored = dict(self.shapes)  # as in their files, but for rows that transpose or split
        if POSITIONS in self.stored and places is not None:
            self.stored[POSITIONS] = (places, width)
        self.rows = dict(self._rows(int(settings["num_layers"]), head))
        self.needed = {name for name in self.shapes if not (self.tied and name == HEAD)}

    def _rows(
        self, layers: int, head: str | None
    ) -> Iterator[tuple[str, tuple[tuple[str, ...], str]]]:
        """By their name: our names, and how. What the configuration leaves out, such as biases, has no row."""
        for theirs, ours, how in (*self.family.table, CRITIC_ROW):
            names = names_of(ours)
            if HEAD in names:
                if head is not None and (theirs == CRITIC_HEAD) != (head == "value"):
                    continue  # of the other kind of model
                names = names if head is not None else ()
            for index in range(layers) if "{}" in theirs else (0,):
                here = tuple(name.format(index) for name in names)
                if not here or self.shapes.keys() & set(here):
                    yield theirs.format(index), (here, how)

    def to_decoder(self, tensors: Mapping[str, Tensor], *, whole: bool = True) -> dict[str, Tensor]:
        """Tensors by their names as tensors by ours; without ``whole`` some may be missing.

        Raises FamilyError with every name in no row, every tensor of another shape and, if ``whole``, all that are
        missing.
        """
        self.check({name: tuple(tensor.shape) for name, tensor in tensors.items()}, whole=whole)
        return self.all_converted(tensors.items())

    def all_converted(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """`to_decoder` of tensors that have been checked."""
        result = {our: part for pair in tensors for our, part in self.converted(*pair)}
        if self.tied and HEAD in result:
            table, head = result.get(EMBEDDING), result.pop(HEAD)
            if table is not None and not torch.equal(head, table):
                self._raise(["the head differs from the embedding, to which the config ties it"])
        return result

    def check(self, shapes: Mapping[str, Shape], *, whole: bool = True) -> None:
        """Raise FamilyError unless tensors of these ``shapes``, by their names, are those of the model."""
        problems, seen = [], set()
        for name, shape in shapes.items():
            theirs = self.their_name(name)
            if theirs is None:
                problems.append(f"{name} is in no row")
            elif theirs in seen:
                problems.append(f"{name} is there twice, with and without its prefix")
            elif wrong := self._problem_of_shape(theirs, shape):
                problems.append(wrong)
            seen.add(theirs)
        if whole:
            problems += self._missing(
                {our for theirs in seen & self.rows.keys() for our in self.rows[theirs][0]}
            )
        self._raise(problems)

    def converted(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """One of their tensors as those that it is here; it has been checked, but for its dtype."""
        theirs = self.their_name(name)
        names, how = self.rows[theirs] if theirs is not None else ((), "")
        if not names:
            return
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            self._raise(
                [f"{name} is {tensor.dtype}, not floating-point numbers of at least 16 bits"]
            )
        tensor = tensor.t() if "t" in how.split() else tensor
        parts = tensor.split([self.stored[our][0] for our in names])  # type: ignore[misc]
        for our, part in zip(names, parts):
            yield our, part[: self.shapes[our][0]].contiguous()

    def from_decoder(
        self, tensors: Mapping[str, Tensor], *, whole: bool = True
    ) -> dict[str, Tensor]:
        """The other way round. A tied head has no tensor of its own, as in files of ``save_pretrained``."""
        problems = [f"{name} is in no row" for name in tensors if name not in self.shapes]
        for name in [name for name in tensors if name in self.shapes]:
            if tuple(tensors[name].shape) != self.shapes[name]:
                got, needed = map(format_shape, (tensors[name].shape, self.shapes[name]))
                problems.append(f"{name} is {got}, its config needs {needed}")
        if whole:
            problems += self._missing(tensors)
        result: dict[str, Tensor] = {}
        for theirs, (names, how) in self.rows.items():
            here = [name for name in names if name in tensors]
            if not here or (self.tied and names == (HEAD,)):
                continue
            if len(here) < len(names):
                lacking = few_of(name for name in names if name not in tensors)
                problems.append(f"{theirs} needs {lacking} too")
            elif not problems:
                joined = torch.cat([tensors[n] for n in names]) if names[1:] else tensors[names[0]]
                result[theirs] = (joined.t() if "t" in how.split() else joined).contiguous()
        self._raise(problems)
        return result

    def their_name(self, name: str) -> str | None:
        """The name in the table for one in a file, which has no prefix in a file of the body alone."""
        prefixed = self.prefix + name
        return name if name in self.rows else prefixed if prefixed in self.rows else None

    def our_names(self, name: str) -> tuple[str, ...]:
        """What one of their tensors is here; nothing for a constant, and for a head that is left out."""
        theirs = self.their_name(name)
        return () if theirs is None else self.rows[theirs][0]

    def has_meaning(self, name: str) -> bool:
        """Whether one of their tensors is any of ours."""
        return bool(self.our_names(name))

    def _problem_of_shape(self, theirs: str, shape: Shape) -> str | None:
        names, how = self.rows[theirs]
        if not names:
            return None
        parts = [self.stored[name] for name in names]
        needed: Shape = (sum(part[0] or 0 for part in parts), *parts[0][1:])
        needed = needed[::-1] if "t" in how.split() else needed
        if shape == needed:
            return None
        return f"{theirs} is {format_shape(shape)}, its config needs {format_shape(needed)}"

    def _missing(self, ours: Iterable[str]) -> list[str]:
        """What is not among ``ours``, by their names, or by ours where no row has it."""
        lost = self.needed - set(ours)
        problems = []
        for theirs, (names, _) in self.rows.items():
            if lost & set(names):
                problems.append(f"{theirs} is missing")
                lost -= set(names)
        return problems + [f"no row has {name} of the decoder" for name in sorted(lost)]

    def _raise(self, problems: Sequence[str]) -> None:
        if problems:
            more = len(problems) - MOST_LISTED
            others = f"; and {more} others" if more > 0 else ""
            raise FamilyError(
                f"the weights are not those of this model of the family {self.family.name!r}: "
                f"{'; '.join(problems[:MOST_LISTED])}{others}"
            )


def decoder_shapes(settings: Mapping[str, Any]) -> dict[str, Shape]:
    """The tensors of a decoder by their names; nothing is allocated. Raises FamilyError where they do not fit."""
    sizes = {key: value for key, value in settings.items() if key not in BESIDE}
    try:
        with torch.device("meta"):
            block = BLOCKS.get("decoder")([(None,)], **sizes)
    except SettingsError as error:
        raise FamilyError(str(error)) from error
    return {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()}
