"""PPO for an action model: the tiny vision-language-action model of tiny_vla.yaml learns to point at a square.

    python configs/action_ppo.py                # the learning curve is out/action_ppo.png
    python configs/action_ppo.py --lora 8       # only adapters of rank 8 and the value head are trained
    torchrun --standalone --nproc-per-node 2 configs/action_ppo.py   # weights and training over two processes

It needs the extras [llm] and [train]. Each update acts once in a batch of environments and takes a few steps of PPO on
what acting returned: `forward_inputs` give log-probabilities and values again. Every process acts in all environments
with the same random numbers, and trains on its share of what came of it.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import torch

import composer
import composer.parallel
from perception_blocks.registry import needs_extra

HERE = Path(__file__).parent
OUT = HERE.parent / "out"
SPEC = HERE / "tiny_vla.yaml"
SAME_STEP = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}


def make(*, lora=None, seed=0):
    """The model; with ``lora`` its body is frozen but for adapters of that rank."""
    overrides = [] if lora is None else [f"model.lora={{rank: {lora}}}"]
    return composer.compose(
        SPEC, allow=["environments", "networks"], overrides=overrides, seed=seed
    )


def train(model, updates, *, batch=128, rate=1e-3, epochs=4, seed=0, rank=0, processes=1):
    """The mean reward of every update's actions; this is the process ``rank`` of several."""
    torch.manual_seed(seed)
    share = slice(rank * batch // processes, (rank + 1) * batch // processes)
    kind = model.spec.environment
    env = gymnasium.make_vec(kind, batch, vectorization_mode="sync", vector_kwargs=SAME_STEP)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = composer.parallel.optimizer(model, torch.optim.Adam, lr=rate)
    observations, _ = env.reset(seed=seed)
    rewards = []
    for _ in range(updates):
        actions, acted = model.predict_action_batch(observations)
        observations, reward, *_ = env.step(act_in(env, actions))
        reward = torch.as_tensor(reward, dtype=torch.float32)
        advantage = reward - acted["prev_values"].squeeze(-1)  # an episode has one step
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        inputs = {name: value[share] for name, value in acted["forward_inputs"].items()}
        before = acted["prev_logprobs"][share]
        for _ in range(epochs):
            loss = ppo_loss(model(inputs), before, advantage[share], reward[share])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        rewards.append(float(reward.mean()))
    env.close()
    return rewards


def act_in(env, actions):
    """The first of each chunk of actions, as the environments take it."""
    space = env.single_action_space
    return actions[:, 0].numpy().clip(space.low, space.high)


def ppo_loss(now, before, advantage, reward, *, clip=0.2, value_weight=0.5, entropy_weight=0.01):
    """The clipped objective, the error of the values and the entropy, as means over the batch."""
    ratio = (now["logprobs"] - before).sum(-1).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    error = (now["values"].squeeze(-1) - reward).square().mean()
    return -gain.mean() + value_weight * error - entropy_weight * now["entropy"].sum(-1).mean()


def evaluate(model, episodes=64, seed=1):
    """The mean reward of the likeliest actions."""
    env = gymnasium.make_vec(
        model.spec.environment, episodes, vectorization_mode="sync", vector_kwargs=SAME_STEP
    )
    observations, _ = env.reset(seed=seed)
    actions, _ = model.predict_action_batch(observations, mode="eval")
    reward = env.step(act_in(env, actions))[1]
    env.close()
    return float(reward.mean())


def draw(curves, path):
    """The mean reward of each model over the updates, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for name, rewards in curves.items():
        axes.plot(range(1, len(rewards) + 1), rewards, label=name)
    axes.set_xlabel("update")
    axes.set_ylabel("mean reward: 1 - distance to the square")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path.parent.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description="An action model learns by PPO.")
    add = parser.add_argument
    add("--updates", type=int, default=150, help="how often it acts and trains (default: 150)")
    add("--lora", type=int, metavar="RANK", help="train adapters of this rank and the value head")
    add("--seed", type=int, default=0, help="of weights, actions and environments (default: 0)")
    add("--out", type=Path, default=OUT / "action_ppo.png", help="the picture of the curve")
    given = parser.parse_args()
    if find_spec("matplotlib") is None:  # told before training, not after it
        parser.error(needs_extra("the learning curve", ["matplotlib"], "train"))
    with composer.parallel.start() as mesh:  # of one process, unless torchrun has started more
        model = composer.parallel.shard(make(lora=given.lora, seed=given.seed), mesh)
        before = evaluate(model)
        rewards = train(model, given.updates, seed=given.seed, rank=mesh.rank, processes=mesh.size)
        after = evaluate(model)
        if mesh.is_first:
            name = "all weights" if given.lora is None else f"LoRA of rank {given.lora}"
            draw({name: rewards}, given.out)
            print(f"{name}: mean reward {before:.2f} before, {after:.2f} after training")
            print(f"the curve is drawn in {given.out}")


if __name__ == "__main__":
    main()
