"""One look at a spec: its picture with the box of each node, or what is wrong with it; and the files that it is in."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import NamedTuple

from composer.build.composed_network import compose_network
from composer.dataflow.calls.call_spec import read_experiment
from composer.dataflow.calls.experiment import is_experiment, registered_spec
from composer.dataflow.calls.overview import picture_of
from composer.diagram.html import to_svg
from composer.diagram.picture import Picture
from composer.diagram.render import GivenUp
from composer.diagram.sketch import sketch
from composer.editor.environments import SpaceKeeper, SpacesUnknownError
from composer.editor.given import Settings, given_spaces
from composer.errors import Path, Position, Problem, SpecError
from composer.model import compose
from composer.source.files import read_text
from composer.source.load import Source, load_source
from composer.spaces.lookup import Spaces, recalled_spaces
from composer.spec.model_spec import ModelSpec
from composer.spec.read import read_structure
from composer.spec.top_level import is_network
from composer.summary.table import percent
from composer.trust import import_allowed, import_extensions
from perception_blocks.words import printable

__all__ = ["Drawing", "Look", "Looker", "Place", "Request", "ShownBox"]

SECONDS = 20.0  # that layout may take
_PLACE = re.compile(r"(.+):(\d+):(\d+)", re.DOTALL)


class Request(NamedTuple):
    """What is looked at."""

    file: str
    environment: str | None = None
    allow: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    limits: Mapping[str, int] | None = None


class Place(NamedTuple):
    """Where something is written, counted from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class ShownBox(NamedTuple):
    """A box as the page knows it: by its ``path``; ``said`` is another text where the box says anything else.

    The lines of the spec above a box, and its share of all parameters, are nothing that it says.
    """

    path: str
    title: str
    details: Sequence[tuple[str, str]]
    said: str
    place: Place | None


@dataclass(frozen=True)
class Drawing:
    """The picture of a spec without mistakes; ``boxes`` by their ids in ``svg``."""

    svg: str
    caption: str
    boxes: Mapping[str, ShownBox]
    paths: Mapping[str, str]  # of all nodes, those that are folded into one box too: the id

    @cached_property
    def by_path(self) -> dict[str, ShownBox]:
        return {box.path: box for box in self.boxes.values()}

    def box_of(self, path: Path) -> str | None:
        """The id of the box at, or around, ``path`` of the spec."""
        names = [str(name) for name in path if name not in ("graph", "networks")]
        for end in range(len(names), 1, -1):
            if (box := self.paths.get("/".join(names[:end]))) is not None:
                return box
        return None


@dataclass(frozen=True)
class Look:
    """``drawing`` is None where there are ``problems``, which then are not none."""

    drawing: Drawing | None
    problems: Sequence[Problem]
    files: Sequence[str]
    seconds: float


class Looker:
    """Looks at one spec again and again; the spaces of its environment are kept."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._spaces = SpaceKeeper()

    def close(self) -> None:
        """End what is running for a look in another thread."""
        self._spaces.close()

    def look(self, given_up: GivenUp | None = None) -> Look:
        """Read, compose and draw the spec. Raises nothing for what a user wrote."""
        begun = time.perf_counter()
        request = self._request
        files: Sequence[str] = (request.file,)
        problems: Sequence[Problem] = ()
        drawing = None
        try:
            import_allowed(request.allow)
            source = load_source(
                FilePath(request.file), request.overrides, request.allow, registered_spec
            )
            files = (request.file, *source.files)
            import_extensions(source, request.allow)
            drawing = _drawing(self._picture(source), given_up)
        except SpecError as error:
            problems = error.problems
        except (ValueError, ImportError, SpacesUnknownError) as error:  # of ours, without a place
            problems = [Problem(str(error))]
        except (Exception, SystemExit) as error:  # of a user's class
            problems = [_raised(error)]
        return Look(drawing, problems, files, time.perf_counter() - begun)

    def _picture(self, source: Source) -> Picture:
        """Of a model, an experiment, or a network without actions. Raises as composing does, and for plain PyTorch."""
        _, _, allow, _, limits = self._request
        if is_experiment(source.data):
            return picture_of(read_experiment(source, allow=allow))
        if is_network(source.data):
            return sketch(
                compose_network(source, allow=allow, device="meta", seed=0, limits=limits)
            )
        observation_space, action_space = self._given(source)
        model = compose(
            source,
            observation_space=observation_space,
            action_space=action_space,
            allow=allow,
            device="meta",
            seed=0,
            limits=limits,
        )
        picture = getattr(model, "picture", None)  # of what is no graph of blocks
        return sketch(model) if picture is None else picture()

    def _given(self, source: Source) -> Spaces | tuple[None, None]:
        """The spaces for `compose`, which reports what is wrong with the structure, and with nodes in spite of that."""
        spec, structure = read_structure(source, self._request.allow, limits=self._request.limits)
        if spec is None:
            structure.raise_if_any()
        if spec is None or spec.model is not None:
            return None, None
        try:
            return self._spaces_of(spec)
        except SpecError as error:
            raise SpecError(dict.fromkeys([*structure, *error.problems])) from None
        except SpacesUnknownError:
            structure.raise_if_any()
            raise

    def _spaces_of(self, spec: ModelSpec) -> Spaces:
        """Of the environment that the command names, else the spec, else a comment in it.

        Raises SpecError and SpacesUnknownError.
        """
        file, environment, allow, _, limits = self._request
        if environment is not None:
            known = self._spaces.of_environment(environment, allow, (), None)
        else:
            settings = Settings(allow)
            given = given_spaces(spec, read_text(file, None), file, settings, self._spaces)
            if given.problems:
                raise SpecError(given.problems)
            if given.made is None:
                raise SpacesUnknownError(given.unknown)
            known = given.made
        return recalled_spaces(spec, known.spaces, known.why_not_recalled, limits)


def _raised(error: BaseException) -> Problem:
    """An exception of a user's class, at the place in the spec that its note names."""
    notes = getattr(error, "__notes__", ())
    places = (re.match(r"in (.+):(\d+):(\d+): ", note) for note in notes)
    place = next((Position(m[1], int(m[2]), int(m[3])) for m in places if m), None)
    return Problem("\n".join([f"{type(error).__name__}: {error}", *notes]), position=place)


# --- the picture ------------------------------------------------------------------------------------------------------


def _drawing(picture: Picture, given_up: GivenUp | None) -> Drawing:
    svg = to_svg(picture, SECONDS, given_up)
    reads = {node.name: node.reads for node in picture.dag.nodes}
    boxes = {name: _shown(picture, name, reads.get(name, ())) for name in picture.boxes}
    paths = {path: name for name, box in picture.boxes.items() for path in box.stands_for}
    return Drawing(svg[svg.index("<svg") :], picture.caption, boxes, paths)


def _shown(picture: Picture, name: str, reads: Iterable[str]) -> ShownBox:
    box = picture.boxes[name]
    details = [(printable(key), printable(text)) for key, text in box.details.items()]
    said = [
        box.kind, box.title, *box.lines, *(f"{key}: {text}" for key, text in details if key != "spec"),
        *(_path(picture, read) for read in reads),
    ]  # fmt: skip
    text = "\0".join(said).replace(percent(box.share), "")
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
    match = _PLACE.fullmatch(box.details.get("spec", ""))
    place = Place(match[1], int(match[2]), int(match[3])) if match else None
    return ShownBox(_path(picture, name), printable(box.title), details, digest, place)


def _path(picture: Picture, name: str) -> str:
    """Of an experiment's boxes the names are as good."""
    return picture.boxes[name].path or name
