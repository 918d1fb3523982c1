"""What every wrapper has in common, and names: model_wrap and register_wrapper."""

import copy
import pickle
import re

import pytest
import torch
from torch import Tensor, nn

import composer
from composer.spec.wrapper_names import ONLY_PYTHON, WRAPPERS


class Net(nn.Module):
    """All that any of the wrappers reads: `forward` of a dict, or of a sequence (T, B, F)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.norm = nn.BatchNorm1d(3)
        self.resets = []

    def forward(self, data):
        x = self.scale * (data if isinstance(data, Tensor) else data["x"])
        output = {"logit": x, "action_args": x}
        if not isinstance(data, Tensor) and "prev_state" in data:
            output["next_state"] = [(s or 0) + 1 for s in data["prev_state"]]
        return output

    def reset(self, data_id=None):
        self.resets.append(data_id)


class Normals(Net):
    """logit = {mu, sigma}"""

    def forward(self, data):
        output = super().forward(data)
        return {**output, "logit": {"mu": output["logit"], "sigma": torch.ones(2, 3)}}


class Hybrid(Net):
    """logit = {action_type, action_args: {mu, sigma}}"""

    def forward(self, data):
        logit = super().forward(data)["logit"]
        arguments = {"mu": logit, "sigma": torch.ones(2, 3)}
        return {"logit": {"action_type": logit, "action_args": arguments}}


class Memory(Net):
    """It holds a memory (layers, length, B, units)."""

    def __init__(self):
        super().__init__()
        self.memory = torch.zeros(())

    def reset_memory(self, batch_size=None, state=None):
        self.memory = torch.zeros(1, 2, batch_size, 3) if state is None else state

    def get_memory(self):
        return self.memory

    def forward(self, data):
        self.memory = self.memory + 1
        return super().forward(data)


DATA = {"x": torch.tensor([[1.0, 5.0, 3.0], [9.0, 2.0, 1.0]])}
SEQUENCE = torch.arange(18.0).reshape(3, 2, 3)
# Wrapper -> (model, settings, input, keywords of forward)
CASES = {
    "base": (Net, {}, DATA, {}),
    "hidden_state": (Net, {"state_num": 2}, DATA, {}),
    "argmax_sample": (Net, {}, DATA, {}),
    "multinomial_sample": (Net, {}, DATA, {"alpha": 2.0}),
    "eps_greedy_sample": (Net, {}, DATA, {"eps": 0.5}),
    "eps_greedy_multinomial_sample": (Net, {}, DATA, {"eps": 0.5, "alpha": 2.0}),
    "deterministic_sample": (Normals, {}, DATA, {}),
    "reparam_sample": (Normals, {}, DATA, {}),
    "hybrid_argmax_sample": (Net, {}, DATA, {}),
    "hybrid_eps_greedy_sample": (Net, {}, DATA, {"eps": 0.5}),
    "hybrid_eps_greedy_multinomial_sample": (Net, {}, DATA, {"eps": 0.5}),
    "hybrid_reparam_multinomial_sample": (Hybrid, {}, DATA, {}),
    "hybrid_deterministic_argmax_sample": (Hybrid, {}, DATA, {}),
    "combination_argmax_sample": (Net, {"shot_number": 2}, DATA, {}),
    "combination_multinomial_sample": (Net, {}, DATA, {"shot_number": 2}),
    "action_noise": (Net, {"noise_type": "ou", "action_range": None}, DATA, {"sigma": 0.2}),
    "target": (Net, {"freq": 3}, DATA, {}),
    "teacher": (Net, {"teacher": Net()}, DATA, {}),
    "transformer_input": (Net, {"seq_len": 4}, SEQUENCE[0], {}),
    "transformer_segment": (Net, {"seq_len": 2}, SEQUENCE, {}),
    "transformer_memory": (Memory, {"batch_size": 2}, DATA, {}),
}
DRAWS = [name for name in CASES if "generator" in WRAPPERS.get(name).listens]
every_wrapper = pytest.mark.parametrize("name", CASES)


def wrapped(name):
    make, settings, _, _ = CASES[name]
    return composer.model_wrap(make(), name, **settings)


def call(wrapper, name, method="__call__", **more):
    _, _, data, keywords = CASES[name]
    torch.manual_seed(0)
    return getattr(wrapper, method)(data, **keywords, **more)


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_every_wrapper_is_tested_here():
    assert list(CASES) == list(WRAPPERS)


@every_wrapper
def test_calling_and_forward_do_the_same(name):
    same(call(wrapped(name), name), call(wrapped(name), name, "forward"))


@every_wrapper
def test_unknown_attributes_are_the_models(name):
    wrapper = wrapped(name)
    assert wrapper.eval().training is False
    assert wrapper.training is False
    assert wrapper.train().training
    assert set(wrapper.state_dict()) == set(Net().state_dict())
    assert [parameter.shape for parameter in wrapper.parameters()] == [(), (3,), (3,)]
    with pytest.raises(AttributeError, match="'nothing'"):
        wrapper.nothing  # noqa: B018


@every_wrapper
def test_info_names_who_has_an_attribute(name):
    wrapper = wrapped(name)
    model = CASES[name][0].__name__
    own = type(wrapper).__name__
    chain = own if name == "base" else f"{own} BaseModelWrapper"
    assert wrapper.info("forward") == f"{chain} {model}"
    assert wrapper.info("scale") == model
    assert wrapper.info("nothing") == ""


@every_wrapper
def test_reset_goes_down_the_chain(name):
    wrapper = wrapped(name)
    call(wrapper, name)
    wrapper.reset()
    wrapper.reset(data_id=[1]) if name != "transformer_input" else None
    expected = [None] if name == "transformer_input" else [None, [1]]
    assert wrapper.resets == expected


@every_wrapper
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))], ids=["copy", "pickle"]
)
def test_copies_are_whole_and_independent(name, duplicate):
    wrapper = wrapped(name)
    call(wrapper, name)
    other = duplicate(wrapper)
    assert repr(other) == repr(wrapper)
    with torch.no_grad():
        wrapper.scale.fill_(0.0)
    assert other.scale.item() == 2.0
    again = duplicate(other)
    same(call(again, name), call(other, name))


@every_wrapper
def test_the_models_own_outputs_stay_untouched(name):
    before = copy.deepcopy(CASES[name][2])
    call(wrapped(name), name)
    same(CASES[name][2], before)


@pytest.mark.parametrize("name", DRAWS)
def test_a_generator_makes_it_reproducible(name):
    draws = []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        wrapper = wrapped(name)
        before = torch.get_rng_state()
        _, _, data, keywords = CASES[name]
        draws.append([wrapper(data, generator=generator, **keywords) for _ in range(20)])
        assert torch.equal(torch.get_rng_state(), before)
    same(draws[0], draws[1])
    with pytest.raises(AssertionError):
        same(draws[0], draws[2])


def test_a_generator_reaches_all_that_draw():
    model = composer.model_wrap(Normals(), "reparam_sample")
    model = composer.model_wrap(model, "action_noise")
    before = torch.get_rng_state()
    model(DATA, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_hooks_of_the_model_are_called():
    model, calls = Net(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    composer.model_wrap(model, "argmax_sample").forward(DATA)
    assert calls == [1]


def test_any_object_with_a_forward_is_a_model():
    class Plain:
        def forward(self, data):
            return data

    model = composer.model_wrap(Plain(), wrapper_name="argmax_sample")
    assert model({"logit": DATA["x"]})["action"].tolist() == [1, 0]
    assert model.reset() is None
    message = "a model must be an object, got the class Plain; make one of it"
    with pytest.raises(ValueError, match=f"^{message}$"):
        composer.model_wrap(Plain, wrapper_name="argmax_sample")
    message = "a model must have a method 'forward', got an object of type int"
    with pytest.raises(ValueError, match=message):
        composer.model_wrap(3, "base")


def test_a_model_may_have_a_reset_without_data_id_or_none():
    class Plain:
        def forward(self, data):
            return data

    class Counting(Plain):
        count = 0

        def reset(self):
            self.count += 1

    model = composer.model_wrap(Counting(), "base")
    model.reset(data_id=[0])
    assert model.count == 1
    message = "reset got 'sate', which nothing in BaseModelWrapper(Plain) takes"
    with pytest.raises(ValueError, match=re.escape(message)):
        composer.model_wrap(Plain(), "base").reset(sate=[0])


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("argmax_smaple", {}, "unknown wrapper 'argmax_smaple'; did you mean 'argmax_sample'?"),
        (3, {}, "wrapper_name must be the name of a wrapper, got 3"),
        (
            "hidden_state",
            {},
            "wrapper 'hidden_state' needs the setting 'state_num' (a positive integer)",
        ),
        ("hidden_state", {"state_num": 0}, "'state_num' must be a positive integer, got 0"),
        (
            "target",
            {"frq": 3},
            "'frq' is not a setting of wrapper 'target'; did you mean 'freq'?",
        ),
        ("base", {"a": 1}, "'a' is not a setting of wrapper 'base'; it has none"),
    ],
)
def test_unknown_names_and_settings_are_said(name, settings, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        composer.model_wrap(Net(), name, **settings)


def test_what_a_spec_cannot_have_is_a_wrapper():
    assert set(ONLY_PYTHON) < set(WRAPPERS)


def test_wrappers_of_ones_own_have_names():
    @composer.register_wrapper("twice")
    class Twice(composer.IModelWrapper):
        def forward(self, *args, **kwargs):
            return {**self._run(*args, **kwargs), "again": self._run(*args, **kwargs)}

    class Other(composer.IModelWrapper):
        pass

    assert composer.register_wrapper("other", Other) is Other
    model = composer.model_wrap(Net(), "twice")
    assert isinstance(model, Twice)
    assert isinstance(model._model, composer.BaseModelWrapper)
    assert "again" in model(DATA)
    assert model.info("forward") == "Twice BaseModelWrapper Net"
    same(composer.model_wrap(Net(), "other")(DATA), Net()(DATA))


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="a wrapper must be a subclass of IModelWrapper, got"):
        composer.register_wrapper("net", Net)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the name of a wrapper must be a text, got 3"):
        composer.register_wrapper(3, composer.BaseModelWrapper)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the name of a wrapper must be a text, got <class "):
        composer.register_wrapper(composer.BaseModelWrapper)  # type: ignore[arg-type]

    class Mine(composer.IModelWrapper):
        pass

    with pytest.raises(ValueError, match=r"the wrapper name 'target' of .* is taken by"):
        composer.register_wrapper("target", Mine)


def test_base_is_put_around_a_model_once():
    base = composer.model_wrap(Net(), "base")
    assert repr(base) == "BaseModelWrapper(Net)"
    twice = composer.model_wrap(base, "argmax_sample")
    assert repr(twice) == "ArgmaxSampleWrapper(BaseModelWrapper(Net))"
