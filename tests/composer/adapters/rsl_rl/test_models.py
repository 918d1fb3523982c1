"""Actor and Critic in the hands of rsl_rl's runners."""

import copy
import pickle
import re
import subprocess
import sys
from functools import partial

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from gymnasium import spaces
from rsl_rl.runners import DistillationRunner
from tensordict import TensorDict
from torch import nn

import composer
from composer.adapters.rsl_rl import vector_env
from composer.export import ExportError
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.rsl_rl_runners import ASYMMETRIC, MEMORY, PLAIN, SHARED, config, runner

SPECS = {
    "without memory": PLAIN,
    "asymmetric, normalised": ASYMMETRIC,
    "shared": SHARED.replace("BLOCK", "dense"),
    "shared memory": SHARED.replace("BLOCK", "gru"),
    "memory": MEMORY.replace("POLICY", "gru").replace("CRITIC", "lstm"),
    "memory of the policy": MEMORY.replace("POLICY", "lstm").replace("CRITIC", "dense"),
    "memory of the critic": MEMORY.replace("POLICY", "dense").replace("CRITIC", "gru"),
    "memory over a shared layer": SHARED.replace("BLOCK", "dense").replace(
        "value: {block: linear_output, in: both, output_units: 1}",
        "memory: {block: gru, in: both, hidden_units: 8}",
    ),
}
LEARNS = {"learning_rate": 1e-3, "schedule": "adaptive"}


def batches(storage, seen):
    """Let ``storage`` append each batch that it gives to ``seen``."""
    for name in ("mini_batch_generator", "recurrent_mini_batch_generator"):
        setattr(storage, name, partial(_noted, getattr(storage, name), seen))


def _noted(generator, seen, *arguments):
    for batch in generator(*arguments):
        seen.append(batch)
        yield batch


def first_update(run):
    """The largest differences of log-probabilities and values between the rollout and the first update."""
    seen, worst = [], {"log_prob": 0.0, "value": 0.0, "kl": 0.0}
    actor, critic = run.alg.actor, run.alg.critic
    log_prob, judge, kl = actor.get_output_log_prob, critic.forward, actor.get_kl_divergence
    batches(run.alg.storage, seen)

    def compared(name, new, old):
        worst[name] = max(worst[name], float((new - old).detach().abs().max()))
        return new

    def of_actions(actions):
        new = log_prob(actions)
        old = seen[-1].old_actions_log_prob.squeeze(-1) if seen else new
        params = actor.output_distribution_params
        if seen:
            compared("kl", kl(seen[-1].old_distribution_params, params), 0.0)
        return compared("log_prob", new, old)

    def of_values(*arguments, **keywords):
        new = judge(*arguments, **keywords)
        return compared("value", new, seen[-1].values if seen else new)

    actor.get_output_log_prob, critic.forward = of_actions, of_values
    run.learn(1)
    assert len(seen) == 2
    return worst


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_first_update_sees_what_the_rollout_saw(spec, capsys):
    assert max(first_update(runner(config(spec))).values()) < 1e-5


