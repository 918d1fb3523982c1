"""An experiment as a table and as a picture, with the same bytes each time, and on the command line."""

import subprocess
import sys

import pytest

from composer.cli.commands import main
from composer.dataflow.calls.call_spec import read_experiment
from composer.dataflow.calls.overview import draw_experiment, picture_of, summary_of
from composer.diagram.drawing import DrawError
from tests.helpers.example_models import expect_golden
from tests.helpers.experiments import PPO, ppo_in, toys


@pytest.fixture(autouse=True)
def _names():
    with toys():
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    ppo_in(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("ending", ["dot", "mermaid"])
def test_the_drawing_is_the_same_bytes(folder, ending):
    experiment = read_experiment(folder / "ppo.yaml")
    path = draw_experiment(experiment, folder / f"ppo.{ending}")
    expect_golden(f"experiment.{ending}", path.read_text(encoding="utf-8"))


def test_the_table_is_the_same_bytes(folder):
    expect_golden("experiment.txt", summary_of(read_experiment(folder / "ppo.yaml")) + "\n")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "html"])
def test_it_is_drawn_in_every_format(folder, ending):
    path = draw_experiment(read_experiment(folder / "ppo.yaml"), folder / f"ppo.{ending}")
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "html": b"<!"}
    assert path.read_bytes().startswith(starts[ending])


def test_the_page_has_the_details_of_calls(folder):
    page = draw_experiment(read_experiment("ppo.yaml"), "ppo.html").read_text(encoding="utf-8")
    assert "logp is ref_logp" in page
    assert "ppo.yaml:11:12" in page


def test_models_without_calls_are_no_frames_and_calls_without_models_stand_alone():
    picture = picture_of(read_experiment(PPO, ["calls.rew_inf.with=longest_run"]))
    assert "model_reward" not in picture.frames
    assert picture.boxes["call_rew_inf"].frame is None
    assert "no call: it is not built" in summary_of(
        read_experiment(PPO, ["calls.rew_inf.with=longest_run"])
    )


@pytest.mark.parametrize("name", ["end", "graph", "a-b", "x" * 100])
def test_names_that_mean_something_to_drawing_programs(name, tmp_path):
    text = (
        PPO.replace("actor_gen", name)
        .replace("reward", name, 1)
        .replace("model: reward", f"model: {name}")
    )
    experiment = read_experiment(text)
    for ending in ("svg", "mmd"):
        draw_experiment(experiment, tmp_path / f"a.{ending}")
    # A graph of Mermaid ends where a word "end" stands alone.
    assert all(
        line.strip() != "end" or line.startswith("  end")
        for line in (tmp_path / "a.mmd").read_text().split("\n")
    )


def test_an_unknown_format_is_told(tmp_path):
    with pytest.raises(DrawError, match="'gif' is not a format of diagrams"):
        draw_experiment(read_experiment(PPO), tmp_path / "a.gif")


# --- the command line ------------------------------------------------------------------------------------------


def test_check_show_and_draw_take_an_experiment(folder, capsys):
    assert main(["check", "ppo.yaml"]) == 0
    assert capsys.readouterr().out == "ppo.yaml: good; 6 calls of 4 models with 14,912 parameters\n"
    assert main(["show", "ppo.yaml", "--set", "run.iterations=7"]) == 0
    assert "iterations  7; seed 0" in capsys.readouterr().out
    assert main(["draw", "ppo.yaml", "-o", "ppo.dot"]) == 0
    assert capsys.readouterr().out == "wrote ppo.dot\n"
    assert main(["draw", "ppo.yaml", "-o", "ppo.gif"]) == 1
    assert "'gif' is not a format of diagrams" in capsys.readouterr().err
    assert main(["diff", "ppo.yaml", "ppo.yaml"]) == 0
    assert capsys.readouterr().out == "no differences\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["export", "ppo.yaml", "-o", "a.onnx"],
            "composer export: ppo.yaml describes an experiment of several models, and composer export takes a model; "
            "`composer run ppo.yaml` runs it\n",
        ),
        (
            ["init", "--from", "ppo.yaml"],
            "composer init: ppo.yaml describes an experiment of several models, and composer init takes a model; "
            "`composer run ppo.yaml` runs it\n",
        ),
        (
            ["check", "ppo.yaml", "--env", "CartPole-v1"],
            "composer check: ppo.yaml describes an experiment, which has no environment; leave out --env\n",
        ),
        (
            ["check", "ppo.yaml", "--set", "calls.rew_inf.with=toy_rewrd"],
            "--set calls.rew_inf.with=toy_rewrd: unknown interface 'toy_rewrd'; did you mean 'toy_reward'?\n",
        ),
        (
            ["show", "ppo.yaml", "--set", "models.actor.vocabulary=none.txt", "--set", "calls.rew_inf.model=reff"],
            "--set calls.rew_inf.model=reff: there is no model 'reff'; did you mean 'ref'?\n",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_line(folder, capsys, arguments, message):
    assert main(arguments) == 1
    assert capsys.readouterr().err == message


def test_check_builds_the_models_without_weights(folder, capsys):
    assert main(["check", "ppo.yaml", "--set", "models.actor.vocabulary=none.txt"]) == 1
    assert capsys.readouterr().err.startswith(
        "composer check: --set models.actor.vocabulary=none.txt: there is no file"
    )


def test_a_model_is_checked_without_torch(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "version: 1\npolicy:\n  graph: {a: {block: dense, in: x, hidden_units: [4]}}\n  heads: {in: a}\n"
    )
    code = (
        "import sys\nfrom composer.cli.commands import main\n"
        f"assert main(['check', {str(tmp_path / 'a.yaml')!r}]) == 0\nsys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode
        == 0
    )


def test_the_settings_of_others_are_known_to_check_and_show_too(folder, capsys):
    assert main(["show", "ppo", "--set", "ppo.kl_ctl=0.25"]) == 0
    assert "kl_ctl: 0.25" in capsys.readouterr().out
    assert main(["check", "ppo", "--set", "ppo.kl_clt=0.25"]) == 1
    assert "did you mean 'kl_ctl'?" in capsys.readouterr().err
