"""Every wrong `model` is answered with its place, its values and a way out, all problems at once."""

import json
import shutil

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text
from safetensors.torch import load_file, save_file

import composer
from composer.errors import SpecError
from composer.spec.action_model import ELSEWHERE
from tests.helpers.action_models import CONFIG as CONFIG_VALUES
from tests.helpers.action_models import STATISTICS, observations, spec

HEAD = """\
version: 1
model:
  model_type: tiny_vla
"""
CONFIG = """\
  config:
    vocab_size: 40
    hidden_size: 32
    intermediate_size: 64
    num_hidden_layers: 2
    num_attention_heads: 4
    num_key_value_heads: 2
    n_action_bins: 8
    norm_stats:
      bridge: {q01: [-1.0, -2.0, 0.0], q99: [1.0, 2.0, 1.0], mask: [true, true, false]}
"""


def problems(text, tmp_path, **keywords):
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        composer.compose(path, seed=0, **keywords)
    return str(caught.value).replace(f"{tmp_path}/", "")


STRUCTURE = {
    "unknown key": ("  unnorm_keys: bridge", "agent.yaml:4:3: 'unnorm_keys' is not a key of a model; did you mean 'unnorm_key'?"),
    "precision": ("  precision: bf17", "agent.yaml:4:14: 'precision' must be one of bf16, bf16-mixed, 16, fp16, 16-mixed, 32, fp32, 32-true, or null for that of the folder, got the text 'bf17'; did you mean 'bf16'?"),
    "precision number": ("  precision: 64", "agent.yaml:4:14: 'precision' must be one of bf16, bf16-mixed, 16, fp16, 16-mixed, 32, fp32, 32-true, or null for that of the folder, got the number 64"),
    "remote code": ("  trust_remote_code: true", "agent.yaml:4:22: 'trust_remote_code' cannot be true: code of a checkpoint never runs; register its classes in a module that you allow"),
    "attention": ("  attn_implementation: flash_attention2", "agent.yaml:4:24: 'attn_implementation' names 'flash_attention2', which is not known; did you mean 'flash_attention_2'?"),
    "attention of the hub": ("  attn_implementation: kernels-community/flash-attn", "agent.yaml:4:24: 'attn_implementation' names 'kernels-community/flash-attn', code that would be downloaded; there is 'auto', 'sdpa', 'eager', 'flash_attention_2', 'flash_attention_3', 'flex_attention'"),
    "inputs": ("  inputs: {images: main_images}", "agent.yaml:4:12: 'images' is not a key of 'inputs'; did you mean 'image'?"),
    "no inputs": ("  inputs: {}", "agent.yaml:4:11: 'inputs' is empty; name an image, a text or both"),
    "alpha": (f"  lora: {{alpha: 1{'0' * 20}}}", f"agent.yaml:4:17: 'alpha' must be a number above 0, got the number 1{'0' * 20}"),
    "alpha without end": ("  lora: {alpha: .inf}", "agent.yaml:4:17: 'alpha' must be a number above 0, got the number inf"),
    "value head": ("  value_head: {hidden_units: 64, activation: gelo}", "agent.yaml:4:30: 'hidden_units' must be a list of whole numbers of at least 1, got the number 64\nagent.yaml:4:46: 'activation' must be one of 'gelu', 'relu', 'tanh', got 'gelo'; did you mean 'gelu'?"),
    "two heads": ("  value_head: {}\n  add_value_head: true", "agent.yaml:5:3: 'value_head' and 'add_value_head' exclude one another; keep one of them"),
    "lora": ("  lora: {rank: 0, alpha: -1, target: [q_proj]}", "agent.yaml:4:16: 'rank' must be a whole number of at least 1, got the number 0\nagent.yaml:4:26: 'alpha' must be a number above 0, got the number -1\nagent.yaml:4:30: 'target' is not a key of 'lora'; did you mean 'targets'?"),
    "two loras": ("  lora: {rank: 8}\n  is_lora: true", "agent.yaml:5:3: 'lora' and 'is_lora' exclude one another; keep one of them"),
    "no targets": ("  lora: {targets: []}", "agent.yaml:4:19: 'targets' is empty; name modules, or leave it out"),
    "chunks": ("  action_chunks_len: 0", "agent.yaml:4:22: 'action_chunks_len' must be a whole number of at least 1, got the number 0"),
    "size": ("  image_size: [1, 2, 3]", "agent.yaml:4:15: 'image_size' must be a whole number of at least 1, or two of them, got a list"),
    "of RLinf": ("  num_action_chunks: 2\n  temperature: 1.5", "agent.yaml:4:3: 'num_action_chunks' is not a key of a model here: write 'action_chunks_len'\nagent.yaml:5:3: 'temperature' is not a key of a model here: it is an argument of predict_action_batch"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRUCTURE)
def test_a_wrong_structure(case, tmp_path):
    lines, message = STRUCTURE[case]
    assert problems(f"{HEAD}{lines}\n{CONFIG}", tmp_path) == message


def test_what_is_missing_and_what_excludes_one_another(tmp_path):
    assert problems("version: 1\nmodel: {}\n", tmp_path) == (
        "agent.yaml:2:8: 'model' needs a 'model_type', as register_hf names it\n"
        "agent.yaml:2:8: 'model' needs a 'model_path', a local folder, or a 'config' for new weights"
    )
    assert problems(f"{HEAD}  model_path: ckpt\n{CONFIG}", tmp_path) == (
        "agent.yaml:5:3: 'model_path' and 'config' exclude one another; keep one of them"
    )
    assert problems("version: 1\nmodel: tiny\n", tmp_path) == (
        "agent.yaml:2:8: 'model' must be a mapping with a 'model_type', got the text 'tiny'"
    )
    beside = "ignore: [x]\npolicy: {template: {}}\n"
    assert problems(f"{HEAD}{CONFIG}{beside}", tmp_path) == (
        "agent.yaml:14:1: 'ignore' has no place beside 'model'; leave it out\n"
        "agent.yaml:15:1: 'model' stands in the place of 'policy'; keep one of them"
    )


MEANING = {
    "unnorm_key": ("  unnorm_key: brigde", "agent.yaml:4:15: there are no statistics of 'brigde'; did you mean 'bridge'?"),
    "length": ("  action_token_len: 7", "agent.yaml:4:21: 'action_token_len' is 7, an action has 3 numbers by the statistics of 'bridge': it must be 3"),
    "chunks": ("  action_token_len: 3\n  action_chunks_len: 2", "agent.yaml:4:21: 'action_token_len' is 3, an action has 3 numbers times 2 chunks by the statistics of 'bridge': it must be 6"),
    "sizes": ("  hidden_size: 64\n  vocab_size: 32000\n  image_size: [224, 224]", "agent.yaml:4:16: 'hidden_size' is 64, the configuration of the model has 32\nagent.yaml:5:15: 'vocab_size' is 32000, the configuration of the model has 40\nagent.yaml:6:15: 'image_size' is [224, 224], the configuration of the model has 8"),
    "targets": ("  lora: {targets: [q_prj, norm]}", "agent.yaml:4:19: 'lora' targets 'norm', a LlamaRMSNorm: it takes linear layers, convolutions and embeddings\nagent.yaml:4:19: 'lora' targets 'q_prj', which no module is called; did you mean 'q_proj'?"),
    "freeze": ("  freeze: [projectr]", "agent.yaml:4:11: 'freeze' names 'projectr', which no module is called; did you mean 'projector'?"),
    "flash": ("  attn_implementation: flash_attention_2", "agent.yaml:4:24: 'attn_implementation: flash_attention_2' cannot run here: it needs the package 'flash_attn' and a GPU; write auto"),
    "usual targets": ("  is_lora: true\n  freeze: [model, lm_head]", "agent.yaml:4:12: 'lora' finds none of the usual layers here; name its 'targets', such as projector under 'lora', in the place of 'is_lora'"),
    "adapters": ("  lora: {path: none.safetensors}", "agent.yaml:4:16: there is no 'none.safetensors'"),
}  # fmt: skip


@pytest.mark.parametrize("case", MEANING)
def test_what_does_not_fit_the_configuration(case, tmp_path):
    lines, expected = MEANING[case]
    message = problems(f"{HEAD}{lines}\n{CONFIG}", tmp_path)
    assert sorted(message.split("\n")) == sorted(expected.split("\n"))


def test_an_unknown_model_type_and_an_unknown_setting_of_it(tmp_path):
    text = f"{HEAD}{CONFIG}"
    assert problems(text.replace("tiny_vla", "tinny_vla"), tmp_path) == (
        "agent.yaml:3:15: unknown model type 'tinny_vla'; did you mean 'tiny_vla'?"
    )
    assert problems(text.replace("hidden_size", "hiden_size"), tmp_path) == (
        "agent.yaml:6:5: 'hiden_size' is not a setting of the model type 'tiny_vla'; did you mean 'hidden_size'?"
    )
    assert problems(f"{text}    hidden_act: swich\n", tmp_path).startswith(
        "agent.yaml:5:5: 'tiny_vla' cannot be built: KeyError: "
    )


def test_statistics_that_several_have_or_none(tmp_path):
    text = f"{HEAD}{CONFIG}"
    more = f"{text}      other: {{q01: [0.0], q99: [1.0]}}\n"
    assert problems(more, tmp_path) == (
        "agent.yaml:3:3: 'model' needs an 'unnorm_key', one of 'bridge', 'other'"
    )
    none = text.split("    norm_stats")[0]
    assert problems(none, tmp_path) == (
        "agent.yaml:5:5: there are no statistics of actions: 'norm_stats' of the configuration, or the file "
        "'dataset_statistics.json' of the folder, must have them"
    )
    wrong = text.replace("q01: [-1.0, -2.0, 0.0]", "q01: [-1.0, 3.0, 0.0]")
    assert problems(wrong, tmp_path) == (
        "agent.yaml:5:5: of 'bridge': 'q01' must be below 'q99', got 3.0 and 2.0 at 1"
    )


IMAGE = Box(0, 255, (8, 8, 3), np.uint8)
SPACES = {
    "two numbers": (Dict(main_images=IMAGE, task_descriptions=Text(9)), Box(-1, 1, (2,)), "agent.yaml:5:5: the statistics of 'bridge' have 3 numbers, an action of the space has 2"),
    "discrete": (Dict(main_images=IMAGE, task_descriptions=Text(9)), Discrete(3), "agent.yaml:5:5: an action model acts in a Box, and the action space is a Discrete"),
    "names": (Dict(main_image=IMAGE, task_descriptions=Text(9)), Box(-1, 1, (3,)), "agent.yaml:3:3: there is no observation 'main_images' for the image; did you mean 'main_image'?"),
    "no dict": (IMAGE, Box(-1, 1, (3,)), "agent.yaml:5:5: 'inputs' name observations of a Dict, and the space is a Box"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPACES)
def test_what_does_not_fit_the_spaces(case, tmp_path):
    observation, action, expected = SPACES[case]
    message = problems(
        f"{HEAD}{CONFIG}", tmp_path, observation_space=observation, action_space=action
    )
    assert message == expected


def test_a_size_that_the_configuration_has_not_is_left_out():
    config = {"vocab_size": 40, "n_embd": 32, "n_layer": 1, "n_head": 2, "norm_stats": STATISTICS}
    changes = {"model_type": "learned_vla", "config": config, "inputs": {"text": "task"}}
    with pytest.raises(SpecError) as caught:
        composer.compose(spec(**changes, image_size=8))
    assert str(caught.value) == (
        "model.image_size: 'image_size' is not in the configuration; leave it out"
    )
    composer.compose(spec(**changes))


# --- folders ---


@pytest.fixture
def ckpt(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "ckpt")
    return tmp_path / "ckpt"


def change(file, **values):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **values}))


