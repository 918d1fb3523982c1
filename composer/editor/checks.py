"""The process that checks: torch, registries and users' classes are here, and the language server is not."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, BinaryIO, TypeAlias

from composer.diagram.picture import Picture
from composer.diagram.sketch import sketch
from composer.editor.analysis import Analyser, Analysis
from composer.editor.checked import Checked, Hover, Question
from composer.editor.child import FileState, frame_of, read_frame, state_of, taken_streams
from composer.editor.client_settings import ClientSettings
from composer.editor.completion import Reference
from composer.editor.cursor import yaml_lines
from composer.editor.hover import hover_at
from composer.editor.names import Names, Use, Written
from composer.errors import Position, SpecError
from composer.model import compose
from composer.reference.help import GRAPHS, settings_of_block, summary_of
from composer.reference.schema import json_schema
from composer.reference.targets import allowed_modules
from composer.source.files import display_name, read_text, real_path
from composer.source.parse import BOM, YamlParser
from composer.trust import NoModuleError, allow_beside, file_of, import_allowed
from perception_blocks.registry import BLOCKS

__all__ = ["Checks", "main"]

GRACE = 5.0  # seconds, beyond its limit, after which a check ends the process itself
Say: TypeAlias = "Callable[[str, object], None]"


class Checks:
    """What the language server asks, one question after the other; answers are plain data.

    ``files`` are the sources of allowed modules, as they were when they were imported.
    """

    def __init__(self) -> None:
        self.files: dict[str, FileState] = {}
        self.settings = ClientSettings()
        self._analyser = Analyser()
        self._analyses: dict[str, Analysis] = {}
        self._reference: Reference | None = None

    def find_module(self, module: str, settings: ClientSettings) -> None:
        """Note the file of an allowed module, whose import may come to no end."""
        self._use(settings)
        self._note_files(filter(None, [file_of(module)]))

    def import_module(self, module: str, settings: ClientSettings) -> str | None:
        """Import an allowed module; returns why it cannot be imported."""
        self._use(settings)
        try:
            import_allowed([module])
        except NoModuleError:
            return f"there is no module {module!r}; is its folder in composer.path?"
        except (Exception, SystemExit) as error:
            self._note_files(_files_in(error))
            return str(error) or type(error).__name__
        return None

    def check(self, question: Question) -> Checked:
        settings = question.settings
        self._use(settings)
        analysis = self._analyser.analyse(
            question.text,
            question.path,
            allow=settings.allow,
            environment=settings.environment,
            files=question.files,
            makes_environments=settings.makes_environments,
        )
        self._analyses[real_path(question.path)] = analysis
        return analysis.plain()

    def names(self, question: Question) -> Names:
        """The names in the files of a spec that was checked; none where its own text is no YAML."""
        analysis = self._analyses.get(real_path(question.path))
        texts = {real_path(path): text for path, text in question.files.items()}
        texts[real_path(question.path)] = question.text
        name, written = display_name(question.path), {}
        for file in dict.fromkeys([name, *(analysis.index.files if analysis else ())]):
            try:
                text = texts.get(real_path(file))
                text = read_text(file, None) if text is None else text
                root = YamlParser(file, []).parse(text.removeprefix(BOM))
            except SpecError:
                if file == name:
                    return Names({})
                continue
            if root is not None and isinstance(root.value, dict):
                written[file] = Written(root, yaml_lines(text))
        return Names(written)

    def hover(self, path: str, position: Position, use: Use | None) -> Hover | None:
        """What is said at a place of the spec at ``path``, where the name ``use`` stands."""
        analysis = self._analyses.get(real_path(path))
        if analysis is None:
            return None
        return hover_at(analysis, position, use, lambda: self._known_reference().schema)

    def picture(self, path: str) -> Picture | str:
        """The picture of the spec at ``path``, or why there is none."""
        analysis = self._analyses.get(real_path(path))
        if analysis is None or analysis.spaces is None:
            return "it is not checked yet"
        observation_space, action_space = analysis.spaces
        try:
            model = compose(
                analysis.index,
                observation_space=observation_space,
                action_space=action_space,
                allow=self.settings.allow,
                device="meta",
                seed=0,
            )
            return sketch(model)
        except ValueError as error:
            return str(error)

    def reference(self, settings: ClientSettings) -> Reference:
        """What may be written, with what allowed modules register and the arguments of their networks."""
        self._use(settings)
        try:
            schema = json_schema(settings.allow)
        except Exception:  # a module that cannot be imported, which the client was told
            schema = json_schema()
        blocks = [*BLOCKS, *GRAPHS]
        summaries = {block: summary_of(block) for block in blocks}
        settings_of = {block: settings_of_block(block) for block in blocks}
        self._reference = Reference(schema, summaries, settings_of)
        return self._reference

    def _known_reference(self) -> Reference:
        return self._reference or self.reference(self.settings)

    def forget(self, path: str) -> None:
        """Forget a file that was closed."""
        self._analyser.forget(path)
        self._analyses.pop(real_path(path), None)

    def _use(self, settings: ClientSettings) -> None:
        if settings != self.settings:
            self.settings, self._reference = settings, None
            allow_beside(settings.path, settings.allow)

    # --- sources ---------------------------------------------------------------------------------------------------

    def note_sources(self) -> None:
        """Note the files of allowed modules that have been imported since."""
        modules = (sys.modules.get(name) for name in allowed_modules(self.settings.allow))
        self._note_files(file for each in modules if (file := getattr(each, "__file__", None)))

    def _note_files(self, files: Iterable[str]) -> None:
        for file in files:
            if file not in self.files and (state := state_of(file)) is not None:
                self.files[file] = state

    def where(self, thread: int) -> tuple[str, str] | None:
        """In which allowed module ``thread`` is, and where in it."""
        modules = allowed_modules(self.settings.allow)
        frame = sys._current_frames().get(thread)
        while frame is not None:
            name = frame.f_globals.get("__name__", "")
            if name in modules:
                code = frame.f_code
                return name, f"{code.co_name!r} at {code.co_filename}:{frame.f_lineno}"
            frame = frame.f_back
        return None


def _files_in(error: BaseException | None) -> Iterator[str]:
    """The files that an import has run, or tried to read, until it failed."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            yield frame.f_code.co_filename
        if isinstance(error, SyntaxError) and error.filename:
            yield error.filename
        error = error.__cause__


