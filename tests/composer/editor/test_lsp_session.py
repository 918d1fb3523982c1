"""A session of the language server: settings, trust, many changes, hostile texts, and its end."""

import os
import signal
import subprocess
import sys
import time

import pytest
from lsprotocol import types as lsp

from composer.editor.server import _is_alive
from tests.helpers.language_client import Editor
from tests.helpers.paths import ROOT

SPEC = """\
version: 1
environment: CartPole-v1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: 32}
  heads: {in: latent}
"""
BARE = SPEC.replace("environment: CartPole-v1\n", "")  # no process makes an environment
ALLOW = {"allow": ["environments"], "path": [str(ROOT / "configs")]}


@pytest.fixture
def settings(editor, uri):
    """Sets settings, which are reset after the test."""
    editor.open(uri, BARE)
    editor.messages.clear()
    yield editor.configure
    editor.configure(**ALLOW)


# --- settings and trust -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alow": []}, "unknown setting 'composer.alow'; did you mean 'allow'?"),
        (
            {"colour": 1},
            "unknown setting 'composer.colour'; the settings are 'allow', 'path', 'environment', 'makeEnvironments'",
        ),
        (
            {"allow": "my_nets"},
            "the setting 'composer.allow' must be a list of modules, got the text 'my_nets'",
        ),
        (
            {"makeEnvironments": 1},
            "the setting 'composer.makeEnvironments' must be true or false, got the number 1",
        ),
        (
            {"allow": ["nets.py"]},
            "composer.allow: allow names modules, not files, got 'nets.py'; did you mean 'nets'?",
        ),
        (
            {"allow": ["no_such_module_here"]},
            "composer.allow: no_such_module_here: there is no module 'no_such_module_here'; "
            "is its folder in composer.path?",
        ),
    ],
)
def test_a_wrong_setting_is_said(editor, settings, given, message):
    settings(**given)
    editor.wait_until(lambda: editor.messages)
    assert editor.messages == [message]


def test_the_environment_of_the_editor_is_that_of_specs_without_one(editor, uri, settings):
    shapes = {"range": {"start": {"line": 0, "character": 0}, "end": {"line": 99, "character": 0}}}
    assert editor.ask(lsp.TEXT_DOCUMENT_INLAY_HINT, uri, **shapes) == ()
    settings(**ALLOW, environment="CartPole-v1")
    hints = editor.ask(lsp.TEXT_DOCUMENT_INLAY_HINT, uri, **shapes)
    assert [hint.label for hint in hints] == ["→ (32,)", "→ action (2,)"]
    settings(**ALLOW, environment="CartPole-v1", makeEnvironments=False)
    assert editor.ask(lsp.TEXT_DOCUMENT_INLAY_HINT, uri, **shapes) == ()
    (lens,) = editor.ask(lsp.TEXT_DOCUMENT_CODE_LENS, uri)
    assert lens.command.title == "shapes are not known: the editor is set not to make environments"


NOISY = """\
import os, sys
print("imported")
os.write(1, b"Content-Length: 3\\r\\n\\r\\n{}!")
os.system("echo from a process; cat")
open(MARKER, "w").close()
from torch.nn import Linear as Net
"""


@pytest.mark.parametrize("comment", ["", "# composer: allow=noisy_{}\n"])
def test_a_module_that_is_not_allowed_is_not_imported(editor, uri, tmp_path, settings, comment):
    name = f"noisy_{len(comment)}"
    marker = tmp_path / "imported"
    (tmp_path / f"{name}.py").write_text(NOISY.replace("MARKER", repr(str(marker))))
    settings(allow=[], path=[str(tmp_path)])
    block = BARE.replace("block: dense", f"block: {name}.Net").replace(", hidden_units: 32", "")
    messages = [each.message for each in editor.open(uri, comment.format(len(comment)) + block)]
    assert (
        f"'{name}.Net' is outside the allowed modules (none); pass allow=['{name}'] or --allow {name} if you trust it"
    ) in messages
    if comment:
        assert any("a file does not say itself what may run" in message for message in messages)
    assert len(messages) == 1 + bool(comment)
    assert not marker.exists()
    # Once the user allows it, it is imported, and what it prints does not come between the messages.
    settings(allow=[name], path=[str(tmp_path)])
    assert editor.open(uri, block) == []
    assert marker.exists()
    assert editor.messages == []


