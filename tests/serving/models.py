"""A small model of noise that is told attributes, in a folder."""

from pathlib import Path

import torch

from unveil.diffusion.config import Diffusion
from unveil.model import ModelConfig, save_model
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network

SIZE = 16
NETWORK = UNetConfig(
    image_size=SIZE,
    channels=32,
    channel_multipliers=(1, 2),
    blocks=1,
    attention_resolutions=(8,),
    stem=2,
    attributes=("Smiling", "Bald"),
)
DIFFUSION = Diffusion(path="edm", parameterization="edm", objective="edm")


def save_conditional(folder: Path, network: UNetConfig = NETWORK) -> Path:
    """Write the model; returns the folder."""
    torch.manual_seed(0)
    built = build_network(network)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    facts = {"source": "cartoon", "protocol": "score-sde", "image_size": SIZE}
    save_model(folder, built, ModelConfig(network, DIFFUSION, facts, {"images": 0}))
    return folder
