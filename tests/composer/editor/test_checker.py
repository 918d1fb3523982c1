"""Checks in a process of their own: what ends it, what begins it anew, and what is said of that."""

import asyncio
import itertools
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from lsprotocol import types as lsp

from composer.editor import checker
from composer.editor.checked import Outline
from composer.editor.checker import Checker, CheckStoppedError
from composer.editor.child import state_of
from composer.editor.client_settings import ClientSettings
from composer.editor.server import Server, _is_alive
from composer.errors import Span
from composer.source.load import load_source
from tests.helpers.language_client import Editor
from tests.helpers.paths import ROOT

SPEC = """\
version: 1
environment: CartPole-v1
policy:
  graph:
    latent: {block: %s, in: observation}
  heads: {in: latent}
"""
NETS = """\
import os, time
from torch import nn
class Good(nn.Linear):
    def __init__(self): super().__init__(4, UNITS)
def wait():
    while True: time.sleep(0.01)
class Endless(nn.Module):
    def __init__(self): wait()
class Crashing(nn.Module):
    def __init__(self): os._exit(3)
class Killed(nn.Module):
    def __init__(self): os.kill(os.getpid(), 11)
class Leaving(nn.Module):
    def __init__(self): exit(4)
"""
NUMBERS = itertools.count()
AGAIN = "; change the module or this text to begin it again"
WHOLE = {"start": {"line": 0, "character": 0}, "end": {"line": 1000, "character": 0}}


def hints(editor, uri):
    return [hint.label for hint in editor.ask(lsp.TEXT_DOCUMENT_INLAY_HINT, uri, range=WHOLE)]


def until_gone(process: int) -> None:
    deadline = time.monotonic() + 20
    while _is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(process)


# --- in a session -----------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(editor, uri, tmp_path):
    """The server of all tests, which allows `NETS`, with the addresses of two specs; the second one is good."""
    name = f"checker_nets_{next(NUMBERS)}"  # a module that is imported stays
    module = tmp_path / f"{name}.py"
    module.write_text(NETS.replace("UNITS", "8"))
    editor.open(uri, SPEC % "dense")
    editor.configure(allow=[name], path=[str(tmp_path)])
    other = (tmp_path / "other.yaml").as_uri()
    assert editor.open(other, SPEC % f"{name}.Good") == []
    yield editor, uri, other, module
    editor.close(other)
    editor.configure(allow=["environments"], path=[str(ROOT / "configs")])
    editor.messages.clear()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("Crashing", "with status 3"),
        pytest.param("Killed", "by SIGSEGV", marks=pytest.mark.full),
    ],
)
def test_a_class_that_ends_the_process_is_said_and_other_specs_are_checked_on(opened, name, how):
    editor, uri, other, module = opened
    (diagnostic,) = editor.open(uri, SPEC % f"{module.stem}.{name}")
    assert diagnostic.message == f"the check of this spec ended its process {how}{AGAIN}"
    assert diagnostic.code == "check"
    hover = editor.ask(lsp.TEXT_DOCUMENT_HOVER, other, editor.find(other, "    lat|ent"))
    assert "40 parameters, 64 FLOPs for one observation" in hover.contents.value
    assert hints(editor, other)[0] == "→ (8,)"
    assert editor.ask(lsp.TEXT_DOCUMENT_HOVER, uri, (4, 6)) is None
    assert not editor.ask(lsp.TEXT_DOCUMENT_DOCUMENT_SYMBOL, uri)
    assert editor.open(uri, SPEC % f"{module.stem}.Good") == []


def test_a_module_that_changes_is_imported_anew(opened):
    editor, _, other, module = opened
    assert hints(editor, other)[0] == "→ (8,)"
    before = editor.published[other]
    module.write_text(NETS.replace("UNITS", "9"))
    editor.wait_until(lambda: editor.published[other] > before)
    assert hints(editor, other)[0] == "→ (9,)"