FOLDER = HEAD + "  model_path: ckpt\n  value_head: {hidden_units: [16]}\n"
AT = "agent.yaml:4:15: 'model_path': "


@pytest.mark.parametrize(
    ("head", "at"), [("  value_head: {hidden_units: [8, 4]}\n", "5:15"), ("", "4:15")]
)
def test_a_value_head_of_another_size_is_written_as_it_is_or_removed(head, at, ckpt, tmp_path):
    start = FOLDER.partition("  value_head")[0]
    asked = [8, 4] if head else [512, 128]
    assert problems(start + head, tmp_path) == (
        f"agent.yaml:{at}: the folder's value head has hidden_units [16], the spec asks for {asked}; write "
        "value_head: {hidden_units: [16]}, or remove 'value_head.safetensors'"
    )
    (tmp_path / "agent.yaml").write_text(f"{start}  value_head: {{hidden_units: [16]}}\n")
    composer.compose(tmp_path / "agent.yaml")
    (ckpt / "value_head.safetensors").unlink()
    (tmp_path / "agent.yaml").write_text(start + head)
    composer.compose(tmp_path / "agent.yaml")


def test_a_folder_is_found_beside_the_spec(ckpt, tmp_path):
    (tmp_path / "agent.yaml").write_text(FOLDER)
    assert composer.compose(tmp_path / "agent.yaml", seed=0).prove() < 1e-5


