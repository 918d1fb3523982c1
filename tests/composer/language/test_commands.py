"""What the commands say of an action model."""

import pytest

from composer.cli.commands import main
from tests.helpers.paths import CONFIGS

ALLOW = ["--allow", "environments", "--allow", "networks"]


@pytest.fixture(autouse=True)
def _beside_the_configs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def run(*arguments, capsys):
    status = main([arguments[0], str(CONFIGS / "tiny_vla.yaml"), *arguments[1:], *ALLOW])
    out = capsys.readouterr()
    return status, out.out.replace(f"{CONFIGS}/", ""), out.err.replace(f"{CONFIGS}/", "")


def test_check_acts_once(capsys):
    status, out, err = run("check", capsys=capsys)
    assert (status, err) == (0, "")
    start = "tiny_vla.yaml: good; 85,760 parameters; log-probabilities and values of an action, calculated again, differ by "
    assert out.startswith(start)
    assert float(out.removeprefix(start)) < 1e-5


def test_check_tells_what_does_not_fit(capsys):
    status, _, err = run("check", "--set", "model.action_token_len=7", capsys=capsys)
    assert (status, err) == (
        1,
        "--set model.action_token_len=7: 'action_token_len' is 7, an action has 2 numbers by the statistics of 'point': "
        "it must be 2\n",
    )


def test_show_and_draw(capsys, tmp_path):
    status, out, _ = run("show", capsys=capsys)
    assert status == 0
    assert out.splitlines()[:7] == [
        "part        class       parameters  trained",
        "model       LlamaModel      76,096   76,096",
        "lm_head     Linear           2,048    2,048",
        "projector   Linear           3,136    3,136",
        "places      Embedding          256      256",
        "value_head  ValueHead        4,224    4,224",
        "all         TinyVla         85,760   85,760",
    ]
    for name in ("vla.dot", "vla.mmd", "vla.svg", "vla.html"):
        assert run("draw", "-o", name, capsys=capsys)[:2] == (0, f"wrote {name}\n")
    assert "last token of the prompt" in (tmp_path / "vla.dot").read_text()


@pytest.fixture
def made_without_a_processor(monkeypatch):
    """The tiny model's processor as a class that only a folder makes."""
    from networks.tiny_vla import TinyProcessor  # pyright: ignore[reportMissingImports]

    monkeypatch.delattr(TinyProcessor, "from_config")


def test_a_model_without_a_processor_does_not_act(capsys, made_without_a_processor):
    why = (
        "the model type 'tiny_vla' has no processor; give 'TinyProcessor' a from_config(config), which makes one "
        "without a model_path, or call predict_tokens with input_ids"
    )
    assert run("check", capsys=capsys) == (
        0, f"tiny_vla.yaml: good; 85,760 parameters; it did not act: {why}\n", ""
    )  # fmt: skip
    assert why in run("show", capsys=capsys)[1].splitlines()


def test_check_tells_in_a_line_that_a_class_fails_when_it_acts(capsys):
    """The images of the environment are smaller than the model's: there is a place for each of 16 patches, and 4 patches."""
    status, out, err = run("check", "--set", "model.config.image_size=16", capsys=capsys)
    assert (status, out) == (1, "")
    start = "tiny_vla.yaml: an action of made observations, and its log-probabilities: RuntimeError: The size of tensor a (4)"
    assert err.startswith(start)
    assert err.endswith("(--traceback shows all of it)\n")
    assert err.count("\n") == 1


REFUSED = {
    "export": (("-o", "vla.onnx"), "composer export: an action model is not exported: no file holds its processor and its loop over tokens; model.save_pretrained(folder) writes what transformers reads\n"),
    "train": (("--steps", "10", "-o", "run"), "composer train: no trainer trains an action model: write its loop, as configs/action_ppo.py does\n"),
}  # fmt: skip


@pytest.mark.parametrize("command", REFUSED)
def test_what_does_not_take_it_says_so(command, capsys, tmp_path):
    arguments, message = REFUSED[command]
    assert run(command, *arguments, capsys=capsys) == (1, "", message)
    assert list(tmp_path.iterdir()) == []


def test_init_has_no_templates_to_write_out(capsys):
    status = main(["init", "--from", str(CONFIGS / "tiny_vla.yaml"), *ALLOW])
    err = capsys.readouterr().err
    assert status == 1
    assert err.endswith("tiny_vla.yaml: an action model has no templates to write out\n")


def test_a_checkpoint_is_checked_and_shown(capsys, tmp_path, monkeypatch):
    import composer

    model = composer.compose(CONFIGS / "tiny_vla.yaml", allow=["environments", "networks"], seed=0)
    model.save("vla.safetensors")
    assert main(["check", "vla.safetensors", "--allow", "networks"]) == 0
    assert capsys.readouterr().out.startswith("vla.safetensors: good; 85,760 parameters; ")
    assert main(["show", "vla.safetensors", "--allow", "networks"]) == 0
    assert capsys.readouterr().out.startswith("part ")