@pytest.mark.full
def test_a_module_that_cannot_be_imported_is_imported_once_it_can(opened):
    editor, uri, other, module = opened
    (diagnostic,) = editor.open(uri, SPEC % f"{module.stem}.Leaving")
    assert diagnostic.message.startswith("SystemExit: 4")
    module.write_text("def (:\n")
    editor.wait_until(lambda: editor.messages and editor.diagnostics[other])
    assert editor.messages[0].startswith(
        f"composer.allow: {module.stem}: the module '{module.stem}' cannot be imported: SyntaxError: "
    )
    module.write_text(NETS.replace("UNITS", "7"))
    editor.wait_until(lambda: not editor.diagnostics[other])
    assert hints(editor, other)[0] == "→ (7,)"


@pytest.mark.full
def test_a_check_that_takes_too_long_is_said_where_its_module_is_named(opened):
    """With the limit that holds over stdio; the other spec is checked after it, and both once it is mended."""
    editor, uri, other, module = opened
    before = editor.published[other]
    (diagnostic,) = editor.open(uri, SPEC % f"{module.stem}.Endless")
    assert diagnostic.message == (
        "the check of this spec took longer than 30 seconds and was ended, "
        f"in 'wait' at {module}:6{AGAIN}"
    )
    assert editor.under(uri, diagnostic.range) == f"{module.stem}.Endless"
    editor.wait_until(lambda: editor.published[other] > before)
    assert hints(editor, other)[0] == "→ (8,)"
    module.write_text(NETS.replace("UNITS", "8").replace("wait()", "super().__init__()"))
    editor.wait_until(lambda: editor.diagnostics[uri][0].code != "check")


def test_the_server_itself_has_no_torch(editor, uri):
    """It would take memory twice."""
    editor.open(uri, SPEC % "dense")
    editor.known(uri)
    assert "torch" not in Path(f"/proc/{editor.process.pid}/maps").read_text()


# --- the process itself -----------------------------------------------------------------------------------------------


@pytest.fixture
def asking():
    """A Checker, a function that asks it, and what it was told to be to blame for an end of the process."""
    ended: list[object] = []
    loop = asyncio.new_event_loop()  # the editor of other tests has the current one
    asked = Checker(ended.append)

    def run(coroutine):
        return loop.run_until_complete(asyncio.wait_for(coroutine, 120))

    yield asked, run, ended
    run(asked.close())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_a_process_is_ended_after_its_limit_and_begun_anew(asking, tmp_path):
    asked, run, ended = asking
    module = tmp_path / "endless_nets.py"
    module.write_text(NETS + "wait()\n")
    settings = ClientSettings(("endless_nets",), (str(tmp_path),))
    asking_for = "import_module", "endless_nets", settings
    with pytest.raises(RuntimeError, match="TypeError: "):  # a fault of ours
        run(asked.ask("check"))
    first = asked.process
    assert run(asked.ask("import_module", "no_such_module_here", settings)) == (
        "there is no module 'no_such_module_here'; is its folder in composer.path?"
    )
    run(asked.ask("find_module", "endless_nets", settings))
    assert (asked.process, asked.is_outdated, ended) == (first, False, [])
    with pytest.raises(CheckStoppedError) as stopped:
        run(asked.ask(*asking_for, about="agent", limit=0.5))
    assert str(stopped.value) == (
        f"took longer than 0.5 seconds and was ended, in 'wait' at {module}:6"
    )
    assert (stopped.value.module, ended) == ("endless_nets", ["agent"])
    until_gone(first)

    async def mended():
        """What was asked of a process that is begun anew is asked again."""
        answer = asyncio.ensure_future(asked.ask(*asking_for))
        while asked.process is None:
            await asyncio.sleep(0.01)
        module.write_text(NETS.replace("UNITS", "8"))
        assert asked.is_outdated
        asked.restart()
        return await answer

    assert run(mended()) is None
    assert not asked.is_outdated
    assert (ended, asked.process != first) == (["agent"], True)


