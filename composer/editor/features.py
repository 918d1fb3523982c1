"""The requests that the language server answers."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path as FilePath

from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException

from composer.diagram.drawing import write_picture
from composer.diagram.picture import Picture
from composer.diagram.render import DrawError
from composer.editor.checker import CheckStoppedError
from composer.editor.client_settings import section_of
from composer.editor.completion import Proposal, proposals
from composer.editor.cursor import cursor_at, yaml_lines
from composer.editor.described import DRAW, Described
from composer.editor.diagnostics import SOURCE, Fix, fixes_of
from composer.editor.documents import Document
from composer.editor.names import Names, Use
from composer.editor.places import Places
from composer.editor.server import Server

__all__ = ["FIX_ALL", "language_server"]

FIX_ALL = f"source.fixAll.{SOURCE}"
_REQUEST_FAILED = -32803  # of the protocol: a request that is right and cannot be answered
_KINDS = {
    "key": lsp.CompletionItemKind.Property,
    "value": lsp.CompletionItemKind.EnumMember,
    "name": lsp.CompletionItemKind.Variable,
    "block": lsp.CompletionItemKind.Class,
}


def language_server(allow: Iterable[str] = ()) -> Server:
    """A server that is not started yet; ``allow`` has modules beside those that the client allows."""
    server = Server(tuple(allow))
    for method, handler, options in _FEATURES:
        server.feature(method, options)(handler)
    server.command(DRAW)(draw)
    return server


# --- the session ------------------------------------------------------------------------------------------------------


def initialize(ls: Server, params: lsp.InitializeParams) -> None:
    ls.begin(params)


async def initialized(ls: Server, params: lsp.InitializedParams) -> None:
    await ls.ask_for_settings()
    await ls.reference()  # before the first completion


async def configured(ls: Server, params: lsp.DidChangeConfigurationParams) -> None:
    given = section_of(params.settings)
    if given is None:  # the client wants to be asked
        await ls.ask_for_settings()
    else:
        ls.configure(given)


async def opened(ls: Server, params: lsp.DidOpenTextDocumentParams) -> None:
    given = params.text_document
    path = ls.workspace.get_text_document(given.uri).path
    ls.documents.opened(given.uri, path, given.text, given.version, ls.codec)


async def changed(ls: Server, params: lsp.DidChangeTextDocumentParams) -> None:
    given = params.text_document
    text = ls.workspace.get_text_document(given.uri).source
    ls.documents.changed(given.uri, text, given.version, ls.codec)


async def closed(ls: Server, params: lsp.DidCloseTextDocumentParams) -> None:
    ls.closed(params.text_document.uri)


async def files_changed(ls: Server, params: lsp.DidChangeWatchedFilesParams) -> None:
    for event in params.changes:
        path = ls.workspace.get_text_document(event.uri).path
        ls.documents.file_changed(os.path.realpath(path))


# --- what stands there ------------------------------------------------------------------------------------------------


def _described(document: Document) -> Described:
    assert document.analysis is not None
    assert document.checked is not None
    return Described(document.analysis, document.checked, document.file)


async def hover(ls: Server, params: lsp.HoverParams) -> lsp.Hover | None:
    document = await ls.documents.newest(params.text_document.uri, with_names=True)
    if document is None or document.checked is None:
        return None
    places, file = document.checked, document.file
    position = places.position(params.position, file)
    use = document.names.at(file, position)
    try:
        said = await ls.documents.checker.ask("hover", document.path, position, use)
    except CheckStoppedError as error:  # in a user's class, whose FLOPs are counted
        ls.say(f"the hover {error}", lsp.MessageType.Warning)
        return None
    if said is None:
        return None
    content = lsp.MarkupContent(lsp.MarkupKind.Markdown, said.text)
    return lsp.Hover(content, places.range_of(said.span))


async def hints(ls: Server, params: lsp.InlayHintParams) -> list[lsp.InlayHint]:
    document = await ls.documents.newest(params.text_document.uri)
    if document is None:
        return []
    shown = _described(document).hints()
    first, last = params.range.start, params.range.end
    return [hint for hint in shown if first <= hint.position <= last]


async def symbols(ls: Server, params: lsp.DocumentSymbolParams) -> list[lsp.DocumentSymbol]:
    document = await ls.documents.newest(params.text_document.uri)
    return [] if document is None else _described(document).symbols()


async def lenses(ls: Server, params: lsp.CodeLensParams) -> list[lsp.CodeLens]:
    document = await ls.documents.newest(params.text_document.uri)
    return [] if document is None else list(_described(document).lenses(document.uri))


# --- completion -------------------------------------------------------------------------------------------------------


async def complete(ls: Server, params: lsp.CompletionParams) -> lsp.CompletionList:
    """From the text as it is now and the newest names: it waits for no check."""
    document = ls.documents.get(params.text_document.uri)
    nothing = lsp.CompletionList(False, [])
    if document is None or not document.is_spec or document.is_too_long:
        return nothing
    reference = await ls.reference()
    line, column = document.places.line_and_column(params.position)
    cursor = cursor_at(yaml_lines(document.text), line, column)
    if cursor is None:
        return nothing
    proposed = proposals(reference, cursor, document.known)
    items = _items(proposed, document.places, params.position)
    return lsp.CompletionList(bool(cursor.prefix), items)


def _items(
    proposed: Sequence[Proposal], places: Places, cursor: lsp.Position
) -> list[lsp.CompletionItem]:
    index = places.index_of(cursor)
    lengths = {proposal.replaces for proposal in proposed}
    ranges = {length: places.range(index - length, index) for length in lengths}
    return [
        _item(proposal, number, ranges[proposal.replaces])
        for number, proposal in enumerate(proposed)
    ]


def _item(proposal: Proposal, number: int, where: lsp.Range) -> lsp.CompletionItem:
    return lsp.CompletionItem(
        proposal.label,
        kind=_KINDS[proposal.kind],
        detail=proposal.detail or None,
        sort_text=f"{number:04}",
        filter_text=proposal.label,
        text_edit=lsp.TextEdit(where, proposal.insert),
    )


# --- names ------------------------------------------------------------------------------------------------------------


async def _use_at(ls: Server, uri: str, place: lsp.Position) -> tuple[Document, Names, Use] | None:
    document = await ls.documents.newest(uri, with_names=True)
    if document is None or document.checked is None:
        return None
    names = document.names
    use = names.at(document.file, document.checked.position(place, document.file))
    return None if use is None else (document, names, use)


def _location(ls: Server, document: Document, use: Use) -> lsp.Location:
    target = ls.target(document, use.file)
    return lsp.Location(target.uri, target.places.range_of(use.span))


async def definition(ls: Server, params: lsp.DefinitionParams) -> list[lsp.Location]:
    at = await _use_at(ls, params.text_document.uri, params.position)
    if at is None:
        return []
    document, names, use = at
    return [_location(ls, document, other) for other in names.definitions_of(use)]


async def references(ls: Server, params: lsp.ReferenceParams) -> list[lsp.Location]:
    at = await _use_at(ls, params.text_document.uri, params.position)
    if at is None:
        return []
    document, names, use = at
    uses = names.all_of(use)
    if not params.context.include_declaration:
        uses = [other for other in uses if not other.makes]
    return [_location(ls, document, other) for other in uses]


async def prepare_rename(
    ls: Server, params: lsp.PrepareRenameParams
) -> lsp.PrepareRenamePlaceholder | None:
    at = await _use_at(ls, params.text_document.uri, params.position)
    if at is None:
        return None
    document, names, use = at
    _refuse(names.why_not_renamed(use))
    return lsp.PrepareRenamePlaceholder(_location(ls, document, use).range, use.name)


async def rename(ls: Server, params: lsp.RenameParams) -> lsp.WorkspaceEdit | None:
    at = await _use_at(ls, params.text_document.uri, params.position)
    if at is None:
        return None
    document, names, use = at
    observations = _observations(document, names)
    _refuse(names.why_not_renamed(use) or names.why_not_called(use, params.new_name, observations))
    edits: dict[str, list[lsp.TextEdit]] = defaultdict(list)
    for other in names.all_of(use):
        where = _location(ls, document, other)
        edits[where.uri].append(lsp.TextEdit(where.range, params.new_name))
    return lsp.WorkspaceEdit(changes=dict(edits))


def _observations(document: Document, names: Names) -> set[str]:
    """The observations of all networks: the values that no node has."""
    values = document.analysis.values if document.analysis else {}
    return {
        name
        for network, known in values.items()
        if "graph" not in network
        for name in {*known} - {*names.values_of((*network, "graph"))}
    }


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise JsonRpcException(reason, _REQUEST_FAILED)


# --- edits and pictures -----------------------------------------------------------------------------------------------


async def actions(ls: Server, params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
    """The fixes of the problems in a range, and all sure ones of the file at once."""
    uri = params.text_document.uri
    await ls.documents.newest(uri)
    wanted, quick_fix = params.context.only, lsp.CodeActionKind.QuickFix
    shown = ls.shown.get(uri, [])
    found = []
    for each in shown if _is_wanted(quick_fix, wanted) else ():
        if each.fix and each.uri == uri and _touch(each.diagnostic.range, params.range):
            found.append(_action([each.fix], each.fix.title, quick_fix, [each.diagnostic]))
    fixes = fixes_of(shown, uri)
    if fixes and _is_wanted(FIX_ALL, wanted):
        found.append(_action(fixes, "Change all that have a near name", FIX_ALL))
    return found


def _action(
    fixes: Iterable[Fix], title: str, kind: str, of: list[lsp.Diagnostic] | None = None
) -> lsp.CodeAction:
    edits: dict[str, list[lsp.TextEdit]] = defaultdict(list)
    for fix in fixes:
        edits[fix.uri].append(lsp.TextEdit(fix.where, fix.text))
    edit = lsp.WorkspaceEdit(changes=dict(edits))
    return lsp.CodeAction(title, kind=kind, diagnostics=of, edit=edit, is_preferred=bool(of))


def _is_wanted(kind: str, wanted: Iterable[str] | None) -> bool:
    return wanted is None or any(kind == each or kind.startswith(f"{each}.") for each in wanted)


def _touch(first: lsp.Range, second: lsp.Range) -> bool:
    return first.start <= second.end and second.start <= first.end


async def draw(ls: Server, uri: str) -> str | None:
    """Draw the spec, and open the page; returns its path."""
    document = await ls.documents.newest(uri)
    reason = _why_not_drawn(document)
    if document is None or document.analysis is None or reason:
        ls.say(reason, lsp.MessageType.Warning)
        return None
    try:
        picture = await ls.documents.checker.ask("picture", document.path)
        if not isinstance(picture, Picture):
            raise DrawError(picture)
        path = os.path.join(ls.picture_folder(), f"{os.path.basename(document.path)}.html")
        await asyncio.to_thread(write_picture, picture, path)
    except (ValueError, DrawError, CheckStoppedError) as error:
        ls.say(f"{document.file} cannot be drawn: {error}", lsp.MessageType.Error)
        return None
    window = ls.client_capabilities.window
    if window and window.show_document and window.show_document.support:
        address = FilePath(path).as_uri()
        ls.window_show_document(lsp.ShowDocumentParams(address, external=True))
    else:
        ls.say(f"wrote {path}")
    return path


def _why_not_drawn(document: Document | None) -> str:
    if document is None or document.analysis is None:
        return "this file is no spec that could be drawn"
    if document.analysis.problems:
        return "the spec has problems; mend them before it is drawn"
    return document.analysis.unknown


_Options = object
_FEATURES: list[tuple[str, Callable, _Options | None]] = [
    (lsp.INITIALIZE, initialize, None),
    (lsp.INITIALIZED, initialized, None),
    (lsp.WORKSPACE_DID_CHANGE_CONFIGURATION, configured, None),
    (lsp.WORKSPACE_DID_CHANGE_WATCHED_FILES, files_changed, None),
    (lsp.TEXT_DOCUMENT_DID_OPEN, opened, None),
    (lsp.TEXT_DOCUMENT_DID_CHANGE, changed, None),
    (lsp.TEXT_DOCUMENT_DID_CLOSE, closed, None),
    (lsp.TEXT_DOCUMENT_HOVER, hover, None),
    (lsp.TEXT_DOCUMENT_INLAY_HINT, hints, None),
    (lsp.TEXT_DOCUMENT_DOCUMENT_SYMBOL, symbols, None),
    (lsp.TEXT_DOCUMENT_CODE_LENS, lenses, None),
    (
        lsp.TEXT_DOCUMENT_COMPLETION,
        complete,
        lsp.CompletionOptions(trigger_characters=[" ", "{", "[", ",", "."]),
    ),
    (lsp.TEXT_DOCUMENT_DEFINITION, definition, None),
    (lsp.TEXT_DOCUMENT_REFERENCES, references, None),
    (lsp.TEXT_DOCUMENT_PREPARE_RENAME, prepare_rename, None),
    (lsp.TEXT_DOCUMENT_RENAME, rename, lsp.RenameOptions(prepare_provider=True)),
    (
        lsp.TEXT_DOCUMENT_CODE_ACTION,
        actions,
        lsp.CodeActionOptions([lsp.CodeActionKind.QuickFix, FIX_ALL]),
    ),
]