# --- the process ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer questions on stdin until it is closed; what users' modules print goes to stderr."""
    stdin, stdout = taken_streams()
    faulthandler.enable()  # a crash leaves its place in the log
    sys.dont_write_bytecode = (
        True  # of a module that is saved twice in a second it would be the old one
    )
    checks, lock, process = Checks(), threading.Lock(), os.getpid()
    questions: SimpleQueue[tuple[str, tuple[Any, ...], float]] = SimpleQueue()

    def say(kind: str, value: object) -> None:
        with lock:
            stdout.write(frame_of((kind, value)))
            stdout.flush()

    listening = (stdin, questions, checks, threading.get_ident(), say)
    threading.Thread(target=_listen, args=listening, daemon=True).start()
    say("ready", None)
    told = 0
    while True:
        method, arguments, limit = questions.get()
        faulthandler.dump_traceback_later(limit + GRACE, exit=True)  # where no thread can run, too
        kind, value = _answer(getattr(checks, method), arguments)
        if os.getpid() != process:  # a class has forked: one process answers
            os._exit(0)
        faulthandler.cancel_dump_traceback_later()
        checks.note_sources()
        if len(checks.files) > told:
            told = len(checks.files)
            say("files", checks.files)
        say(kind, value)


def _answer(function: Callable[..., object], arguments: tuple[Any, ...]) -> tuple[str, object]:
    try:
        return "answer", function(*arguments)
    except BaseException as error:  # also SystemExit of a user's class: the process goes on
        traceback.print_exc()
        return "fault", f"{type(error).__name__}: {error}"


def _listen(stdin: BinaryIO, questions: SimpleQueue, checks: Checks, thread: int, say: Say) -> None:
    """Take questions, say at once where a check is, and end the process with its server."""
    try:
        while True:
            asked = read_frame(stdin)
            if asked is None:
                say("where", checks.where(thread))
            else:
                questions.put(asked)
    except BaseException:
        os._exit(1)
