"""Everything compiles into one graph without breaks, for any batch; nothing in a step waits for the device."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import composer
from composer.batch_axes import any_batch
from composer.spaces.samples import SpaceSampler
from perception_blocks import Graph, InferenceBlock, Port
from tests.helpers.host_reads import NoHostReads
from tests.helpers.paths import CONFIGS, POLICIES
from tests.whole.test_block_contract import MEMORY, SAMPLES, Sample

PATHS = POLICIES
MODULES = ["environments", "networks"]
BATCHES = (2, 3, 8, 17, 40)

every_config = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def _a_fresh_compiler(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    torch.compiler.reset()
    counters.clear()
    torch.manual_seed(0)
    yield
    torch.compiler.reset()


def compose(path, **keywords):
    return composer.compose(path, allow=MODULES, seed=0, **keywords).eval()


def policies(model):
    """The policy, or those of all actors."""
    if isinstance(model.policy, composer.Policy):
        return [model.policy]
    return [model.policy[name] for name in model.policy.actors.names]


def observations(policy, batch):
    drawn = SpaceSampler(policy.observer.tree, batch).draw((batch,), policy.observer.tree.leaves)
    for key in policy.masks.values():
        drawn[key][:] = 1
    return drawn


def arguments(part, policy, batch):
    """What one step of ``part`` (a policy or a model) is called with."""
    seen = observations(policy, batch)
    if not part.has_memory:
        return (seen,)
    return seen, part.initial_state(batch), torch.rand(batch) < 0.5


def action_for_critic(part, policy, batch):
    """The ``action`` that a model with a critic of actions is called with."""
    critic = getattr(part, "critic", None)
    if not getattr(critic, "takes_action", False) or critic.actions.are_choices:
        return {}
    drawn = SpaceSampler(policy.action_tree, batch).draw((batch,), policy.action_tree.leaves)
    return {"action": policy.from_environment(drawn)}


def allowed_graphs(model):
    """Torch chooses a CPU kernel of an unstrided convolution by whether there are 16 images, and compiles both."""
    convs = [m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    return 1 + any(max(conv.stride) == 1 for conv in convs)


def compiled_for_all_batches(part, model, policy, backend):
    compiled = torch.compile(part, fullgraph=True, backend=backend)
    ports = policy.observer.tree.ports
    for batch in BATCHES:
        given = any_batch(arguments(part, policy, batch), ports=ports)
        keywords = any_batch(action_for_critic(part, policy, batch))
        found, expected = compiled(*given, **keywords), part(*given, **keywords)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] <= allowed_graphs(model)


@every_config
def test_a_policy_is_one_graph_for_all_batches(path):
    model = compose(path)
    for policy in policies(model)[:1]:
        compiled_for_all_batches(policy, model, policy, "eager")


@pytest.mark.full
@pytest.mark.filterwarnings("default")  # of the compiler's own
@every_config
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_model_is_one_graph_for_all_batches(path, backend):
    model = compose(path)
    if isinstance(model.policy, composer.Policy):
        compiled_for_all_batches(model, model, model.policy, backend)


@pytest.mark.full
@pytest.mark.filterwarnings("default")
@every_config
def test_what_is_learned_from_is_one_graph(path):
    model = compose(path)
    policy = policies(model)[0]

    def loss(given, action):
        result = policy.distribution(*given)
        distribution = result[0] if policy.has_memory else result
        return -(distribution.log_prob(action) + 0.01 * distribution.entropy()).sum()

    given = arguments(policy, policy, 5)
    result = policy.distribution(*given)
    action = (result[0] if policy.has_memory else result).sample()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss, compiled):
        policy.zero_grad()
        function(given, action).backward()
        gradients.append([p.grad.clone() for p in policy.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_an_unrolled_lstm_compiles_with_gradients():
    graph = Graph({"x": (3,)})
    graph.add("memory", "lstm", "x", hidden_units=4)
    net = InferenceBlock(graph, ["memory"])
    compiled = torch.compile(net.unroll, fullgraph=True, backend="aot_eager")
    x, resets = {"x": torch.randn(5, 3, 3)}, torch.rand(5, 3) < 0.4
    gradients = []
    for function in (net.unroll, compiled):
        net.zero_grad()
        outputs, _ = function(x, net.initial_state(5), resets)
        outputs["memory"].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.full
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES if "conv" in s.block or "cnn" in s.block], ids=str
)
def test_convolutions_compile_whatever_is_dynamic(sample: Sample):
    """With images of unknown size inductor cannot order a convolution's axes."""
    block = sample.build().eval()
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for leading in [(5,), (3, 2)]:
        data = sample.data(leading)
        torch.testing.assert_close(compiled(*data), block(*data), atol=1e-5, rtol=1e-5)


def test_a_batch_is_marked_in_whatever_holds_tensors():
    tensors = [torch.zeros(2, 3), torch.zeros(2), torch.zeros(1, 2), torch.zeros(())]
    value = {"a": tensors[0], "b": (tensors[1], [tensors[2]]), "c": tensors[3], "d": 3, "e": None}
    assert any_batch(value) is value
    marked = [getattr(tensor, "_dynamo_dynamic_indices", set()) for tensor in tensors]
    assert marked == [{0}, {0}, set(), set()]


def test_axes_of_unknown_length_are_marked_by_name():
    elements, mask, charge = torch.zeros(2, 7, 3), torch.zeros(2, 7), torch.zeros(2, 5)
    ports = {"seen/set": Port((None, 3)), "seen/mask": Port((None,)), "charge": Port((5,))}
    any_batch(({"seen": {"set": elements}, "seen/mask": mask, "charge": charge}, [3]), ports=ports)
    marked = [tensor._dynamo_dynamic_indices for tensor in (elements, mask, charge)]
    assert marked == [{0, 1}, {0, 1}, {0}]


# --- nothing in a step waits for the device, nor has a shape that depends on data ---


@pytest.mark.parametrize("sample", MEMORY, ids=str)
def test_a_step_of_memory_reads_nothing_on_the_host(sample):
    with torch.device("meta"):
        block = sample.build().eval()
        state = block.initial_state(5)
        resets = torch.zeros(5, dtype=torch.bool)
    inputs = [value.to("meta") for value in sample.data((5,))]
    with NoHostReads():
        _, after = block.step(*inputs, state, resets)
    assert all(value.is_meta for value in after.values())


@every_config
def test_a_step_of_a_config_reads_nothing_on_the_host(path):
    model = compose(path).to("meta")
    if any("cuda_graph" in getattr(module, "limits", ()) for module in model.modules()):
        return  # its class says so
    for policy in policies(model):
        seen = {name: value.to("meta") for name, value in observations(policy, 4).items()}
        memory = (policy.initial_state(4), torch.zeros(4, dtype=torch.bool, device="meta"))
        with NoHostReads():
            result = policy.distribution(seen, *(memory if policy.has_memory else ()))
            (result[0] if policy.has_memory else result).mode()