CODE = {
    "config.json": {"auto_map": {"AutoConfig": "x.Y"}},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["x.Y", None]}},
}


@pytest.mark.parametrize("name", CODE)
def test_a_folder_that_names_code_is_refused(name, ckpt, tmp_path):
    change(ckpt / name, **CODE[name])
    assert problems(FOLDER, tmp_path) == (
        f"{AT}'ckpt/{name}' has 'auto_map', which names code of its own; register the classes in a module that you "
        "allow, and remove it"
    )


def test_a_folder_with_attention_from_elsewhere_or_quantized_is_refused(ckpt, tmp_path):
    change(ckpt / "config.json", _attn_implementation="someone/kernel")
    assert problems(FOLDER, tmp_path) == (
        f"{AT}'ckpt/config.json' has '_attn_implementation': 'someone/kernel', code that would be downloaded; remove it"
    )
    change(
        ckpt / "config.json", _attn_implementation="sdpa", quantization_config={"quant_method": "x"}
    )
    assert problems(FOLDER, tmp_path) == (
        f"{AT}'ckpt/config.json' has 'quantization_config'; quantized weights are not read: save the model without it"
    )


def test_folders_that_are_none(ckpt, tmp_path):
    assert problems(FOLDER.replace("ckpt", "none"), tmp_path) == (
        f"{AT}there is no folder 'none'; nothing is downloaded"
    )
    (ckpt / "config.json").rename(ckpt / "adapter_config.json")
    assert problems(FOLDER, tmp_path) == (
        f"{AT}the folder 'ckpt' has no config.json; it holds LoRA adapters, which 'path' of 'lora' names"
    )
    (ckpt / "adapter_config.json").rename(ckpt / "config.json")
    (ckpt / "model.safetensors").rename(ckpt / "pytorch_model.bin")
    (ckpt / "value_head.safetensors").unlink()
    assert problems(FOLDER, tmp_path) == (
        f"{AT}the folder 'ckpt' has no *.safetensors file; other formats can run code"
    )


