"""The open documents of a language server, each with what is known of its newest text."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from pygls.workspace import PositionCodec

from composer.editor.checked import Checked, Outline, Question
from composer.editor.checker import LIMIT, Checker, CheckStoppedError
from composer.editor.client_settings import ClientSettings
from composer.editor.completion import Known
from composer.editor.names import Names
from composer.editor.places import Places
from composer.errors import Problem
from composer.source.files import MAX_BYTES, display_name, real_path
from composer.source.parse import BOM

__all__ = ["Document", "Documents", "is_spec"]

PAUSE = 0.06  # seconds without another change until a text is checked
_SUFFIX = ".composer.yaml"
_COMMENT = re.compile(r"\s*#\s*composer:")
_KINDS = "policy|model|network|calls"  # of specs, by a key that each has
_CHANGED = "policy|critic|model|params|calls|models|data"  # in what extends another


def is_spec(text: str, path: str) -> bool:
    """Whether a YAML file is a spec: by its name, by a comment ``# composer:`` in its first lines, or by its keys.

    Those are ``version`` and ``policy`` (or ``model``, ``network``, ``calls``), or ``extends`` and a part that it
    changes.
    """
    text = text.removeprefix(BOM)
    if path.endswith(_SUFFIX) or any(map(_COMMENT.match, text.split("\n", 3)[:3])):
        return True
    pairs = (("version", _KINDS), ("extends", _CHANGED))
    return any(_has_key(text, first) and _has_key(text, second) for first, second in pairs)


def _has_key(text: str, names: str) -> bool:
    return (
        re.search(rf"""^(\{{\s*|\{{.*[,{{]\s*)?["']?({names})["']?\s*:(\s|$)""", text, re.M)
        is not None
    )


@dataclass
class Document:
    """An open document. ``analysis`` and ``names`` are of ``checked``, a text that was the newest then.

    ``ready`` and ``named`` are set while that is still the newest text and they are known.

    ``known`` is from the last text that could be read: completion does not wait for a check.
    """

    uri: str
    path: str
    places: Places
    version: int | None = None
    is_spec: bool = False
    analysis: Checked | None = None
    checked: Places | None = None
    names: Names = field(default_factory=lambda: Names({}))
    known: Known = field(default_factory=Known)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    named: asyncio.Event = field(default_factory=asyncio.Event)
    pending: asyncio.Task | None = None
    real_path: str = field(init=False)

    def __post_init__(self) -> None:
        self.real_path = real_path(self.path)

    @property
    def text(self) -> str:
        return self.places.text

    @property
    def file(self) -> str:
        """The name of the file in problems."""
        return display_name(self.path)

    @property
    def is_too_long(self) -> bool:
        """Whether it is no spec because of its length: not even its lines are looked at."""
        return len(self.text) > MAX_BYTES

    @property
    def files(self) -> set[str]:
        """The real paths of all files that the spec consists of."""
        files = self.analysis.index.files if self.analysis else ()
        return {self.real_path, *map(real_path, files)}


class Documents:
    """The open documents, and their checks: of several changes in a short time the last one is checked.

    ``checked`` is told of each document after its check, and whether its own text had changed; ``failed`` of a fault of
    this library. A check that takes longer than ``limit`` seconds is ended.
    """

    def __init__(
        self,
        checked: Callable[[Document, bool], None],
        failed: Callable[[Document, Exception], None],
        limit: float = LIMIT,
    ) -> None:
        self.checker = Checker(self._ended, limit)
        self.settings = ClientSettings()
        self.checks = 0
        self._checked, self._failed = checked, failed
        self._by_uri: dict[str, Document] = {}

    def __iter__(self) -> Iterator[Document]:
        return iter(list(self._by_uri.values()))

    def get(self, uri: str) -> Document | None:
        return self._by_uri.get(uri)

    def at(self, path: str) -> Document | None:
        """The open document of a file."""
        real = real_path(path)
        return next((document for document in self if document.real_path == real), None)

    # --- changes ---------------------------------------------------------------------------------------------------

    def opened(
        self, uri: str, path: str, text: str, version: int | None, codec: PositionCodec
    ) -> None:
        if uri in self._by_uri:  # a client that says it twice
            self.closed(uri)
        document = Document(uri, path, Places(text, codec), version)
        self._by_uri[uri] = document
        self._take(document, 0.0)

    def changed(self, uri: str, text: str, version: int | None, codec: PositionCodec) -> None:
        document = self._by_uri.get(uri)
        if document is not None:
            document.places, document.version = Places(text, codec), version
            self._take(document, PAUSE)

    def closed(self, uri: str) -> Document | None:
        document = self._by_uri.pop(uri, None)
        if document is not None:
            if document.pending is not None:
                document.pending.cancel()
            document.ready.set()
            document.named.set()
            self.checker.tell("forget", document.path)
            self.file_changed(document.real_path)
        return document

    def _take(self, document: Document, pause: float) -> None:
        """Check a new text of a document, and again the specs that extend it."""
        document.is_spec = document.is_spec or is_spec(document.text, document.path)
        self._check_later(document, pause, True)
        self.file_changed(document.real_path, pause, document)

    def file_changed(
        self, path: str, pause: float = PAUSE, without: Document | None = None
    ) -> None:
        """Check the specs again that consist of the file among others."""
        for other in self:
            if other is not without and path in other.files:
                self._check_later(other, pause, False)

    def settings_changed(self, settings: ClientSettings) -> None:
        self.settings = settings
        for document in self:
            self._check_later(document, 0.0, False)

    # --- checks ----------------------------------------------------------------------------------------------------

    def _check_later(self, document: Document, pause: float, is_changed: bool) -> None:
        if document.pending is not None:
            document.pending.cancel()
        document.ready.clear()
        document.named.clear()
        document.pending = asyncio.create_task(self._check(document, pause, is_changed))

    async def _check(self, document: Document, pause: float, is_changed: bool) -> None:
        await asyncio.sleep(pause)
        places, question = document.places, self._question(document)
        try:
            checked = await self._answer(document, question)
            document.analysis, document.checked, document.names = checked, places, Names({})
            document.ready.set()
            self._checked(document, is_changed)
            if checked is not None and checked.stage != "check":
                with suppress(CheckStoppedError):
                    document.names = await self.checker.ask("names", question)
                document.known = _known(document, checked)
        except Exception as error:  # a fault of ours, not of the spec
            self._failed(document, error)
        document.ready.set()
        document.named.set()

    async def _answer(self, document: Document, question: Question) -> Checked | None:
        """What is known of a text; None of one that is no spec."""
        if not document.is_spec or document.is_too_long:
            return None
        self.checks += 1
        try:
            return await self.checker.ask("check", question, about=document.real_path)
        except CheckStoppedError as error:
            return _stopped(document, error)

    def _question(self, document: Document) -> Question:
        files = {other.path: other.text for other in self if other is not document}
        return Question(document.text, document.path, files, self.settings)

    def _ended(self, about: object) -> None:
        """Check all others again, of which the new process knows nothing; not those that would end it too."""
        for document in self:
            is_bad = document.analysis is not None and document.analysis.stage == "check"
            if document.real_path != about and not is_bad:
                self._check_later(document, 0.0, False)

    async def newest(self, uri: str, with_names: bool = False) -> Document | None:
        """The document once its newest text is checked; None if it is closed, or no spec."""
        while (document := self._by_uri.get(uri)) is not None:
            done = document.named if with_names else document.ready
            if done.is_set():
                return document if document.analysis is not None else None
            await done.wait()
        return None


def _stopped(document: Document, error: CheckStoppedError) -> Checked:
    """What there is to say of a check that was ended, where the text names the module in which it was."""
    text = f"the check of this spec {error}; change the module or this text to begin it again"
    match = error.module and re.search(rf"\b{re.escape(error.module)}\b", document.text)
    place = None
    if match:
        place = document.places.position(document.places.at(match.start()), document.file)
    return Checked((Problem(text, (), place),), Outline(document.file), stage="check")


def _known(document: Document, checked: Checked) -> Known:
    """What completion knows; of a text that has no names its last ones."""
    names = document.names if document.names.uses else document.known.names
    values = checked.values or document.known.values
    return Known(values, checked.params or document.known.params, names)
