"""The pages about RLlib, and its script in configs, are true, as `tests.whole.test_docs` says of all others."""

import importlib.util

import pytest

import composer
from tests.helpers.pages import ELSEWHERE, open_page
from tests.helpers.paths import CONFIGS, ROOT
from tests.rllib.running import start_ray
from tests.whole.test_docs import check_page

PAGES = [page for page, library in ELSEWHERE.items() if library == "rllib"]


@pytest.mark.parametrize("name", PAGES)
def test_the_examples_of_a_page_hold(name, tmp_path, capsys):
    with open_page(tmp_path) as page:
        check_page(ROOT / name, page, capsys)


def test_the_script_of_the_configs_trains_and_saves_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start_ray()
    path = CONFIGS / "trainers" / "rllib_cartpole.py"
    spec = importlib.util.spec_from_file_location("rllib_cartpole", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main(2) > 10
    assert composer.load("agent.safetensors").observation_space.shape == (4,)