@pytest.mark.parametrize("family", ["squashed_gaussian", "beta"])
def test_bounded_families_act_within_their_bounds(family, capsys):
    spec = PLAIN + f"distributions:\n  - {{space: box, distribution: {family}}}\n"
    bounds = spaces.Box(-1, 1, (2,))
    run = runner(config(spec, actor={"action_space": bounds}))
    assert max(first_update(run).values()) < 1e-5
    assert float(run.alg.storage.actions.abs().max()) <= 1
    assert run.alg.actor.output_std.shape == run.alg.actor.output_mean.shape == (24, 2)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_parameter_is_trained_once_and_the_saved_model_is_the_trained_one(
    spec, tmp_path, capsys
):
    run = runner(config(spec, algorithm=LEARNS))
    model = run.alg.actor.model
    before = copy.deepcopy(model.state_dict())
    composed = composer.compose(
        spec, observation_space=model.observation_space, action_space=model.action_space, seed=0
    )
    assert all(torch.equal(value, before[name]) for name, value in composed.state_dict().items())
    trained = [p for group in run.alg.optimizer.param_groups for p in group["params"]]
    assert len({*map(id, trained)}) == len(trained) == len(list(model.parameters()))
    run.learn(3)
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []
    model.save(tmp_path / "agent.safetensors")
    again = composer.load(tmp_path / "agent.safetensors").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_the_first_call_gives_what_compose_gives():
    run = runner(config(ASYMMETRIC))
    actor, critic = run.alg.actor, run.alg.critic
    obs = run.env.get_observations()
    with torch.no_grad():
        mean, value = actor(obs), critic(obs)
    model = composer.compose(
        ASYMMETRIC,
        observation_space=actor.model.observation_space,
        action_space=actor.model.action_space,
        seed=0,
    )
    step = model.step(obs.to_dict(), deterministic=True)
    assert torch.equal(mean, step.action)
    assert torch.equal(value, step.value.unsqueeze(-1))


def test_statistics_count_what_was_collected(capsys):
    run = runner(config(ASYMMETRIC))
    run.learn(1)
    normalizers = run.alg.actor.policy.observer.normalizers
    assert {name: int(block.count) for name, block in normalizers.items()} == {
        "place": 48,
        "privileged": 48,
    }


def test_two_runners_with_one_config_share_nothing():
    cfg = config(PLAIN)
    env = vector_env("RslReach-v0", 4, seed=0)
    runs = [runner(cfg, env=env) for _ in range(2)]
    models = [run.alg.actor.model for run in runs]
    assert models[0] is not models[1]
    assert [run.alg.critic.model for run in runs] == models
    held = [{p.data_ptr() for p in model.parameters()} for model in models]
    assert not held[0] & held[1]


def test_a_config_survives_copies():
    cfg = config(PLAIN, actor={"action_space": spaces.Box(-1, 1, (2,))})
    assert pickle.loads(pickle.dumps(copy.deepcopy(cfg))) == cfg