# --- many changes -----------------------------------------------------------------------------------------------------


def test_of_many_changes_the_last_one_is_checked(editor, uri):
    editor.open(uri, SPEC)
    before = editor.published[uri]
    for number in range(100):
        text = SPEC.replace("32", str(100 + number))
        editor.send(uri, text.replace("dense", "dnse") if number == 99 else text)
        editor.pause(0.01)
    editor.wait_until(lambda: editor.diagnostics[uri])
    assert editor.published[uri] - before <= 20
    (diagnostic,) = editor.diagnostics[uri]
    assert editor.under(uri, diagnostic.range) == "dnse"


def long_spec(count: int, width: int = 64) -> str:
    nodes = "".join(
        f"    n{i}: {{block: dense, in: n{i - 1}, hidden_units: {width if i == 1 else 64}}}\n"
        for i in range(1, count)
    )
    first = "    n0: {block: dense, in: observation, hidden_units: 64}\n"
    head, tail = SPEC.split("    latent:")[0], f"  heads: {{in: n{count - 1}}}\n"
    return head + first + nodes + tail


def test_completion_does_not_wait_for_a_check(editor, uri):
    editor.open(uri, long_spec(200))
    editor.known(uri)
    times = []
    for width in range(65, 71):
        before = editor.published[uri]
        editor.send(uri, long_spec(200, width))
        editor.pause(0.063)  # the check has begun
        begun = time.perf_counter()
        answer = editor.ask(lsp.TEXT_DOCUMENT_COMPLETION, uri, editor.find(uri, "in: n150|,"))
        times.append(time.perf_counter() - begun)
        assert "n150" in {item.label for item in answer.items}
        editor.wait_until(lambda before=before: editor.published[uri] > before)
    assert min(times) < 0.1  # `make bench` has the numbers of a quiet machine


def test_a_document_that_is_opened_twice_is_one(editor, uri):
    assert editor.open(uri, SPEC.replace("dense", "dnse")) != []
    editor._versions.pop(uri)
    assert editor.open(uri, SPEC) == []


def test_an_experiment_is_checked(editor, uri):
    text = "version: 1\nextends: ppo\ncalls:\n  rew_inf: {with: sentimnt}\n"
    (diagnostic,) = editor.open(uri, text)
    assert diagnostic.message.startswith("unknown interface 'sentimnt'; known are ")
    assert editor.under(uri, diagnostic.range) == "sentimnt"
    assert editor.ask(lsp.TEXT_DOCUMENT_HOVER, uri, (3, 14)) is None
    assert [each.name for each in editor.ask(lsp.TEXT_DOCUMENT_DOCUMENT_SYMBOL, uri)] == [
        "version",
        "calls",
    ]


# --- hostile texts ----------------------------------------------------------------------------------------------------


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SPEC + BOMB, "the document grows to "),
        (SPEC + "x: " + "[" * 3000 + "]" * 3000, "nested more than 50 deep"),
        (SPEC + "x: " + "{a: " * 200, "nested more than 50 deep"),
        (SPEC + "x: &x [*x]\n", "the value of '&x' holds itself"),
        (SPEC + "x: !!python/object/apply:os.system [ls]\n", "the tag '!!python/object/apply:os.system' is refused"),
        (SPEC + "x: '\0'\n", "the character U+0000 has no place in YAML"),
        (SPEC + "# " + "x" * 1024 * 1024 * 10, "the spec is longer than 1048576 characters, too long for a spec"),
        (SPEC + "x: " + "'" * 5001, "this quote is never closed"),
    ],
    ids=["aliases", "lists", "mappings", "itself", "tag", "zero", "long", "quotes"],
)  # fmt: skip
def test_a_hostile_text_is_a_problem_and_no_more(editor, uri, text, message):
    begun = time.perf_counter()
    diagnostics = editor.open(uri, text)
    assert [each for each in diagnostics if each.message.startswith(message)], diagnostics
    for method in (lsp.TEXT_DOCUMENT_DOCUMENT_SYMBOL, lsp.TEXT_DOCUMENT_CODE_LENS):
        editor.ask(method, uri)
    for method in (
        lsp.TEXT_DOCUMENT_HOVER,
        lsp.TEXT_DOCUMENT_COMPLETION,
        lsp.TEXT_DOCUMENT_DEFINITION,
    ):
        editor.ask(method, uri, (4, 6))
    editor.fixes(uri)
    assert time.perf_counter() - begun < 20
    assert editor.open(uri, SPEC) == []