@pytest.mark.full
def test_a_process_that_ended_unasked_is_nobodys_fault_and_one_that_forks_answers_once(
    asking, tmp_path
):
    asked, run, ended = asking
    (tmp_path / "forking_nets.py").write_text("import os\nos.fork()\n")
    settings = ClientSettings(("forking_nets",), (str(tmp_path),))
    assert run(asked.ask("import_module", "forking_nets", settings)) is None
    wanted = "there is no module 'no_such_module_here'; is its folder in composer.path?"
    assert run(asked.ask("import_module", "no_such_module_here", settings)) == wanted
    first = asked.process
    os.kill(first, signal.SIGKILL)
    until_gone(first)
    assert run(asked.ask("import_module", "no_such_module_here", settings, about="a")) == wanted
    assert (ended, asked.process != first) == (["a"], True)


@pytest.mark.full
def test_a_long_text_is_not_waited_for_where_a_process_does_not_read(asking):
    asked, run, ended = asking
    run(asked.ask("forget", "agent.yaml"))
    process = asked.process
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(CheckStoppedError, match=r"^took longer than 1 seconds and was ended$"):
        run(asked.ask("forget", "x" * 5_000_000, about="agent", limit=1.0))
    assert ended == ["agent"]
    until_gone(process)
    run(asyncio.sleep(0.2))  # until the loop knows it, too


def test_a_process_that_cannot_begin_is_said(monkeypatch, asking):
    asked, run, _ = asking
    monkeypatch.setattr(checker, "command_of", lambda module: ["false"])
    with pytest.raises(RuntimeError) as failed:
        run(asked.ask("forget", "agent.yaml"))
    assert str(failed.value) == "the process of checks ended as it began, with status 1"


def test_files_that_are_gone_are_waited_for(tmp_path):
    file = tmp_path / "nets.py"
    asked = Checker(lambda about: None)
    file.write_text("a")
    asked.files = {str(file): state_of(str(file))}
    assert not asked.is_outdated
    file.unlink()
    assert not asked.is_outdated
    file.write_text("ab")
    assert asked.is_outdated


@pytest.mark.parametrize("name", ["complex.yaml", "complex_shared.yaml", "cartpole.yaml"])
def test_an_outline_knows_the_places_of_its_source(name):
    source = load_source(ROOT / "configs" / name)
    outline = Outline.of(source)
    assert (outline.name, outline.files, outline.data) == (source.name, source.files, source.data)
    paths = [path for path, _ in source.walk()]
    assert len(paths) > 10
    for path in [*paths, ("policy", "graph", "no", "such"), ("no",), (*paths[-1], "more")]:
        for key in (True, False):
            assert outline.span(path, key) == source.span(path, key)
    assert isinstance(outline.span(("policy",)), Span)


# --- its end ----------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("name", ["Good", "Endless"])
def test_no_process_is_left_where_the_server_is_killed(tmp_path, name):
    nets = NETS.replace("UNITS", "8").replace(
        "import os, time",
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))",
    )
    (tmp_path / "checker_nets.py").write_text(nets)
    editor = Editor(str(tmp_path), {"allow": ["checker_nets"], "path": [str(tmp_path)]})
    editor.send((tmp_path / "agent.yaml").as_uri(), SPEC % f"checker_nets.{name}")
    marker = tmp_path / "pid"
    editor.wait_until(lambda: marker.exists() and marker.read_text())
    process = int(marker.read_text())
    assert process != editor.process.pid
    assert _is_alive(process)
    os.kill(editor.process.pid, signal.SIGKILL)
    assert editor._run(editor.process.wait()) == -signal.SIGKILL
    editor.runner.close()
    until_gone(process)


def test_an_import_that_ends_its_process_is_a_reason():
    class Stopped:
        async def ask(self, *_, **__):
            raise CheckStoppedError("ended its process with status 3")

    server = SimpleNamespace(documents=SimpleNamespace(checker=Stopped()))
    reason = asyncio.run(Server._failure(server, "agents", ClientSettings()))
    assert reason == (
        "its import ended its process with status 3; change the module to begin it again"
    )