def test_a_folder_of_another_type_or_architecture(ckpt, tmp_path):
    change(ckpt / "config.json", num_hidden_layers=1)
    assert "holds weights of another architecture: model.layers.1." in problems(FOLDER, tmp_path)
    change(ckpt / "config.json", num_hidden_layers=2, intermediate_size=65)
    assert (
        "model.layers.0.mlp.down_proj.weight is (32, 64), its config.json needs (32, 65)"
        in problems(FOLDER, tmp_path)
    )
    change(ckpt / "config.json", intermediate_size=64)
    tensors = load_file(ckpt / "model.safetensors")
    del tensors["projector.bias"]
    save_file(tensors, ckpt / "model.safetensors")
    assert problems(FOLDER, tmp_path) == (
        f"{AT}'ckpt' holds weights of another architecture: projector.bias (32,) is missing"
    )
    change(ckpt / "config.json", model_type="llama")
    assert problems(FOLDER, tmp_path) == (
        f"{AT}'ckpt' is of the model type 'llama', not 'tiny_vla'"
    )


def test_a_tokenizer_with_more_tokens_than_the_model(ckpt, tmp_path):
    words = {f"w{i}": i for i in range(60)} | {"<pad>": 60, "<unk>": 61}
    content = json.loads((ckpt / "tokenizer.json").read_text())
    content["model"]["vocab"] = words
    content["added_tokens"] = []
    (ckpt / "tokenizer.json").write_text(json.dumps(content))
    message = problems(FOLDER, tmp_path)
    assert message.startswith("agent.yaml:4:15: the tokenizer has 6")
    assert message.endswith("tokens, 'vocab_size' of the configuration is 40")


