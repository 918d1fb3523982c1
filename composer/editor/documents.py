"""The open documents of a language server, each with what is known of its newest text."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from pygls.workspace import PositionCodec

from composer.editor.analysis import Analyser, Analysis
from composer.editor.client_settings import ClientSettings
from composer.editor.completion import Known
from composer.editor.names import Names, Written
from composer.editor.places import Places, yaml_lines
from composer.editor.worker import Worker
from composer.errors import SpecError
from composer.source.files import MAX_BYTES, display_name, read_text, real_path
from composer.source.parse import BOM, YamlParser

__all__ = ["LONG", "Document", "Documents", "is_spec"]

PAUSE = 0.06  # seconds without another change until a text is checked
LONG = 30.0  # seconds: longer than an environment may take
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
    """An open document. ``analysis`` is of ``checked``, a text that was the newest then.

    ``known`` is from the last text that could be read: completion does not wait for a check.
    """

    uri: str
    path: str
    places: Places
    version: int | None = None
    is_spec: bool = False
    analysis: Analysis | None = None
    checked: Places | None = None
    known: Known = field(default_factory=Known)
    ready: asyncio.Event = field(
        default_factory=asyncio.Event
    )  # set while the newest text is checked
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
    this library; ``waits`` that the checks do not go on, once until they do.
    """

    def __init__(
        self,
        checked: Callable[[Document, bool], None],
        failed: Callable[[Document, Exception], None],
        waits: Callable[[], None],
    ) -> None:
        self.worker = Worker()
        self.settings = ClientSettings()
        self.checks = 0
        self._checked, self._failed, self._waits = checked, failed, waits
        self._is_said = False  # that the checks do not go on
        self._analyser = Analyser()
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
            self._analyser_forgets(document)
            self.file_changed(document.real_path)
        return document

    def _analyser_forgets(self, document: Document) -> None:
        self.worker.run(lambda: self._analyser.forget(document.path))

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
        document.pending = asyncio.create_task(self._check(document, pause, is_changed))

    async def _check(self, document: Document, pause: float, is_changed: bool) -> None:
        await asyncio.sleep(pause)
        places, analysis = document.places, None
        try:
            if document.is_spec and not document.is_too_long:
                self.checks += 1
                analysis = await self._analysed(document)
            document.analysis, document.checked = analysis, places
            document.ready.set()
            self._checked(document, is_changed)
            if analysis is not None:
                document.known = await self.worker.run(partial(self._known, document, analysis))
        except Exception as error:  # a fault of ours, not of the spec
            document.ready.set()
            self._failed(document, error)

    async def _analysed(self, document: Document) -> Analysis:
        timer = asyncio.get_running_loop().call_later(LONG, self._say_that_it_waits)
        try:
            analysis = await self.worker.run(self._analysis(document))
            self._is_said = False
            return analysis
        finally:
            timer.cancel()

    def _say_that_it_waits(self) -> None:
        if not self._is_said:
            self._is_said = True
            self._waits()

    def _analysis(self, document: Document) -> Callable[[], Analysis]:
        text, path, settings = document.text, document.path, self.settings
        files = {other.path: other.text for other in self if other is not document}
        return lambda: self._analyser.analyse(
            text,
            path,
            allow=settings.allow,
            environment=settings.environment,
            files=files,
            makes_environments=settings.makes_environments,
        )

    async def newest(self, uri: str) -> Document | None:
        """The document once its newest text is checked; None if it is closed, or no spec."""
        while (document := self._by_uri.get(uri)) is not None and not document.ready.is_set():
            await document.ready.wait()
        return document if document is not None and document.analysis is not None else None

    # --- names -----------------------------------------------------------------------------------------------------

    def _known(self, document: Document, analysis: Analysis) -> Known:
        """What completion knows; of a text that has no names its last ones."""
        names = self.names(document, analysis)
        if not names.uses:
            names = document.known.names
        values = analysis.values or document.known.values
        params = analysis.params or document.known.params
        return Known(values, params, names)

    def names(self, document: Document, analysis: Analysis) -> Names:
        """The names in the files of a spec; none where its own text is no YAML."""
        files: dict[str, Written] = {}
        for file in dict.fromkeys([document.file, *analysis.index.files]):
            other = self.at(file)
            try:
                text = other.text if other else read_text(file, None)
                root = YamlParser(file, []).parse(text.removeprefix(BOM))
            except SpecError:
                if file == document.file:
                    return Names({})
                continue
            if root is not None and isinstance(root.value, dict):
                files[file] = Written(root, yaml_lines(text))
        return Names(files)
