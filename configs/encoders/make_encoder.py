"""Makes a small pretrained encoder in seconds: a ResNet that learns to see Catch by drawing its frames again.

    python configs/encoders/make_encoder.py        # writes configs/encoders/encoder/

The folder is one of transformers: config.json, model.safetensors and preprocessor_config.json. Nothing is downloaded.
`frozen.yaml`, `finetuned.yaml` and `strides.yaml` beside it use the folder. It needs the extra `llm`.
"""

import argparse
import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import ResNetConfig, ResNetModel

HERE = Path(__file__).parent
SIZE = 42  # of the images that it reads, half of the environment's
SETTINGS = {
    "num_channels": 4,  # four grey frames
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "layer_type": "basic",
}


def collect(frames: int, seed: int = 0) -> Tensor:
    """Frames of random play, (n, 4, 84, 84) in [0, 1]."""
    env = gymnasium.make("environments.pixels_env:Catch-v0")
    env.action_space.seed(seed)
    seen = [env.reset(seed=seed)[0]]
    while len(seen) < frames:
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(env.reset()[0] if terminated or truncated else observation)
    return torch.from_numpy(np.stack(seen)).float() / 255


class Autoencoder(nn.Module):
    """The encoder's feature map (32, 6, 6), and from it the frames again, as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNetModel(ResNetConfig(**SETTINGS))
        self.decoder = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(size=(21, 21)),
            nn.Conv2d(32, 16, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(size=(SIZE, SIZE)),
            nn.Conv2d(16, 4, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images).last_hidden_state)


def pretrain(frames: Tensor, steps: int, seed: int = 0) -> tuple[Autoencoder, dict[str, float]]:
    """The trained network, and the numbers to standardise its images by."""
    torch.manual_seed(seed)
    small = functional.interpolate(frames, (SIZE, SIZE), mode="bilinear", antialias=True)
    numbers = {"mean": float(small.mean()), "std": float(small.std())}
    images = (small - numbers["mean"]) / numbers["std"]
    network = Autoencoder().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(images), (16,))
        loss = error(network(images[chosen]), small[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval(), numbers


def error(logits: Tensor, images: Tensor) -> Tensor:
    """Binary cross-entropy, in which the few bright pixels count more."""
    weights = torch.where(images > 0, 20.0, 1.0)
    return functional.binary_cross_entropy_with_logits(logits, images, weights)


def write(network: Autoencoder, numbers: dict[str, float], folder: Path) -> None:
    """A folder as `save_pretrained` of transformers writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = network.encoder
    tensors = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(encoder.config.to_json_string())
    preprocessing = {
        "size": {"height": SIZE, "width": SIZE},
        "resample": 2,  # bilinear
        "image_mean": [numbers["mean"]] * 4,
        "image_std": [numbers["std"]] * 4,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make a small pretrained encoder.")
    parser.add_argument("-o", "--out", type=Path, default=HERE / "encoder")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--steps", type=int, default=150)
    given = parser.parse_args(arguments)
    sys.path.insert(0, str(HERE.parent))  # of environments/pixels_env.py
    network, numbers = pretrain(collect(given.frames), given.steps)
    unseen = functional.interpolate(
        collect(200, seed=1), (SIZE, SIZE), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        drawn = network((unseen - numbers["mean"]) / numbers["std"]).sigmoid()
    got, blank = (float((y - unseen).square().mean()) for y in (drawn, torch.zeros(())))
    write(network, numbers, given.out)
    print(
        f"wrote {given.out}: mean squared error {got:.4f} on new frames, of a blank image {blank:.4f}"
    )


if __name__ == "__main__":
    main()
