"""REINFORCE for token policies: a GRU and a GPT-2 learn to say long runs of one token, near to a frozen prior.

    python configs/token_reinforce.py            # both of them, and their learning curves as out/token_reinforce.png
    python configs/token_reinforce.py --model token_gru --steps 100

It needs the extras [torchrl], [llm] and [train]. Agent and prior come from one factory, with the same weights. Each
step is one batch of sequences: the reward of a sequence is its score, less what the agent gained in log-probability
over the prior, a pull back to what that knows.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from environments.token_env import RULES, longest_run

from composer.model_registry import MODELS, find_model
from perception_blocks.registry import needs_extra

HERE = Path(__file__).parent
OUT = HERE.parent / "out"
for name in ("token_gru", "token_gpt2"):
    MODELS.register(name, spec=HERE / f"{name}.yaml", allow=["environments"], replace=True)


def train(model, steps, *, batch=64, rate=1e-3, pull=0.02, seed=0, overrides=()):
    """The mean score of every step's sequences."""
    from composer.adapters.tokens.torchrl_env import TokenEnv

    sizes = {name: RULES[name] for name in ("vocabulary_size", "max_length")}
    factory = find_model({"model": model}).actor
    training, agent = factory(**sizes, seed=seed, overrides=overrides)
    prior, _ = factory(**sizes, seed=seed, overrides=overrides)
    prior.requires_grad_(False)
    optimizer = torch.optim.Adam(agent.parameters(), lr=rate)
    rules: dict = {**RULES, "score": longest_run}
    env = TokenEnv(**rules, batch_size=batch)
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(steps):
        fields, actions, alive, score = say(env, agent, generator)
        sequence, mask = (fields[key][:, :-1] for key in ("sequence", "sequence_mask"))
        of_agent, of_prior = (
            (view.distribution(sequence, mask).log_prob(actions) * alive).sum(-1)
            for view in (training, prior)
        )
        worth = score - pull * (of_agent - of_prior).detach()
        loss = -((worth - worth.mean()) * of_agent).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scores.append(float(score.mean()))
    return scores


def say(env, agent, generator):
    """A sequence in each row: the last fields, actions (B, T), where a row went on (B, T), rewards (B,)."""
    fields = env.reset()
    state, actions, alive = agent.initial_state(env.batch_size), [], []
    over = torch.zeros(env.batch_size, dtype=torch.bool)
    reward = torch.zeros(env.batch_size)
    for _ in range(RULES["max_length"] - 1):
        observation = {name: fields[name] for name in agent.observer.tree.ports}
        if agent.has_memory:
            action, state = agent.act(observation, state, generator=generator)
        else:
            action = agent.act(observation, generator=generator)
        actions.append(action)
        alive.append(~over)
        fields = env.step(fields.set("action", action))["next"]
        over = over | fields["done"].squeeze(-1)
        reward = reward + fields["reward"].squeeze(-1)
    return fields, torch.stack(actions, -1), torch.stack(alive, -1), reward


def draw(curves, path):
    """The mean score of each model over the steps, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for name, scores in curves.items():
        axes.plot(range(1, len(scores) + 1), scores, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("mean score: longest run of one token")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path.parent.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Token policies learn by REINFORCE.")
    add = parser.add_argument
    add("--model", action="append", choices=list(MODELS), help="the network (default: both)")
    add("--steps", type=int, default=200, help="batches of sequences (default: 200)")
    add("--out", type=Path, default=OUT / "token_reinforce.png", help="the picture of the curves")
    given = parser.parse_args()
    if find_spec("matplotlib") is None:  # told before training, not after it
        parser.error(needs_extra("the learning curve", ["matplotlib"], "train"))
    curves = {}
    for name in given.model or MODELS:
        curves[name] = train(name, given.steps)
        first, last = (sum(part) / len(part) for part in (curves[name][:10], curves[name][-10:]))
        print(f"{name}: mean score {first:.2f} in the first steps, {last:.2f} in the last")
    draw(curves, given.out)
    print(f"the curves are drawn in {given.out}")


if __name__ == "__main__":
    main()