def test_the_hosts_checkpoint_is_loaded_in_another_process(tmp_path, capsys):
    cfg = config(MEMORY.replace("POLICY", "gru").replace("CRITIC", "gru"), algorithm=LEARNS)
    run = runner(cfg)
    run.learn(1)
    run.save(str(tmp_path / "model.pt"))
    run.alg.actor.model.save(tmp_path / "agent.safetensors")
    torch.save(cfg, tmp_path / "cfg.pt")
    code = f"""
import torch, composer
from tests.helpers.rsl_rl_runners import runner
run = runner(torch.load("{tmp_path}/cfg.pt"))
run.load("{tmp_path}/model.pt")
saved = composer.load("{tmp_path}/agent.safetensors").state_dict()
model = run.alg.actor.model.state_dict()
print(model.keys() == saved.keys() and all(torch.equal(v, model[k]) for k, v in saved.items()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr


def test_weights_begin_where_a_checkpoint_ended(tmp_path):
    model = runner(config(PLAIN, actor={"seed": 7})).alg.actor.model
    model.save(tmp_path / "agent.safetensors")
    settings = {"spec": model.source, "weights": tmp_path / "agent.safetensors"}
    again = runner(config(PLAIN, actor=settings)).alg.actor.model
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_example_trains(monkeypatch, capsys):
    monkeypatch.chdir(CONFIGS)
    cfg = yaml.safe_load((CONFIGS / "trainers" / "rsl_rl_pendulum.yaml").read_text())
    cfg["num_steps_per_env"] = 8
    runner(cfg, env=vector_env("Pendulum-v1", 2, seed=0)).learn(1)


# --- files ---


def acted(run, steps):
    """Observations (1, 3) and the actions that the inference policy takes, from a fresh state."""
    policy = run.get_inference_policy()
    policy.reset()
    observations = torch.rand(steps, 1, 3)
    with torch.no_grad():
        groups = ({"place": x, "privileged": torch.zeros(1, 2)} for x in observations)
        actions = [policy(TensorDict(each, batch_size=[1])) for each in groups]
    return observations, torch.stack(actions)


@pytest.mark.parametrize("block", ["dense", "gru", "lstm"])
@pytest.mark.filterwarnings("ignore")  # of torch's exporters
def test_exported_policies_act_as_the_model_does(block, tmp_path, capsys):
    run = runner(config(MEMORY.replace("POLICY", block).replace("CRITIC", "dense")))
    observations, actions = acted(run, 4)
    run.export_policy_to_onnx(str(tmp_path))
    run.export_policy_to_jit(str(tmp_path))
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    scripted = torch.jit.load(tmp_path / "policy.pt")
    first, *states = session.get_inputs()
    assert first.name == "obs"
    state = {each.name: np.zeros(each.shape, np.float32) for each in states}
    for x, action in zip(observations, actions, strict=True):
        given, *after = session.run(None, {"obs": x.numpy(), **state})
        state = dict(zip(state, after, strict=True))
        np.testing.assert_allclose(given, action, atol=1e-5)
        torch.testing.assert_close(scripted(x), action, atol=1e-5, rtol=0)
    scripted.reset()
    torch.testing.assert_close(scripted(observations[0]), actions[0], atol=1e-5, rtol=0)


class Scales(nn.Module):
    """Reads a number while it computes, which tracing keeps as it was."""

    def __init__(self, in_features=16):
        super().__init__()

    def forward(self, x):
        return x * x.abs().max().item()


class Unwilling(Scales):
    """Asks for what TorchScript has not."""

    def forward(self, x):
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            raise RuntimeError("this has no TorchScript\nand never will")
        return x.tanh()


@pytest.mark.parametrize("kind", [Scales, Unwilling])
@pytest.mark.filterwarnings("ignore")  # of torch's exporters
def test_what_is_no_torchscript_is_exported_by_the_model(kind, tmp_path, capsys):
    name = f"{kind.__module__}.{kind.__name__}"
    spec = yaml.safe_load(PLAIN)
    graph = spec["policy"]["graph"]
    graph["last"] = {"block": name, "in": "latent"}
    spec["policy"]["heads"]["in"] = "last"
    run = runner(config(yaml.safe_dump(spec), actor={"allow": [kind.__module__]}))
    with pytest.raises(ExportError) as caught:
        run.export_policy_to_jit(str(tmp_path))
    advice = "; write model.export('policy.onnx') or model.export('policy.pt2') of runner.alg.actor.model instead"
    if kind is Unwilling:
        wrong = "the policy cannot be traced as TorchScript: this has no TorchScript"
    else:
        wrong = "the policy as TorchScript differs from the model by NUMBER"
    assert re.sub(r"\d\.\de[-+]\d+", "NUMBER", str(caught.value)) == wrong + advice
    for suffix in (".onnx", ".pt2"):
        run.alg.actor.model.export(tmp_path / f"policy{suffix}")


# --- what else rsl_rl does ---


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of inductor
def test_its_compiled_models_are_the_same(capsys):
    run = runner(config(PLAIN, torch_compile_mode="default", algorithm=LEARNS))
    before = copy.deepcopy(run.alg._raw_actor.model.state_dict())
    run.learn(1)
    after = run.alg._raw_actor.model.state_dict()
    assert all(not torch.equal(value, after[name]) for name, value in before.items())


def mirrored(env, obs, actions):
    """The environment's symmetry: everything with the other sign."""
    if obs is not None:
        obs = torch.cat([obs, obs.apply(torch.neg)])
    return obs, None if actions is None else torch.cat([actions, -actions])


