"""Proximal policy optimisation (PPO) in one file: a policy without memory in a vector environment.

python configs/trainers/ppo_cartpole.py
"""

from dataclasses import dataclass

import gymnasium
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch.nn.utils import clip_grad_norm_

import composer


@dataclass(frozen=True)
class Settings:
    total_steps: int = 100_000
    num_envs: int = 8
    rollout_steps: int = 32  # in each environment
    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-3  # falls to 0, as does clip
    clip: float = 0.2
    gamma: float = 0.98
    gae_lambda: float = 0.8
    value_weight: float = 0.5
    entropy_weight: float = 0.0
    max_grad_norm: float = 0.5


def collect(model, envs, observation, starts, settings):
    """A rollout as tensors (steps, envs, ...) by name, and the observation after it."""
    rows = []
    for _ in range(settings.rollout_steps):
        with torch.no_grad():
            step = model.step(observation, entropy=False)
        following, reward, terminated, truncated, _ = envs.step(model.to_environment(step.action))
        starts.update(terminated, truncated)
        row = {"observation": observation, "reward": reward, "terminated": terminated}
        # After the end of an episode, gymnasium's next step only resets: nothing is learned from it.
        row |= {"ended": terminated | truncated, "is_real": ~starts.resets}
        rows.append({name: torch.as_tensor(value) for name, value in row.items()})
        rows[-1] |= {"action": step.action, "log_prob": step.log_prob, "value": step.value}
        observation = following
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}, observation


def advantages(rollout, last_value, settings):
    """Generalised advantage estimation (Schulman et al., 2016), (steps, envs).

    A terminated episode is worth nothing after its end; a truncated one is worth what its last observation is, which
    the next row of the rollout has.
    """
    gamma, value = settings.gamma, rollout["value"]
    following = torch.cat([value[1:], last_value.unsqueeze(0)])
    delta = rollout["reward"].float() + gamma * following * ~rollout["terminated"] - value
    advantage, result = torch.zeros_like(last_value), []
    for step, ended in zip(delta.flip(0), rollout["ended"].flip(0)):
        advantage = step + gamma * settings.gae_lambda * advantage * ~ended
        result.append(advantage)
    return torch.stack(result[::-1])


def learn(model, optimizer, rollout, clip, settings):
    """Update the model; return for each minibatch how far its ratios of probabilities are from 1."""
    flat = {name: value[rollout["is_real"]] for name, value in rollout.items()}
    distances = []
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(flat["action"])).split(settings.batch_size):
            batch = {name: value[rows] for name, value in flat.items()}
            step = model.step(batch["observation"], batch["action"])
            ratio = (step.log_prob - batch["log_prob"]).exp()
            distances.append((ratio - 1).abs().max().item())
            gain = batch["advantage"]
            gain = (gain - gain.mean()) / (gain.std(correction=0) + 1e-8)
            policy_loss = -torch.min(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).mean()
            value_loss = (step.value - batch["return"]).square().mean()
            loss = policy_loss + settings.value_weight * value_loss
            loss = loss - settings.entropy_weight * step.entropy.mean()
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
    return distances


def train(seed=0, settings=Settings(), spec="configs/cartpole.yaml", log=print):
    """The trained model."""
    torch.manual_seed(seed)
    envs = gymnasium.make_vec("CartPole-v1", settings.num_envs, vectorization_mode="sync")
    envs = RecordEpisodeStatistics(envs)
    model = composer.compose(spec, env=envs, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, eps=1e-5)
    starts = composer.first_steps(envs)
    observation, _ = envs.reset(seed=seed)
    updates = settings.total_steps // (settings.num_envs * settings.rollout_steps)
    for update in range(updates):
        left = 1 - update / updates
        optimizer.param_groups[0]["lr"] = settings.learning_rate * left
        rollout, observation = collect(model, envs, observation, starts, settings)
        with torch.no_grad():
            last_value = model.value(observation)
        rollout["advantage"] = advantages(rollout, last_value, settings)
        rollout["return"] = rollout["advantage"] + rollout["value"]
        distances = learn(model, optimizer, rollout, settings.clip * left, settings)
        if envs.return_queue and update % max(1, updates // 20) == 0:
            mean = sum(envs.return_queue) / len(envs.return_queue)
            log(
                f"update {update}: mean return {mean:.1f}, largest |ratio - 1| {max(distances):.2f}"
            )
    envs.close()
    return model


def evaluate(model, episodes=20, seed=10_000):
    """The mean return of the policy's most likely actions."""
    policy, env, total = model.policy.lower(), gymnasium.make("CartPole-v1"), 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        over = False
        while not over:
            action = policy.act(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
    return total / episodes


if __name__ == "__main__":
    trained = train()
    print("greedy:", evaluate(trained))
    trained.save("ppo_cartpole.safetensors")
