// Starts `composer lsp` for YAML files and tells it the settings.
"use strict";

const { workspace } = require("vscode");
const { LanguageClient } = require("vscode-languageclient/node");

let client;

// In a folder that is not trusted nothing may be imported: a module with an allowed name may lie in it.
function settings() {
  const given = workspace.getConfiguration("composer");
  return {
    allow: workspace.isTrusted ? given.get("allow") : [],
    path: workspace.isTrusted ? given.get("path") : [],
    environment: given.get("environment") || null,
    makeEnvironments: given.get("makeEnvironments"),
  };
}

function tell() {
  return client.sendNotification("workspace/didChangeConfiguration", { settings: { composer: settings() } });
}

async function activate(context) {
  const [command, ...args] = workspace.getConfiguration("composerServer").get("command");
  const options = {
    documentSelector: [{ language: "yaml", scheme: "file" }, { language: "yaml", scheme: "untitled" }],
    initializationOptions: { composer: settings() },
    middleware: { workspace: { configuration: (asked) => asked.items.map(settings) } },
  };
  client = new LanguageClient("composerServer", "Perception composer", { command, args }, options);
  const isOurs = (change) => change.affectsConfiguration("composer");
  context.subscriptions.push(
    workspace.onDidChangeConfiguration((change) => (isOurs(change) ? tell() : undefined)),
    workspace.onDidGrantWorkspaceTrust(tell),
  );
  await client.start();
}

module.exports = { activate, deactivate: () => client?.stop() };
