"""An editor without a screen: it speaks to `composer lsp` over stdio, by pygls' client."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from lsprotocol import types as lsp
from pygls.lsp.client import LanguageClient

from tests.helpers.paths import ROOT

T = TypeVar("T")
LIMIT = 60  # seconds
EVERYTHING = lsp.Range(lsp.Position(0, 0), lsp.Position(100_000, 0))


class Editor:
    """One server and its open documents, asked from code that is not asynchronous."""

    def __init__(
        self,
        folder: str,
        settings: dict[str, Any] | None = None,
        *options: str,
        process: int | None = None,
    ) -> None:
        """``process`` is the editor's, for the server; by default this one."""
        self._process = os.getpid() if process is None else process
        self.runner = asyncio.Runner()
        self.client = LanguageClient("test", "1")
        self.diagnostics: dict[str, list[lsp.Diagnostic]] = {}
        self.published: dict[str, int] = {}
        self.messages: list[str] = []
        self.opened: list[str] = []  # pages that the server has opened
        self.texts: dict[str, str] = {}
        self._versions: dict[str, int] = {}
        self._listen()
        self._run(self._start(folder, settings or {}, options))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(coroutine, LIMIT))

    def _listen(self) -> None:
        feature = self.client.feature

        @feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def _(params: lsp.PublishDiagnosticsParams) -> None:
            self.diagnostics[params.uri] = list(params.diagnostics)
            self.published[params.uri] = self.published.get(params.uri, 0) + 1

        @feature(lsp.WINDOW_SHOW_MESSAGE)
        def _(params: lsp.ShowMessageParams) -> None:
            self.messages.append(params.message)

        @feature(lsp.WINDOW_SHOW_DOCUMENT)
        def _(params: lsp.ShowDocumentParams) -> lsp.ShowDocumentResult:
            self.opened.append(params.uri)
            return lsp.ShowDocumentResult(True)

    async def _start(self, folder: str, settings: dict[str, Any], options: tuple[str, ...]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "composer", "lsp", *options]
        await self.client.start_io(command[0], *command[1:], cwd=folder, env=environment)
        window = lsp.WindowClientCapabilities(
            show_document=lsp.ShowDocumentClientCapabilities(True)
        )
        params = lsp.InitializeParams(
            lsp.ClientCapabilities(window=window),
            process_id=self._process,
            initialization_options=settings,
        )
        self.about = await self.client.initialize_async(params)
        self.client.initialized(lsp.InitializedParams())

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self.client._server is not None
        return self.client._server

    def stop(self) -> int | None:
        """End the session as the protocol has it; returns the status of the server."""

        async def stop() -> int | None:
            await self.client.shutdown_async(None)
            self.client.exit(None)
            return await self.process.wait()

        status = self._run(stop())
        self.runner.close()
        return status

    # --- documents -------------------------------------------------------------------------------------------------

    def open(self, uri: str, text: str) -> list[lsp.Diagnostic]:
        """Open a document, or change one that is open; returns its diagnostics."""
        return self._run(self._take(uri, text))

    async def _take(self, uri: str, text: str) -> list[lsp.Diagnostic]:
        before = self.published.get(uri, 0)
        self.send(uri, text)
        while self.published.get(uri, 0) == before:
            await asyncio.sleep(0.002)
        return self.diagnostics[uri]

    def send(self, uri: str, text: str) -> None:
        """Tell the server of a text, and wait for nothing."""
        version = self._versions[uri] = self._versions.get(uri, 0) + 1
        self.texts[uri] = text
        if version == 1:
            document = lsp.TextDocumentItem(uri, "yaml", version, text)
            self.client.text_document_did_open(lsp.DidOpenTextDocumentParams(document))
            return
        changes = [lsp.TextDocumentContentChangeWholeDocument(text)]
        identifier = lsp.VersionedTextDocumentIdentifier(version, uri)
        self.client.text_document_did_change(lsp.DidChangeTextDocumentParams(identifier, changes))

    def close(self, uri: str) -> None:
        document = lsp.TextDocumentIdentifier(uri)
        self.client.text_document_did_close(lsp.DidCloseTextDocumentParams(document))
        self._versions.pop(uri)

    def configure(self, **settings: object) -> None:
        """Change the settings; the answer to a request says that they are taken."""
        params = lsp.DidChangeConfigurationParams({"composer": settings})
        self.client.workspace_did_change_configuration(params)
        self.ask(lsp.TEXT_DOCUMENT_COMPLETION, next(iter(self._versions), "file:///none"), (0, 0))

    def wait_until(self, condition: Any) -> None:
        """Wait until ``condition()`` is true of what has been received."""

        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.005)

        self._run(wait())

    def pause(self, seconds: float) -> None:
        self._run(asyncio.sleep(seconds))

    # --- requests --------------------------------------------------------------------------------------------------

    def ask(self, method: str, uri: str, place: tuple[int, int] | None = None, **more: Any) -> Any:
        """The answer to a request about a document, or about a place in it."""
        params: dict[str, Any] = {"textDocument": {"uri": uri}, **more}
        if place is not None:
            params["position"] = {"line": place[0], "character": place[1]}
        kind = self.client.protocol.get_message_type(method)
        structured = self.client.protocol._converter.structure(
            {"jsonrpc": "2.0", "id": 0, "method": method, "params": params}, kind
        )

        async def ask() -> Any:  # in the loop of this client, not the current one of the thread
            return await self.client.protocol.send_request_async(method, structured.params)

        return self._run(ask())

    def command(self, params: lsp.ExecuteCommandParams) -> Any:
        return self._run(self.client.workspace_execute_command_async(params))

    def known(self, uri: str) -> None:
        """Wait until completion has the names of the newest text: jobs are done one after the other."""
        self.ask(lsp.TEXT_DOCUMENT_HOVER, uri, (0, 0))

    def find(self, uri: str, marked: str) -> tuple[int, int]:
        """The place of the mark '|' in ``marked``, a piece of the document, in UTF-16 units."""
        before, _, after = marked.partition("|")
        text = self.texts[uri]
        assert text.count(before + after) == 1, marked
        index = text.index(before + after) + len(before)
        return text.count("\n", 0, index), units(text[text.rfind("\n", 0, index) + 1 : index])

    def under(self, uri: str, where: lsp.Range) -> str:
        """The text in a range."""
        return self.texts[uri][self._index(uri, where.start) : self._index(uri, where.end)]

    def _index(self, uri: str, place: lsp.Position) -> int:
        lines = self.texts[uri].split("\n")
        line = lines[place.line]
        column = next(n for n in range(len(line) + 1) if units(line[:n]) >= place.character)
        return sum(len(each) + 1 for each in lines[: place.line]) + column

    def edited(self, uri: str, edits: Any) -> str:
        """The document with ``edits``."""
        text = self.texts[uri]
        for edit in sorted(edits, key=lambda edit: edit.range.start, reverse=True):
            start, end = self._index(uri, edit.range.start), self._index(uri, edit.range.end)
            text = text[:start] + edit.new_text + text[end:]
        return text

    def fixes(self, uri: str, only: list[str] | None = None) -> list[lsp.CodeAction]:
        """The code actions of the whole document."""
        wide = {"start": {"line": 0, "character": 0}, "end": {"line": 100000, "character": 0}}
        context = {"diagnostics": [], **({"only": only} if only else {})}
        return list(self.ask(lsp.TEXT_DOCUMENT_CODE_ACTION, uri, range=wide, context=context))


def units(text: str) -> int:
    """How long a text is in UTF-16."""
    return len(text.encode("utf-16-le")) // 2