@pytest.mark.parametrize("augments", [True, False])
def test_symmetry(augments, capsys):
    symmetry = {
        "data_augmentation_func": mirrored, "use_data_augmentation": augments,
        "use_mirror_loss": not augments, "mirror_loss_coeff": 1.0,
    }  # fmt: skip
    run = runner(config(PLAIN, algorithm={**LEARNS, "symmetry_cfg": symmetry}))
    before = copy.deepcopy(run.alg.actor.model.state_dict())
    run.learn(1)
    after = run.alg.actor.model.state_dict()
    assert all(not torch.equal(value, after[name]) for name, value in before.items())


def test_random_network_distillation(capsys):
    rnd = {
        "num_outputs": 2, "predictor_hidden_dims": [8], "target_hidden_dims": [8], "weight": 1.0,
        "class_name": "RandomNetworkDistillation",
    }  # fmt: skip
    rnd.pop("class_name")
    cfg = config(PLAIN, algorithm={**LEARNS, "rnd_cfg": rnd})
    cfg["obs_groups"]["rnd_state"] = ["privileged"]
    run = runner(cfg)
    run.learn(1)
    assert float(run.alg.intrinsic_rewards.abs().max()) > 0


@pytest.mark.parametrize("block", ["dense", "gru"])
def test_a_teacher_is_distilled_into_a_student(block, tmp_path, capsys):
    teacher = runner(config(PLAIN, algorithm=LEARNS))
    teacher.learn(1)
    teacher.save(str(tmp_path / "teacher.pt"))
    student = MEMORY.replace("POLICY", block).replace("CRITIC", "dense")
    actor = {"class_name": "composer.adapters.rsl_rl:Actor", "seed": 3}
    cfg = {
        "num_steps_per_env": 12, "save_interval": 100,
        "obs_groups": {"student": ["place"], "teacher": ["place"]},
        "algorithm": {"class_name": "Distillation", "gradient_length": 6, "learning_rate": 1e-2},
        "student": {**actor, "spec": student}, "teacher": {**actor, "spec": PLAIN},
    }  # fmt: skip
    run = runner(cfg, cls=DistillationRunner)
    run.load(str(tmp_path / "teacher.pt"))
    taught, learnt = (
        copy.deepcopy(part.state_dict()) for part in (run.alg.teacher, run.alg.student)
    )
    run.learn(2)
    assert all(torch.equal(v, run.alg.teacher.state_dict()[k]) for k, v in taught.items())
    changed = [k for k, v in learnt.items() if not torch.equal(v, run.alg.student.state_dict()[k])]
    assert sorted(learnt.keys() - changed) == [k for k in sorted(learnt) if "log_std" in k]
    saved = teacher.alg.actor.state_dict()
    assert all(torch.equal(v, saved[k]) for k, v in taught.items())


# --- what is refused ---