def test_adapters_of_another_model(tmp_path):
    model = composer.compose(spec(lora={"rank": 2, "targets": ["q_proj"]}), seed=0)
    model.save(tmp_path / "q.safetensors", adapters_only=True)
    lines = "  lora: {rank: 2, targets: [q_proj, v_proj], path: q.safetensors}\n"
    name = "model.layers.0.self_attn.v_proj.lora_A.default.weight"
    assert problems(f"{HEAD}{lines}{CONFIG}", tmp_path).startswith(
        f"agent.yaml:4:52: 'q.safetensors' holds other adapters: {name} is missing; "
    )
    lines = "  lora: {rank: 4, targets: [q_proj], path: q.safetensors}\n"
    assert "lora_A.default.weight is (2, 32), it must be (4, 32)" in problems(
        f"{HEAD}{lines}{CONFIG}", tmp_path
    )


# --- as RLinf's users write it ---


def test_the_keys_of_rlinf(ckpt, tmp_path):
    (ckpt / "value_head.safetensors").unlink()
    (tmp_path / "agent.yaml").write_text(
        FOLDER.partition("  value_head")[0]
        + """\
  action_token_len: 3
  action_chunks_len: 1
  unnorm_key: bridge
  micro_batch_size: 1
  val_micro_batch_size: 8
  precision: 32-true
  vocab_size: 40
  hidden_size: 32
  image_size: [8, 8]
  is_lora: true
  lora_rank: 32
  lora_path: null
  add_value_head: true
  attn_implementation: sdpa
  low_cpu_mem_usage: true
  trust_remote_code: false
  gradient_checkpointing: false
"""
    )
    model = composer.compose(tmp_path / "agent.yaml", seed=0)
    lora = model.plan.spec.lora
    assert (lora.rank, lora.alpha, lora.targets) == (32, None, None)
    trained = {
        name.split(".lora")[0].rpartition(".")[2]
        for name, p in model.hf.named_parameters()
        if p.requires_grad
    }
    assert trained == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert model.prove() < 1e-5


_SAMPLING = "it is an argument of predict_action_batch"
# Each key that has no place here: its value, what is said of it, and what is written instead.
OF_RLINF = {
    "num_action_chunks": (1, "write 'action_chunks_len'", "action_chunks_len: 1"),
    "action_dim": (3, "it follows from the statistics; write 'action_token_len', the number of tokens", "action_token_len: 3"),
    "ckpt_path": ("weights.safetensors", "load weights with model.load_weights(path)", ""),
    "vh_mode": ("a0", "the value head always reads the features of the last token of the prompt; leave it out", ""),
    "policy_setup": ("widowx_bridge", "the environment and the statistics say it; leave it out", ""),
    "add_q_head": ("false", "there is no such head; leave it out", ""),
    "do_sample": (True, _SAMPLING, ""),
    "temperature": (1.5, _SAMPLING, ""),
    "top_k": (4, _SAMPLING, ""),
    "top_p": (0.9, _SAMPLING, ""),
}  # fmt: skip