def test_a_document_without_a_file_is_checked(editor):
    address = "untitled:Untitled-1"
    (diagnostic,) = editor.open(address, SPEC.replace("dense", "dnse"))
    assert diagnostic.message == "unknown block 'dnse'; did you mean 'dense'?"
    editor.close(address)


# --- its end ----------------------------------------------------------------------------------------------------------


def test_it_is_seen_whether_a_process_is_there():
    assert _is_alive(os.getpid())
    assert not _is_alive(2**22 + 1)


ENDLESS = """
import os, time
from torch import nn
def wait():
    open(MARKER, "w").write(str(os.getpid()))
    while True: time.sleep(0.1)
class Net(nn.Module):
    def __init__(self): wait()
"""


@pytest.mark.full
@pytest.mark.parametrize("way", ["closes", "dies"])
def test_a_server_ends_with_its_client(tmp_path, way):
    """Also while a check is in a class that never returns, and while another process has the pipe open."""
    marker = tmp_path / "waits"
    (tmp_path / "endless.py").write_text(ENDLESS.replace("MARKER", repr(str(marker))))
    client = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    options = ("--allow", "endless")
    editor = Editor(str(tmp_path), {"path": [str(tmp_path)]}, *options, process=client.pid)
    block = SPEC.replace("block: dense", "block: endless.Net").replace(", hidden_units: 32", "")
    editor.send((tmp_path / "agent.yaml").as_uri(), block)
    editor.wait_until(marker.exists)
    if way == "closes":
        assert editor.process.stdin is not None
        editor.process.stdin.close()
    client.kill()
    client.wait()
    assert editor._run(editor.process.wait()) == 1
    editor.runner.close()


@pytest.mark.full
def test_the_process_of_an_environment_ends_with_the_server(tmp_path):
    marker = tmp_path / "waits"
    text = ENDLESS.replace("MARKER", repr(str(marker))).replace("def wait():", "def wait(**_):")
    text += "import gymnasium\ngymnasium.register('Endless-v0', entry_point=wait)\n"
    (tmp_path / "endless.py").write_text(text)
    editor = Editor(str(tmp_path), {"path": [str(tmp_path)]})
    uri = (tmp_path / "agent.yaml").as_uri()
    editor.configure(allow=["endless"], path=[str(tmp_path)])
    editor.send(uri, SPEC.replace("CartPole-v1", "endless:Endless-v0"))
    editor.wait_until(lambda: marker.exists() and marker.read_text())
    process = int(marker.read_text())
    assert process != editor.process.pid
    editor.process.kill()
    assert editor._run(editor.process.wait()) == -signal.SIGKILL
    editor.runner.close()
    deadline = time.monotonic() + 20
    while _is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_alive(process)


def test_the_settings_of_a_client_may_be_for_several_servers():
    from composer.editor.client_settings import ClientSettings, read_settings, section_of

    assert section_of({"composer": {"allow": []}, "pylsp": {}}) == {"allow": []}
    assert section_of({"composer.allow": ["a"]}) == {"allow": ["a"]}
    assert section_of({"allow": ["a"], "other": 1}) == {"allow": ["a"], "other": 1}
    assert section_of({"pylsp": {}}) is None
    assert section_of(None) is None
    given = {"allow": ["a"], "path": ["b"], "environment": "C-v1", "makeEnvironments": False}
    assert read_settings(given) == (ClientSettings(("a",), ("b",), "C-v1", False), [])
    assert read_settings({"environment": None}) == (ClientSettings(), [])