CASES = [
    (
        config(PLAIN, actor={"hidden_dims": [8], "obs_normalization": True, "sed": 1}),
        "rsl_rl cannot train this model:\n"
        "  'hidden_dims' is said by the spec: hidden_units of a dense block; leave it out of the config\n"
        "  'obs_normalization' is said by the spec: normalize: [...] at its top; leave it out of the config\n"
        "  'sed' is no setting; did you mean 'seed'?",
    ),
    (
        config(PLAIN.partition("critic:")[0] + "critic: {kind: state_action, template: {}}"),
        "rsl_rl cannot train this model:\n  PPO needs the value of a state, but the critic is of kind 'state_action'; "
        "give it one such as critic: {kind: state, template: {}}",
    ),
    (
        config(PLAIN, actor={"action_space": spaces.Discrete(3)}),
        "rsl_rl cannot train this model:\n  its actions are one vector of numbers, a Box, got Discrete(3); use the trainer sb3 or torchrl",
    ),
    (
        config(PLAIN, actor={"action_space": spaces.Box(-1, 1, (3,))}),
        "rsl_rl cannot train this model:\n  action_space has 3 numbers, but the environment takes 2; "
        "leave out action_space, or give a Box of 2",
    ),
    (
        config(PLAIN.replace("critic:", "critic:\n  normalize_value: true")),
        "rsl_rl cannot train this model:\n  it tells a critic no returns, so that 'normalize_value' has nothing to count; "
        "leave it out",
    ),
    (
        config(PLAIN, critic={"class_name": "MLPModel"}),
        "the spec has a critic, but the config's critic is another one, so that the spec's would not be "
        "trained; write critic: {class_name: \"composer.adapters.rsl_rl:Critic\"}",
    ),
    (
        config(PLAIN, critic={"spec": ASYMMETRIC}),
        "rsl_rl cannot train this model:\n  the critic's 'spec' is another one than the actor's, and both are parts of "
        "one model; leave out the critic's",
    ),
    (
        config(PLAIN, actor={"class_name": "MLPModel", "spec": None}),
        "a composed critic is a part of the actor's model, and the actor is another one or has no critic; "
        "write actor: {class_name: \"composer.adapters.rsl_rl:Actor\", spec: ...} with a spec that has a critic",
    ),
    (
        config(PLAIN, actor={"spec": None}),
        "rsl_rl cannot train this model:\n  there is no 'spec'; give the YAML text of one, or the path of its file",
    ),
    (
        config(PLAIN, algorithm={"share_cnn_encoders": True}),
        "share_cnn_encoders is said by the spec: shares: [...] under 'policy' lets the critic read values of it; "
        "leave it out of the algorithm's config",
    ),
    (
        config(PLAIN, actor={"observation_space": {"plac": spaces.Box(-1, 1, (3,))}}),
        "rsl_rl cannot train this model:\n  observation_space names 'plac', which is no group; did you mean 'place'?",
    ),
    (
        config(PLAIN, actor={"observation_space": {"place": spaces.Box(-1, 1, (4,))}}),
        "rsl_rl cannot train this model:\n  group 'place' has the shape (3,), but observation_space says (4,)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("cfg", "message"), CASES)
def test_what_is_refused_is_refused_before_the_first_step(cfg, message, capsys):
    if cfg["actor"]["class_name"] == "MLPModel":
        cfg["actor"] = {
            "class_name": "MLPModel",
            "distribution_cfg": {"class_name": "GaussianDistribution"},
        }
    if cfg["critic"]["class_name"] == "MLPModel":
        cfg["critic"] = {"class_name": "MLPModel"}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        runner(cfg).learn(1)


def test_a_model_in_the_config_is_refused_with_a_way_out_that_works(tmp_path, capsys):
    model = runner(config(PLAIN)).alg.actor.model
    message = (
        "rsl_rl cannot train this model:\n  'spec' is a Model, and rsl_rl copies its config, so that your model would "
        "stay as it is; write model.save('agent.safetensors'), and give spec: model.source and weights: 'agent.safetensors'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        runner(config(PLAIN, actor={"spec": model}))


def test_a_policy_that_reads_more_than_its_groups_is_refused_with_ways_out_that_work(capsys):
    spec = "version: 1\npolicy: {template: {}}\ncritic: {template: {}}\n"
    cfg = config(spec)
    cfg["obs_groups"] = {"actor": ["place"], "critic": ["place", "privileged"]}
    message = (
        "rsl_rl cannot train this model:\n  the policy reads 'privileged', which obs_groups does not give to 'actor'; write "
        "observations: [place] under 'policy' of the spec, or add to obs_groups: {actor: [place, privileged]}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        runner(cfg)
    cfg["actor"]["spec"] = spec.replace("policy: {", "policy: {observations: [place], ")
    runner(cfg).learn(1)
    cfg["actor"]["spec"] = spec
    cfg["obs_groups"] = {"actor": ["place", "privileged"], "critic": ["place", "privileged"]}
    runner(cfg).learn(1)


def test_groups_that_vary_in_size_are_padded_and_masked(capsys):
    class Padded(gymnasium.Env):
        observation_space = spaces.Dict(near=spaces.Box(-1, 1, (4, 3)), alive=spaces.MultiBinary(4))
        action_space = spaces.Box(-1, 1, (2,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {}

    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    env = vector_env(gymnasium.vector.SyncVectorEnv([Padded] * 2, autoreset_mode=mode))
    cfg = config("version: 1\npolicy: {template: {}}\ncritic: {template: {}}\n")
    cfg["obs_groups"] = {"actor": ["near"], "critic": ["near"]}
    cfg["actor"]["observation_space"] = {
        "near": spaces.Sequence(spaces.Box(-1, 1, (3,)), stack=True)
    }
    with pytest.raises(ValueError, match="varies in size") as caught:
        runner(cfg, env=env)
    assert str(caught.value).splitlines()[1] == (
        "  observation 'near' varies in size, (?, 3), and rsl_rl stores tensors of one "
        "size; pad it in the environment, and give the policy its mask as another group"
    )
    pooled = {"block": "masked_global_pooling", "in": {"x": "near", "mask": "alive"}}
    part = {"graph": {"all": pooled, "latent": {"block": "dense", "in": "all", "hidden_units": 8}}}
    cfg = config(
        yaml.safe_dump(
            {"version": 1, "policy": {**part, "heads": {"in": "latent"}}, "critic": part}
        )
    )
    cfg["obs_groups"] = {"actor": ["near", "alive"], "critic": ["near", "alive"]}
    cfg["actor"]["observation_space"] = {"alive": spaces.MultiBinary(4)}
    assert max(first_update(runner(cfg, env=env)).values()) < 1e-5


def test_a_group_of_whole_numbers_needs_its_space(capsys):
    class Kinds(gymnasium.Env):
        observation_space, action_space = spaces.Discrete(4), spaces.Box(-1, 1, (2,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return 3, {}

        def step(self, action):
            return 2, 0.0, False, False, {}

    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    env = vector_env(gymnasium.vector.SyncVectorEnv([Kinds] * 2, autoreset_mode=mode))
    spec = "version: 1\npolicy: {template: {}}\ncritic: {template: {}}\n"
    cfg = config(spec)
    cfg["obs_groups"] = {"actor": ["observation"], "critic": ["observation"]}
    message = (
        "rsl_rl cannot train this model:\n  group 'observation' has numbers of int64, which do not say what they count; "
        "give its space, such as observation_space: {observation: {type: Discrete, n: 5, start: 0, dtype: int64}}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        runner(cfg, env=env)
    cfg["actor"]["observation_space"] = {
        "observation": {"type": "Discrete", "n": 5, "start": 0, "dtype": "int64"}
    }
    assert max(first_update(runner(cfg, env=env)).values()) < 1e-5
    cfg["actor"]["observation_space"] = {
        "observation": {"type": "Discrete", "n": 2, "start": 0, "dtype": "int64"}
    }
    with pytest.raises(
        ValueError,
        match=r"its first observations do not fit: 'observation' is 2 at index .*outside",
    ):
        runner(cfg, env=env)


def test_episodes_of_gymnasium_begin_at_their_start(capsys):
    message = (
        "environments of gymnasium begin their episodes at the start; call "
        "runner.learn(iterations) without init_at_random_ep_len"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        runner(config(PLAIN)).learn(1, init_at_random_ep_len=True)


def test_environments_that_rsl_rl_cannot_run_are_refused_with_every_reason():
    message = (
        "rsl_rl cannot run this environment:\n"
        "  rsl_rl's actions are one vector of numbers, a Box, but its action is Discrete(2); train it with the trainer sb3 "
        "or skrl\n"
        "  rsl_rl expects the first observation of the next episode with the last step, but it resets by "
        "AutoresetMode.NEXT_STEP; make it with autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP"
    )
    env = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        vector_env(env)


def test_a_spec_without_a_critic_takes_the_hosts(capsys):
    spec = PLAIN.partition("critic:")[0]
    message = (
        "rsl_rl cannot train this model:\n  PPO needs the value of a state; "
        "add a critic such as critic: {kind: state, template: {}}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        runner(config(spec))
    assert issubclass(ExportError, Exception)
