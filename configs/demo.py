"""What `make demo` runs: every example is composed, summarised and drawn, and one of them plays an episode."""

import os
from pathlib import Path

import gymnasium

import composer
from perception_blocks.registry import MissingExtraError

CONFIGS = Path(os.path.relpath(Path(__file__).parent))  # summaries name the lines of these files
OUT = CONFIGS.parent / "out"
ALLOW = ["environments", "networks"]  # the examples' own classes, in the folders beside them


def main() -> None:
    OUT.mkdir(exist_ok=True)
    left_out = []
    for path in sorted(CONFIGS.glob("*.yaml")):
        try:
            model = composer.compose(path, allow=ALLOW, seed=0)
        except MissingExtraError as error:  # of its environment, or of one of its blocks
            print(f"\n=== {path} ===\nleft out: {error}")
            left_out.append(path.stem)
            continue
        print(f"\n=== {path} ===\n{model.summary()}")
        try:
            print(f"drawn as {model.draw(OUT / f'{path.stem}.png')}")
        except ValueError as error:  # a class in plain PyTorch has no graph to draw
            print(f"not drawn: {error}")
    if left_out:
        print(f"\nLeft out, as their extras are not installed (see above): {', '.join(left_out)}.")
    steps = play(CONFIGS / "cartpole.yaml")
    print(f"\nAn untrained policy kept CartPole's pole up for {steps} steps.")
    print(f"The diagrams are in {OUT}{os.sep}; look at {OUT / 'cartpole.png'} first.")


def play(path: Path) -> int:
    """The number of steps of one episode with freshly drawn weights."""
    env = gymnasium.make("CartPole-v1")
    model = composer.compose(path, env=env, seed=0)
    observation, _ = env.reset(seed=0)
    steps, over = 0, False
    while not over:
        observation, _, terminated, truncated, _ = env.step(model.policy.act(observation))
        steps, over = steps + 1, terminated or truncated
    env.close()
    return steps


if __name__ == "__main__":
    main()
