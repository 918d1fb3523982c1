"""Base classes in files beside a Python configuration: they are read as text, and never imported."""

import pytest

import composer
from tests.helpers.foreign import imported, refusal

ROUGH = """\
SIZES = [16, 8]
open("ran", "w")

class Policy(RslRlPpoActorCriticCfg):
    activation = "elu"
    critic_hidden_dims = [8]
    actor_hidden_dims = [7]

class Rough(RslRlOnPolicyRunnerCfg):
    max_iterations = 10
    policy = Policy()
    def __post_init__(self):
        self.policy.actor_hidden_dims = SIZES

def runner():
    return Rough()
"""


def widths(folder, text, **files):
    for name, content in {"rough": ROUGH, **files}.items():
        (folder / f"{name}.py").write_text(content)
    result = imported(folder, text, "cfg.py")
    graphs = (result.spec[part]["graph"]["latent"] for part in ("policy", "critic"))
    return [graph["hidden_units"] for graph in graphs], result.notes


@pytest.mark.parametrize(
    ("text", "actor"),
    [
        ("from .rough import Rough\nclass Flat(Rough):\n    seed = 1\n", [16, 8]),
        ("from rough import Rough as Base\nclass Flat(Base):\n    seed = 1\n", [16, 8]),
        ("from . import rough\nclass Flat(rough.Rough):\n    seed = 1\n", [16, 8]),
        ("import rough as r\nclass Flat(r.Rough):\n    policy = r.Policy(actor_hidden_dims=r.SIZES)\n", [16, 8]),
        ("from .rough import Policy\nclass Flat(RslRlOnPolicyRunnerCfg):\n    policy = Policy()\n", [7]),
        ("from .rough import runner\ndef flat():\n    cfg = runner()\n    cfg.seed = 1\n    return cfg\n", [16, 8]),
        # A method of the base sees the names of its own file.
        ("from .rough import Rough\nSIZES = [1]\nclass Flat(Rough):\n    seed = 1\n", [16, 8]),
        (
            "from .rough import Rough\nSIZES = [1]\nclass Flat(Rough):\n    def __post_init__(self):\n"
            "        super().__post_init__()\n        self.policy.critic_hidden_dims = [8]\n",
            [16, 8],
        ),
        ("from .between import Rough\nclass Flat(Rough):\n    seed = 1\n", [16, 8]),
    ],
)  # fmt: skip
def test_bases_beside_the_file_are_followed(text, actor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg.py").write_text(text)
    between = "from .rough import *\nfrom .cfg import Flat\nfrom rough import Rough\n"
    units, notes = widths(tmp_path, text, between=between)
    assert units == [actor, [8]]
    assert not any("base class" in note for note in notes)
    assert not (tmp_path / "ran").exists()


def test_a_class_that_is_only_imported_is_no_configuration_of_the_file(tmp_path):
    (tmp_path / "rough.py").write_text(ROUGH)
    text = "from .rough import Rough, runner\nclass A(Rough):\n    seed = 1\nclass B(Rough):\n    seed = 2\n"
    said = refusal(tmp_path, text, "cfg.py")
    assert said == "cfg.py:1:1: the file has 'A', 'B'; choose one: --class A, or name="


def test_a_problem_in_a_base_has_its_place_there(tmp_path):
    (tmp_path / "rough.py").write_text(ROUGH.replace('"elu"', '"elo"'))
    said = refusal(tmp_path, "from .rough import Rough\nclass A(Rough):\n    seed = 1\n", "cfg.py")
    assert (
        said
        == "rough.py:5:18: policy.activation: there is no activation 'elo'; did you mean 'elu'?"
    )


@pytest.mark.parametrize(
    "text",
    [
        "from lab.rough import Rough\n",
        "from ..rough import Rough\n",
        "from .rough import Ruff as Rough\n",
        "from .nowhere import Rough\n",
        "from .broken import Rough\n",
        "from .cfg import Rough\n",
        "",
    ],
)
def test_a_base_elsewhere_is_noted(text, tmp_path):
    policy = "    policy = RslRlPpoActorCriticCfg(actor_hidden_dims=[4], critic_hidden_dims=[8])\n"
    units, notes = widths(tmp_path, f"{text}class A(Rough):\n{policy}", broken="class (:\n")
    assert units == [[4], [8]]
    assert notes[0] == (
        "Rough: this base class is in a file that is not beside this one, or cannot be read; what it sets is not known"
    )


def test_files_that_import_one_another_without_end(tmp_path):
    """At most so many are read, and each once."""
    for number in range(60):
        (tmp_path / f"m{number}.py").write_text(
            f"from .m{number + 1} import Rough\nfrom .m{number // 2} import x\n"
        )
    (tmp_path / "m60.py").write_text(ROUGH)
    policy = "    policy = RslRlPpoActorCriticCfg(actor_hidden_dims=[4], critic_hidden_dims=[8])\n"
    (tmp_path / "cfg.py").write_text(f"from .m0 import Rough\nclass A(Rough):\n{policy}")
    notes = composer.import_config(tmp_path / "cfg.py").notes
    assert notes[0].startswith("Rough: this base class is in a file that is not beside this one")


def test_the_keys_of_classes_may_hold_anything(tmp_path):
    """The file's own ``__base__`` and ``__class__`` are no names of classes then."""
    model = (
        "{hidden_dims: [3], activation: elu, distribution_cfg: {class_name: GaussianDistribution}}"
    )
    for value in ("1", "{}", "[]", "true", "null"):
        for key in ("__base__", "__class__"):
            imported(tmp_path, f"{key}: {value}\nactor: {model}\ncritic: {model}\n")
