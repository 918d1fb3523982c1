"""The language server: an editor asks on stdin and is answered on stdout.

One loop reads and answers. It has neither torch nor anybody's modules: what needs them is asked of another process.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from functools import partial

from lsprotocol import types as lsp
from pygls import uris
from pygls.lsp.server import LanguageServer
from pygls.workspace import PositionCodec

from composer.editor.checker import IMPORT_LIMIT, CheckStoppedError
from composer.editor.child import taken_streams
from composer.editor.client_settings import ClientSettings, read_settings, section_of
from composer.editor.completion import Reference
from composer.editor.diagnostics import Shown, Target, problem_of_length, shown_problems
from composer.editor.documents import Document, Documents
from composer.editor.places import Places
from composer.errors import SpecError
from composer.source.files import names_a_folder, read_text
from composer.trust import allow_list

__all__ = ["Server", "serve"]

_ASKS_FOR_PARENT = 5.0  # seconds between two looks whether the editor is there
_LOOKS_AT_MODULES = 1.0  # the same, whether an allowed module has changed


class Server(LanguageServer):
    """The state of one session: its documents, its settings, and what is shown."""

    def __init__(self, allow: tuple[str, ...] = ()) -> None:
        from composer import __version__

        whole_texts = (
            lsp.TextDocumentSyncKind.Full
        )  # a spec is small; ranges are counted differently by editors
        super().__init__("composer", __version__, text_document_sync_kind=whole_texts)
        self.documents = Documents(self._checked, self._failed)
        self.shown: dict[str, list[Shown]] = {}  # by the document that was checked
        self.settings = ClientSettings()
        self._allow = allow
        self._published: set[str] = set()
        self._wanted = ClientSettings()  # with modules that cannot be imported
        self._reference: asyncio.Task[Reference] | None = None
        self._sources: frozenset[str] = frozenset()  # that the reference is of
        self._tasks: set[asyncio.Task] = set()
        self._folder: str | None = None

    # --- the client ------------------------------------------------------------------------------------------------

    def begin(self, params: lsp.InitializeParams) -> None:
        """Take the settings of a client that has just come."""
        self.configure(section_of(params.initialization_options) or {})
        self._keep(self._look_at_modules())
        if params.process_id is not None:
            self._keep(self._end_with(params.process_id))

    async def ask_for_settings(self) -> None:
        """Take the settings that the client gives when it is asked for them."""
        workspace = self.client_capabilities.workspace
        if workspace is None or not workspace.configuration:
            return
        items = [lsp.ConfigurationItem(section="composer")]
        answers = await self.workspace_configuration_async(lsp.ConfigurationParams(items))
        given = section_of({"composer": answers[0]}) if answers else None
        if given:
            self.configure(given)

    def configure(self, given: Mapping[str, object]) -> None:
        settings, problems = read_settings(given)
        try:
            allow = (*self._allow, *allow_list(settings.allow))
        except SpecError as error:
            allow, problems = self._allow, [*problems, f"composer.allow: {error}"]
        for problem in problems:
            self.say(problem, lsp.MessageType.Warning)
        path = tuple(map(self._full_path, settings.path))
        self._wanted = settings._replace(allow=allow, path=path)
        self._begin_checks()

    def _begin_checks(self) -> None:
        """Import all allowed modules, and check all documents."""
        self.settings, self._reference = self._wanted, None
        self._keep(self._import_allowed(self.settings))
        self.documents.settings_changed(self.settings)

    async def _import_allowed(self, wanted: ClientSettings) -> None:
        """Import the allowed modules; one that cannot be imported is said once, and left out."""
        modules = [entry for entry in wanted.allow if not names_a_folder(entry)]
        failed = {each: why for each in modules if (why := await self._failure(each, wanted))}
        for module, reason in failed.items():
            self.say(f"composer.allow: {module}: {reason}", lsp.MessageType.Error)
        if failed and self.settings == wanted:
            rest = tuple(module for module in wanted.allow if module not in failed)
            self.settings = wanted._replace(allow=rest)
            self.documents.settings_changed(self.settings)

    async def _failure(self, module: str, settings: ClientSettings) -> str | None:
        """Why a module cannot be imported."""
        checker = self.documents.checker
        try:
            await checker.ask("find_module", module, settings)
            return await checker.ask("import_module", module, settings, limit=IMPORT_LIMIT)
        except CheckStoppedError as error:
            return f"its import {error}; change the module to begin it again"

    async def _look_at_modules(self) -> None:
        """Begin anew whenever an allowed module has changed: Python keeps the one that it has imported."""
        while True:
            await asyncio.sleep(_LOOKS_AT_MODULES)
            if self.documents.checker.is_outdated:
                self.documents.checker.restart()
                self._begin_checks()

    def _full_path(self, folder: str) -> str:
        root = self.workspace.root_path or os.getcwd()
        return os.path.join(root, os.path.expanduser(folder))

    def say(self, text: str, kind: lsp.MessageType = lsp.MessageType.Info) -> None:
        self.window_show_message(lsp.ShowMessageParams(kind, text))

    async def _end_with(self, process: int) -> None:
        """End when the client has died, even where another process keeps its pipe open."""
        while _is_alive(process):  # one of another machine or container is never seen
            await asyncio.sleep(_ASKS_FOR_PARENT)
            if not _is_alive(process):
                self.end(1)

    def end(self, status: int) -> None:
        """End the process at once, and the one of checks, which may be in a user's class that never returns."""
        self.documents.checker.restart()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    @property
    def status(self) -> int:
        """0 where the client said that it ends."""
        return 0 if self.protocol._shutdown else 1

    def _keep(self, coroutine) -> None:
        """Run a coroutine; the loop itself keeps only weak references."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what features need ----------------------------------------------------------------------------------------

    @property
    def codec(self) -> PositionCodec:
        return self.workspace.position_codec

    async def reference(self) -> Reference:
        """What may be written, with what allowed modules register and the arguments of their networks.

        It is made again where a check has imported more of them since.
        """
        checker = self.documents.checker
        sources, old = frozenset(checker.files), self._reference
        has_failed = old is not None and old.done() and (old.cancelled() or old.exception())
        if old is None or has_failed or sources != self._sources:
            self._sources = sources
            self._reference = asyncio.create_task(checker.ask("reference", self.settings))
        assert self._reference is not None
        return await asyncio.shield(self._reference)

    def picture_folder(self) -> str:
        """A folder for pictures, which is removed at the end."""
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="composer-")
        return self._folder

    def target(self, document: Document, file: str | None) -> Target:
        """A file that a spec consists of, by its name in problems; None: the document itself."""
        if file is None or file == document.file:
            return Target(document.uri, document.checked or document.places)
        other = self.documents.at(file)
        if other is not None:
            return Target(other.uri, other.places)
        try:
            text = read_text(file, None)
        except SpecError:  # gone since
            text = ""
        return Target(uris.from_fs_path(file) or document.uri, Places(text, self.codec))

    # --- diagnostics -----------------------------------------------------------------------------------------------

    def _checked(self, document: Document, is_changed: bool) -> None:
        find = partial(self.target, document)
        shown = [] if document.analysis is None else shown_problems(document.analysis, find)
        if document.is_spec and document.is_too_long:
            shown = [problem_of_length(find(None))]
        self._show(document.uri, shown)
        if not is_changed:  # the client does not ask by itself
            self._refresh()

    def closed(self, uri: str) -> None:
        self.documents.closed(uri)
        self._show(uri, [])
        del self.shown[uri]

    def _show(self, uri: str, shown: list[Shown]) -> None:
        before = {each.uri for each in self.shown.get(uri, ())}
        self.shown[uri] = shown
        for target in dict.fromkeys([uri, *sorted(before | {each.uri for each in shown})]):
            self._publish(target)

    def _publish(self, uri: str) -> None:
        """Send what all open documents say about one file."""
        document = self.documents.get(uri)
        diagnostics: list[lsp.Diagnostic] = []
        for shown in self.shown.values():
            for each in shown:
                if each.uri == uri and each.diagnostic not in diagnostics:
                    diagnostics.append(each.diagnostic)
        is_ours = document is not None and document.is_spec
        if not diagnostics and not is_ours and uri not in self._published:
            return  # of a file that is no spec nothing is said, not even that it is good
        self._published.add(uri)
        version = document.version if document else None
        self.text_document_publish_diagnostics(
            lsp.PublishDiagnosticsParams(uri, diagnostics, version)
        )

    def _refresh(self) -> None:
        workspace = self.client_capabilities.workspace
        if workspace and workspace.inlay_hint and workspace.inlay_hint.refresh_support:
            self.workspace_inlay_hint_refresh(None)
        if workspace and workspace.code_lens and workspace.code_lens.refresh_support:
            self.workspace_code_lens_refresh(None)

    def _failed(self, document: Document, error: Exception) -> None:
        """A fault of this library: it is said, and the next text is checked as ever."""
        import traceback

        traceback.print_exception(error)
        text = f"composer lsp cannot check {document.file}: {type(error).__name__}: {error}"
        self.say(text, lsp.MessageType.Error)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # there, the signal 0 would end it
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to another user
        return True
    return True


def serve(server: Server) -> None:
    """Answer one client on stdin and stdout until it goes, then end the process.

    What anything else prints, a user's module for instance, goes to stderr: stdout belongs to the protocol.
    """
    stdin, stdout = taken_streams()
    try:
        server.start_io(stdin, stdout)
    finally:
        server.end(server.status)