@pytest.mark.parametrize("key", OF_RLINF)
def test_what_is_said_of_a_key_of_rlinf_can_be_done(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, advice, instead = OF_RLINF[key]
    assert problems(f"{HEAD}  {key}: {value}\n{CONFIG}", tmp_path) == (
        f"agent.yaml:4:3: '{key}' is not a key of a model here: {advice}"
    )
    (tmp_path / "agent.yaml").write_text(f"{HEAD}  {instead}\n{CONFIG}")
    model = composer.compose(tmp_path / "agent.yaml", seed=0)
    if key == "ckpt_path":
        model.save(value)
        model.load_weights(value)
    model.predict_action_batch(observations(), **{key: value} if advice == _SAMPLING else {})


def test_every_key_that_has_no_place_says_what_can_be_done():
    assert {*OF_RLINF} == {*ELSEWHERE}


def test_extensions_must_be_allowed_and_are_imported(tmp_path):
    text = f"version: 1\nextensions: [networks.tiny_vla]\n{HEAD.partition(chr(10))[2]}{CONFIG}"
    assert problems(text, tmp_path) == (
        "agent.yaml:2:14: 'networks.tiny_vla' is outside the allowed modules (none); pass allow=['networks'] or "
        "--allow networks if you trust it"
    )
    missing = text.replace("tiny_vla]", "tinny]")
    assert problems(missing, tmp_path, allow=["networks"]).startswith(
        "agent.yaml:2:14: there is no module 'networks.tinny'"
    )
    assert composer.compose(
        tmp_path / "agent.yaml", allow=["networks"], overrides=["extensions=[networks.tiny_vla]"]
    ).spec.extensions == ("networks.tiny_vla",)


ODD = [
    "x",
    None,
    -1,
    0,
    2.5,
    10**30,
    True,
    [],
    {},
    [1, "x"],
    {"bridge": 3},
    {"bridge": {"q01": "x", "q99": [1]}},
]


def places(value, path=()):
    yield path
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from places(inner, (*path, key))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "path", [p for p in places(CONFIG_VALUES) if p], ids=lambda path: ".".join(map(str, path))
)
def test_whatever_a_configuration_holds_is_a_model_or_told(path):
    for odd in ODD:
        config = json.loads(json.dumps(CONFIG_VALUES))
        *inner, last = path
        of = config
        for key in inner:
            of = of[key]
        of[last] = odd
        assert outcome(spec(config=config)).startswith("model"), (path, odd)


def outcome(agent):
    try:
        composer.compose(agent, seed=0, device="meta")
    except SpecError as error:
        return str(error)
    return "model"


def test_numbers_of_a_configuration_that_are_none_are_told(tmp_path):
    text = f"{HEAD}{CONFIG}".replace("n_action_bins: 8", "n_action_bins: eight")
    assert problems(text, tmp_path) == (
        "agent.yaml:5:5: 'n_action_bins' of the configuration must be a whole number, got the text 'eight'"
    )


def test_layers_above_the_limit_are_refused_before_they_are_made():
    config = {**CONFIG_VALUES, "num_hidden_layers": 10**9}
    assert outcome(spec(config=config)) == (
        "model.config: 'num_hidden_layers' is 1000000000, but the limit of layers is 1,000; "
        "if it is meant, allow it: limits={'layers': 1000000000} or --limit layers=1000000000"
    )
    config["num_hidden_layers"] = 3
    with pytest.raises(SpecError, match="the limit of layers is 2"):
        composer.compose(spec(config=config), seed=0, device="meta", limits={"layers": 2})
    composer.compose(spec(config=config), seed=0, device="meta", limits={"layers": 3})
    with pytest.raises(
        SpecError, match="model: 'model' brings the model above the limit of 5 tensors"
    ):
        composer.compose(spec(config=config), seed=0, device="meta", limits={"tensors": 5})
    with pytest.raises(SpecError, match=r"model: 'model' needs .* of memory for its weights"):
        composer.compose(spec(config=config), seed=0, limits={"memory": 1000})
    with pytest.raises(SpecError, match=r"model: 'model' needs .* of memory for its weights"):
        composer.compose(spec(value_head={"hidden_units": [10**9]}), seed=0)
    with pytest.raises(SpecError) as caught:
        composer.compose(spec(value_head={"hidden_units": [10**30]}), seed=0, device="meta")
    assert str(caught.value) == (
        "model.value_head.hidden_units: 'hidden_units' has numbers that no tensor can have; choose smaller ones"
    )
