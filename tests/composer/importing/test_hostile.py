"""Files that nobody should read: each is a line in a moment, and nothing of it runs."""

import os
import time

import pytest

import composer
from composer.cli.commands import main
from tests.helpers.foreign import refusal

NET = "params: {algo: {}, network: {name: actor_critic, space: {discrete: 1}, mlp: %s}}\n"
BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}], k{n}: 1}}\n" for n in range(1, 12)
)
CLASSES = (
    "class A:\n"
    + "".join(f"    x{n} = 1\n" for n in range(3_000))
    + "".join(f"class B{n}(A): y = 1\n" for n in range(3_000))
)
LISTS = "a0 = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n} = [{', '.join([f'a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "file", "message"),
    [
        (BOMB, "a.yaml", "a.yaml:6:5: the document grows to 1111111 values; a spec may have 300000"),
        (MERGES, "a.yaml", "a.yaml:7:14: the document grows to "),
        ("[" * 100_000, "a.yaml", "a.yaml:1:51: nested more than 50 deep"),
        ("a: &a [*a]\n", "a.yaml", "a.yaml:1:8: the value of '&a' holds itself"),
        ("a: b\0c\n", "a.yaml", "a.yaml:1:5: the character U+0000 has no place in YAML; is this a text file?"),
        (
            "params: !!python/object/apply:os.system ['touch ran']\n",
            "a.yaml",
            "a.yaml:1:9: the tag '!!python/object/apply:os.system' is refused: nothing of the file is made by its name",
        ),
        ("a: 1\n--- \nb: 2\n", "a.yaml", "a.yaml:2:1: a second document starts here; a spec is one document"),
        ("", "a.yaml", "a.yaml:1:1: a configuration is a mapping of keys to values, got nothing"),
        ("- 1\n", "a.yaml", "a.yaml:1:1: a configuration is a mapping of keys to values, got a list"),
        ("? [1]\n: 2\n", "a.yaml", "a.yaml:1:3: a key is a text, got a list"),
        ("{<<: 3}\n", "a.yaml", "a.yaml:1:6: a merge key '<<' takes a mapping, got the number 3"),
        (NET % "{units: [1e400], activation: elu}", "a.yaml", "a.yaml:1:78: params.network.mlp.units: must be a list of whole numbers of at least 1, got [inf]"),
        (CLASSES, "a.py", "a.py:3050:1: the file grows to more than 300000 values"),
        (LISTS, "a.py", "a.py:6:6: the file grows to "),
        ("(" * 5_000 + ")" * 5_000, "a.py", "a.py:1:"),
        ("a" + ".b" * 50_000 + "\n", "a.py", "a.py:1:1: "),
        ("x = 1" + " + 1" * 50_000 + "\n", "a.py", "a.py:1:1: "),
        ("x = " + "9" * 10_000 + "\n", "a.py", "a.py:1:1: "),
        ("x = [" + "{'a': " * 90 + "1" + "}" * 90 + "]\n", "a.py", "a.py:1:"),
        ("import os\nos.system('touch ran')\nclass A:\n    policy = os.system('touch ran')\n", "a.py", "a.py:1:1: "),
    ],
    ids=range(20),
)  # fmt: skip
def test_a_hostile_text_is_a_line_and_nothing_runs(text, file, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    said = refusal(tmp_path, text, file)
    assert time.perf_counter() - start < 5
    assert said.split("\n")[0].startswith(message)
    assert len(said) < 1_000
    assert not os.path.exists("ran")


MANY = 2**31 - 1
ACTOR = "{hidden_dims: [4], activation: elu, distribution_cfg: {std_type: log}, class_name: RNNModel, rnn_num_layers: %d}"
ZOO = "Hopper-v4: {policy: %s, n_timesteps: 9, policy_kwargs: 'dict(%s)'}\n"


@pytest.mark.parametrize(
    ("text", "file", "key"),
    [
        (f"behaviors: {{W: {{network_settings: {{num_layers: {MANY}}}}}}}", "a.yaml", "W.network_settings.num_layers"),
        (NET % f"{{units: [4], activation: elu}}, rnn: {{name: gru, units: 4, layers: {MANY}}}", "a.yaml", "rnn.layers"),
        (f"actor: {ACTOR % MANY}\ncritic: {{hidden_dims: [4]}}\n", "a.yaml", "actor.rnn_num_layers"),
        (ZOO % ("MlpPolicy", f"n_critics={MANY}"), "sac.yml", "policy_kwargs.n_critics"),
        (ZOO % ("MlpLstmPolicy", f"n_lstm_layers={MANY}"), "ppo_lstm.yml", "policy_kwargs.n_lstm_layers"),
    ],
)  # fmt: skip
def test_a_number_of_layers_cannot_fill_the_memory(text, file, key, tmp_path):
    must = "must be a whole number of at least 1 and at most 1000, got the number 2147483647"
    assert f"{key}: {must}" in refusal(tmp_path, text, file)


@pytest.mark.parametrize("name", ["a.yaml", "a.py", "a.zip"])
def test_a_large_file_is_not_read(name, tmp_path):
    (tmp_path / name).write_bytes(b"a: 1\n" * 2_500_000)
    with pytest.raises(composer.SpecError) as error:
        composer.import_config(tmp_path / name)
    message = f"'{tmp_path / name}' is larger than 1,048,576 bytes, too large for a configuration"
    assert str(error.value) == message


def test_what_is_no_text_file_is_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)) * 4)
    os.symlink("loop.yaml", "loop.yaml")
    os.symlink("nowhere.yaml", "dangling.yaml")
    os.mkfifo("pipe.yaml")
    os.mkdir("folder")
    said = {
        "binary.yaml": "binary.yaml:2:118: the byte 0x80 is not UTF-8; is this a text file?",
        "loop.yaml": "'loop.yaml' cannot be read: Too many levels of symbolic links",
        "dangling.yaml": "'dangling.yaml' is a link to a file that is not there",
        "pipe.yaml": "'pipe.yaml' is not a regular file",
        "folder": "'folder' is a folder, not a file",
        "binry.yaml": "there is no file 'binry.yaml'; did you mean 'binary.yaml'?",
        "a\0b": "'a\\x00b' cannot be read: embedded null byte",
    }
    for name, message in said.items():
        assert main(["import", name]) == 1
        out, error = capsys.readouterr()
        assert (out, error.split("\n")[0]) == ("", message)


def test_a_link_to_a_configuration_is_read(tmp_path):
    (tmp_path / "real.yaml").write_text("models: {policy: {class: Nope}}\n")
    (tmp_path / "link.yaml").symlink_to("real.yaml")
    with pytest.raises(
        composer.SpecError,
        match=r"link.yaml:1:19: models.policy.class: there is no policy 'Nope' here",
    ):
        composer.import_config(tmp_path / "link.yaml")


def test_notes_of_a_file_cannot_leave_their_comment(tmp_path):
    """A key with a line break stays within the comment above the spec."""
    (tmp_path / "a.yaml").write_text(
        'params:\n  algo: {}\n  network:\n    name: actor_critic\n    space: {discrete: }\n    "x\\npolicy: 1": 2\n'
        "    mlp: {units: [4], activation: relu}\n"
    )
    text = composer.import_config(tmp_path / "a.yaml").to_yaml()
    assert "# not taken over: params.network.x\\npolicy: 1\n" in text
    assert [line for line in text.splitlines() if line.startswith("policy")] == ["policy:"]
