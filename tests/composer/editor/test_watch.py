"""composer watch without a browser: who is answered, what a page is told, and which files it follows."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

import composer
from composer.cli.commands import main
from composer.editor import watch_server
from composer.editor.watch_files import changes
from composer.editor.watch_look import Look, Looker, Place, Request
from composer.editor.watch_opener import Opener, OpenerError
from composer.editor.watch_server import PortError, listening, serve
from composer.editor.watch_state import Watch
from tests.helpers.example_models import CARTPOLE
from tests.helpers.paths import ROOT
from tests.helpers.watching import BROKEN, PATIENCE, SPEC, Client, served


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    spec = folder / "agent.yaml"
    spec.write_text(SPEC)
    composer.compose(spec, **CARTPOLE, seed=0).save(folder / "spaces.safetensors")
    return folder


@pytest.fixture(scope="module")
def looker(folder):
    looker = Looker(Request(str(folder / "agent.yaml")))
    yield looker
    looker.close()


@pytest.fixture
def client(folder, looker):
    (folder / "agent.yaml").write_text(SPEC)
    with served(looker.look, folder / "agent.yaml") as client:
        yield client


def state_in(page: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1]
    )


def said(state) -> dict[str, str]:
    return {box["path"]: box["said"] for box in state["drawing"]["boxes"].values()}


# --- who is answered --------------------------------------------------------------------------------------------------


def test_only_the_page_itself_is_answered(client):
    status, headers, page = client.ask()
    assert status == 200
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert not [name for name in headers if name.startswith("access-control")]
    policy = headers["content-security-policy"]
    (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert re.findall(r'<(?:script|style) nonce="([^"]+)">', page) == [nonce, nonce]
    assert nonce not in client.ask()[2]
    assert client.ask(headers={"Host": "evil.example"})[0] == 400
    assert client.ask(headers={"Host": f"evil.example:{client.host.split(':')[1]}"})[0] == 400
    for path in ("/", "/x/", client.path[:-2] + "x/", "/events", "/open"):
        assert client.ask(path)[0] == 404
    assert client.ask(client.path + "open")[0] == 405


def test_only_the_page_itself_may_ask_to_open_a_place(client):
    asked = {"box": "policy/latent"}
    assert client.open(asked, "http://evil.example") == (403, "not from this page")
    assert client.open(asked, "null") == (403, "not from this page")
    assert client.ask(client.path + "open", "POST", {}, "{}")[0] == 403
    assert client.open(asked) == (404, "nothing to open")  # there is no --open
    assert client.open({"box": "x" * 5000}) == (413, "too long")
    host = client.host.replace("127.0.0.1", "localhost")
    headers = {"Host": host, "Origin": f"http://{client.host}"}
    assert client.ask(client.path + "open", "POST", headers, "{}")[0] == 403


@pytest.mark.parametrize(
    "asked",
    [
        b"", b"[" * 4000, b"[]", b"{", b"\xff", b'{"box": 1}', b'{"problem": -1}', b'{"problem": true}',
        b'{"problem": 0, "number": 0}', b'{"box": "/etc/passwd"}', b'{"file": "/etc/passwd"}',
    ],
)  # fmt: skip
def test_a_page_names_boxes_and_problems_only(asked):
    assert Watch("agent.yaml", lambda given_up: None).place(asked) is None


# --- what a page is told ----------------------------------------------------------------------------------------------


def test_the_page_holds_the_picture_and_knows_boxes_by_path(client):
    state = state_in(client.ask()[2])
    assert (state["name"], state["good"], state["problems"]) == ("agent.yaml", True, [])
    assert state["drawing"]["svg"].startswith("<svg")
    boxes = {box["path"]: (name, box) for name, box in state["drawing"]["boxes"].items()}
    assert list(boxes) == [
        "inputs/observation", "policy/first", "policy/latent", "policy/heads/action", "outputs/policy/action",
        "critic/latent", "critic/heads/value", "outputs/critic/value",
    ]  # fmt: skip
    name, latent = boxes["policy/latent"]
    assert f'<g id="{name}" class="node">' in state["drawing"]["svg"]
    assert latent["place"].endswith("agent.yaml:6:13")
    assert ["setting hidden_units", "16"] in latent["details"]


def test_a_page_does_not_wait_long_for_the_first_look(folder, looker, monkeypatch):
    monkeypatch.setattr(watch_server, "FIRST", 0.05)
    is_asked = threading.Event()

    def look(given_up):
        is_asked.wait(PATIENCE)
        return looker.look(given_up)

    (folder / "agent.yaml").write_text(SPEC)
    with served(look, folder / "agent.yaml") as client:
        state = state_in(client.ask()[2])
        assert (state["number"], state["good"], "drawing" in state) == (0, None, False)
        client.listen("0-0")
        is_asked.set()
        state = client.event()
        assert (state["number"], state["good"], "drawing" in state) == (1, True, True)


def test_a_save_is_shown_and_says_which_boxes_are_others(client, folder):
    state = state_in(client.ask()[2])
    client.listen(f"{state['number']}-{state['picture']}")
    begun = time.monotonic()
    (folder / "agent.yaml").write_text(SPEC.replace("hidden_units: 16", "hidden_units: 32"))
    after = client.event()
    assert time.monotonic() - begun < PATIENCE
    assert after["number"] == state["number"] + 1
    before, now = said(state), said(after)
    assert {path for path in now if now[path] != before.get(path)} == {
        "policy/latent",
        "policy/heads/action",
    }


def test_lines_above_and_shares_of_parameters_are_no_change(client, folder):
    state = state_in(client.ask()[2])
    client.listen(f"{state['number']}-{state['picture']}")
    more = SPEC.replace(
        "    latent: {block: dense, in: obs", "\n\n    latent: {block: dense, in: obs"
    )
    assert more != SPEC
    (folder / "agent.yaml").write_text(more)
    moved = client.event()
    assert said(moved) == said(state)
    places = [
        box["place"] for box in moved["drawing"]["boxes"].values() if box["path"] == "critic/latent"
    ]
    assert places[0].endswith("agent.yaml:12:13")


def test_another_order_of_inputs_is_a_change(client, folder):
    spec = SPEC.replace(
        "  heads: {in: latent}",
        "    both: {block: concat, in: [first, latent]}\n  heads: {in: both}",
    ).replace("hidden_units: 16", "hidden_units: 8")
    client.listen()
    client.event()
    (folder / "agent.yaml").write_text(spec)
    before = said(client.event())
    (folder / "agent.yaml").write_text(spec.replace("[first, latent]", "[latent, first]"))
    after = said(client.event())
    assert {path for path in after if after[path] != before.get(path)} == {"policy/both"}


def test_a_broken_spec_keeps_the_picture_and_lists_the_problems(client, folder):
    state = state_in(client.ask()[2])
    client.listen(f"{state['number']}-{state['picture']}")
    (folder / "agent.yaml").write_text(BROKEN)
    broken = client.event()
    assert broken["good"] is False
    assert "drawing" not in broken  # the page has it
    (latent,) = [
        n for n, box in state["drawing"]["boxes"].items() if box["path"] == "policy/latent"
    ]
    assert broken["problems"] == [
        {
            "where": "agent.yaml:6:21",
            "place": f"{folder}/agent.yaml:6:21",
            "message": "unknown block 'dnse'; did you mean 'dense'?",
            "box": latent,
        }
    ]
    fresh = state_in(client.ask()[2])
    assert fresh["drawing"] == state["drawing"]
    assert fresh["good"] is False
    (folder / "agent.yaml").write_text(SPEC)
    assert client.event()["good"] is True


def test_a_problem_without_a_place_is_told_once(client, folder):
    spec = folder / "agent.yaml"
    client.listen()
    client.event()
    spec.unlink()
    (problem,) = client.event()["problems"]
    assert (problem["where"], problem["place"]) == ("", None)
    assert problem["message"].startswith(f"there is no file '{spec}'")


def test_who_comes_back_gets_what_is_new(client, folder):
    state = state_in(client.ask()[2])
    number = state["number"]
    (folder / "agent.yaml").write_text(BROKEN)
    client.listen(f"{number}-{number}")
    assert client.event()["number"] == number + 1
    for seen, has_drawing in ((f"{number}-{number}", False), ("", True), ("x-9999999999999", True)):
        client.listen(seen)
        assert ("drawing" in client.event()) == has_drawing


def test_a_client_that_dies_disturbs_nobody(client, folder):
    other = Client(f"http://{client.host}{client.path}")
    other.listen()
    other.event()
    other.close()
    client.listen()
    client.event()
    (folder / "agent.yaml").write_text(BROKEN)
    assert client.event()["good"] is False


def test_text_of_a_spec_cannot_end_the_script(folder, looker):
    (folder / "agent.yaml").write_text(
        SPEC.replace("dense, in: first", '"</script><b>", in: first')
    )
    with served(looker.look, folder / "agent.yaml") as client:
        page = client.ask()[2]
        assert "</script><b>" not in page
        assert "</script><b>" in state_in(page)["problems"][0]["message"]


# --- which files it follows -------------------------------------------------------------------------------------------


def test_bases_vanished_files_and_renames_are_followed(client, folder):
    spec, base = folder / "agent.yaml", folder / "base.yaml"
    client.listen()
    assert client.event()["good"] is True
    spec.write_text("# composer: spaces=spaces.safetensors\nextends: base.yaml\n")
    assert client.event()["good"] is False
    base.write_text(SPEC)  # it was not there
    assert client.event()["good"] is True
    (folder / "base.new").write_text(BROKEN)
    os.replace(folder / "base.new", base)
    assert [problem["where"] for problem in client.event()["problems"]] == ["base.yaml:6:21"]
    base.write_text(SPEC)
    assert client.event()["good"] is True
    spec.unlink()
    assert "there is no file" in client.event()["problems"][0]["message"]
    spec.write_text(SPEC.replace("16", "24"))
    assert client.event()["good"] is True


async def _seen(folder, file, act):
    """How many changes are told of after ``act``."""
    stop, count = asyncio.Event(), 0
    following = changes(lambda: [str(file)], stop)
    telling = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0.3)
    assert not telling.done()
    act()
    await asyncio.wait_for(telling, PATIENCE)
    stop.set()
    await following.aclose()
    return count + 1


def test_a_folder_that_goes_and_comes_back_is_followed(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    file = inner / "agent.yaml"
    file.write_text("a")

    def replaced():
        shutil.rmtree(inner)
        inner.mkdir()
        file.write_text("b")

    assert asyncio.run(_seen(tmp_path, file, replaced)) == 1
    shutil.rmtree(inner)

    def made():
        inner.mkdir()
        file.write_text("c")

    assert asyncio.run(_seen(tmp_path, file, made)) == 1


def test_the_file_that_a_link_leads_to_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "agent.yaml"
    real.write_text("a")
    link = tmp_path / "agent.yaml"
    link.symlink_to(real)
    assert asyncio.run(_seen(tmp_path, link, lambda: real.write_text("changed"))) == 1


def test_a_newer_text_gives_up_the_look_at_the_one_before(tmp_path):
    file = tmp_path / "agent.yaml"
    file.write_text("0")
    given, looks = [], []

    def look(given_up):
        looks.append(file.read_text())
        while file.read_text() == "0" or (looks[-1] == "0" and not given_up()):
            time.sleep(0.01)
        given.append(given_up())
        return Look(None, [], [str(file)], 0.0)

    with served(look, file) as client:
        client.listen()
        time.sleep(0.5)
        file.write_text("1")
        assert client.event()["number"] == 1
    assert looks[0] == "0"
    assert looks[-1] == "1"
    assert given[0] is True
    assert given[-1] is False


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_name_of_a_file_is_one_argument_and_no_shell_reads_it(folder, tmp_path):
    name = "\"; rm -rf $HOME; {line} 'a b.yaml"
    spec = tmp_path / name
    spec.write_text(SPEC)
    shutil.copy(folder / "spaces.safetensors", tmp_path)
    told = tmp_path / "told"
    script = tmp_path / "open.sh"
    script.write_text(
        f'#!/bin/sh\nfor word; do echo "<$word>"; done > {told}.new; mv {told}.new {told}\n'
    )
    script.chmod(0o755)
    with served(
        Looker(Request(str(spec))).look,
        spec,
        f"{script} -g {{file}}:{{line}} 'at {{column}}' {{unknown}}",
    ) as client:
        state = state_in(client.ask()[2])
        assert state["opens"] is True
        assert client.open({"box": "policy/latent"})[0] == 200
        assert _read(told) == ["<-g>", f"<{spec}:6>", "<at 13>", "<{unknown}>"]
        client.listen(f"{state['number']}-{state['picture']}")
        spec.write_text(BROKEN)
        number = client.event()["number"]
        status, text = client.open({"problem": 0, "number": number})
        assert (status, text) == (200, f"opened {spec}:6:21")
        assert _read(told)[1] == f"<{spec}:6>"
        assert client.open({"problem": 0, "number": number - 1}) == (404, "nothing to open")
        assert client.open({"problem": 7, "number": number}) == (404, "nothing to open")


def _read(told):
    end = time.monotonic() + PATIENCE
    while not told.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    lines = told.read_text().splitlines()
    told.unlink()
    return lines


def test_a_program_that_has_gone_is_told(tmp_path):
    program = tmp_path / "editor"
    program.write_text("#!/no/such/shell\n")
    program.chmod(0o755)
    opener = Opener(f"{program} {{file}}")
    with pytest.raises(OpenerError, match=r"editor' does not start: No such file or directory$"):
        asyncio.run(opener.open(Place("agent.yaml", 1, 1)))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("code '{file}", """--open "code '{file}" is no command: No closing quotation"""),
        (
            "code -g",
            "--open 'code -g' does not say where the file goes; write such as --open 'code -g {file}:{line}'",
        ),
        (
            "",
            "--open '' does not say where the file goes; write such as --open 'code -g {file}:{line}'",
        ),
        ("no_such_editor {file}", "--open: there is no program 'no_such_editor' on the PATH"),
    ],
)
def test_a_command_that_opens_nothing_is_refused(command, message):
    with pytest.raises(OpenerError, match=f"^{re.escape(message)}$"):
        Opener(command)


# --- what stands in the way -------------------------------------------------------------------------------------------


def test_a_port_that_is_taken():
    with listening(0) as server:
        port = server.getsockname()[1]
        message = f"port {port} cannot be used: Address already in use; leave out --port, and a free one is taken"
        with pytest.raises(PortError, match=f"^{re.escape(message)}$"):
            listening(port)
    listening(port).close()  # and free again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "composer watch: there is no file 'nothing'\n"),
        (
            ["agent.yml"],
            "composer watch: there is no file 'agent.yml'; did you mean 'agent.yaml'?\n",
        ),
        (["."], "composer watch: '.' is a folder, not a file\n"),
        (
            ["agent.safetensors"],
            "composer watch: agent.safetensors is a checkpoint, which does not change; composer watch takes a spec\n",
        ),
        (["agent.yaml", "--open", "x"], "--open 'x' does not say where the file goes;"),
    ],
)
def test_what_cannot_be_watched_is_told_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.yaml").write_text(SPEC)
    assert main(["watch", *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("port", ["x", "-1", "65536", "²"])
def test_a_port_is_a_number(port, capsys):
    with pytest.raises(SystemExit):
        main(["watch", "agent.yaml", f"--port={port}"])
    assert f"write a number from 0 to 65535, got {port!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            SPEC.removeprefix("# composer: spaces=spaces.safetensors\n"),
            "shapes are not known: the spec names no environment; write environment: ID, or a comment # composer: "
            "env=ID or # composer: spaces=agent.safetensors",
        ),
        (
            SPEC.replace(
                "{block: dense, in: first, hidden_units: 16}", "{block: no_such.Net, in: first}"
            ),
            "'no_such.Net' is outside the allowed modules (none); pass allow=['no_such']",
        ),
    ],
)
def test_what_cannot_be_drawn_is_a_problem(spec, message, folder):
    (folder / "other.yaml").write_text(spec)
    look = Looker(Request(str(folder / "other.yaml"))).look()
    assert look.drawing is None
    assert message in look.problems[0].message


def test_a_mistake_in_the_structure_hides_no_misspelt_setting(folder):
    spec = folder / "both.yaml"
    spec.write_text(
        BROKEN.replace("in: observation, hidden_units", "in: observation, hiden_units", 1)
    )
    look = Looker(Request(str(spec))).look()
    assert [problem.message for problem in look.problems] == [
        "'hiden_units' is not a setting of block 'dense'; did you mean 'hidden_units'?",
        "unknown block 'dnse'; did you mean 'dense'?",
    ]


def test_an_environment_that_cannot_be_made_is_told_once(tmp_path):
    spec = tmp_path / "agent.yaml"
    spec.write_text(f"environment: no_such_module:Env-v0\n{SPEC}")
    look = Looker(Request(str(spec))).look()
    assert [problem.path for problem in look.problems] == [("environment",)]
    assert str(look.problems[0].position).endswith("agent.yaml:1:14")


def test_an_exception_of_a_users_class_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "my_broken_nets.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self, **_):\n        raise RuntimeError('it does not work')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = (
        "version: 1\nnetwork:\n  inputs: {seen: [4]}\n  outputs: {x: 2}\n"
        "  graph:\n    x: {block: my_broken_nets.Net, in: seen}\n"
    )
    (tmp_path / "net.yaml").write_text(spec)
    look = Looker(Request(str(tmp_path / "net.yaml"), allow=("my_broken_nets",))).look()
    assert look.drawing is None
    assert "it does not work" in look.problems[0].message


def test_experiments_are_shown_too(tmp_path):
    shutil.copy(ROOT / "configs" / "cartpole.yaml", tmp_path)
    shutil.copytree(ROOT / "composer/dataflow/quickstarts", tmp_path / "quick")
    look = Looker(Request(str(tmp_path / "quick" / "ppo.yaml"))).look()
    assert look.drawing is not None, look.problems
    assert any("actor_train" in box.path for box in look.drawing.boxes.values())


# --- a process of its own ---------------------------------------------------------------------------------------------


def test_ctrl_c_right_after_the_address_ends_it_well(folder, looker):
    watch = Watch(str(folder / "agent.yaml"), looker.look)
    with listening(0) as server:
        asyncio.run(serve(watch, server, None, lambda address: signal.raise_signal(signal.SIGINT)))
    assert watch.stopped.is_set()


def test_ctrl_c_ends_it_well(tmp_path):
    """At once, while the first look goes on."""
    spec = tmp_path / "agent.yaml"
    spec.write_text(f"environment: CartPole-v1\n{SPEC}")
    command = [sys.executable, "-m", "composer", "watch", str(spec)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        address = process.stdout.readline().strip()
        client = Client(address)
        client.listen()
        process.send_signal(2)
        rest, errors = process.communicate(timeout=PATIENCE)
        client.close()
    assert (process.returncode, rest, errors) == (0, "", "")
    listening(int(client.host.split(":")[1])).close()
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(spec) not in left
