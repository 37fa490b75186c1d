"""The embedding of the noise level."""

import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from unveil.networks.condition import Condition
from unveil.networks.config import UNetConfig
from unveil.networks.embedding import NoiseEmbedding, RandomFourier, embed, sinusoidal_embedding
from unveil.networks.unet import UNet

POSITIONS = torch.tensor([-1.5, 0.0, 0.25, 1.0, 17.0, 500.5, 999.0])


@pytest.mark.parametrize("dim", [4, 32, 128])
@pytest.mark.parametrize("period", [10_000.0, 500.0])
def test_it_is_diffusers_in_ddpms_setting(dim: int, period: float) -> None:
    peer = get_timestep_embedding(POSITIONS, dim, flip_sin_to_cos=False, downscale_freq_shift=1, max_period=int(period))
    found = sinusoidal_embedding(POSITIONS, dim, period)
    assert found.shape == (len(POSITIONS), dim) and found.dtype == torch.float32
    torch.testing.assert_close(found, peer, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("dim", [4, 128])
def test_with_cosines_first_it_is_diffusers_in_adms_setting(dim: int) -> None:
    peer = get_timestep_embedding(POSITIONS, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal_embedding(POSITIONS, dim, cosines_first=True), peer, rtol=0.0, atol=1e-4)


def test_random_frequencies_are_kept_with_the_weights() -> None:
    torch.manual_seed(0)
    waves = RandomFourier(4096)
    assert waves.frequencies.std().item() == pytest.approx(16, rel=0.05)
    again = RandomFourier(4096)
    again.load_state_dict(waves.state_dict())
    assert torch.equal(again(POSITIONS), waves(POSITIONS))
    sine, cosine = waves(POSITIONS[:3]).chunk(2, dim=1)
    expected = torch.exp(2j * math.pi * POSITIONS[:3, None].double() * waves.frequencies.double())
    torch.testing.assert_close(torch.complex(cosine, sine), expected.to(torch.complex64), rtol=0.0, atol=1e-3)


def test_frequencies_fall_geometrically_from_one_to_the_longest_period() -> None:
    """Near 0 a sine is its angle, so a small position shows the frequencies."""
    frequencies = sinusoidal_embedding(torch.tensor([1e-4]), 20, 1000.0)[0, :10].double() / 1e-4
    expected = [math.exp(-math.log(1000.0) * i / 9) for i in range(10)]
    torch.testing.assert_close(frequencies, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0.0)


def test_sines_and_cosines_are_pairs() -> None:
    sine, cosine = sinusoidal_embedding(POSITIONS, 64).chunk(2, dim=1)
    torch.testing.assert_close(sine**2 + cosine**2, torch.ones_like(sine))


def test_whole_positions_and_low_precision_are_embedded_in_full_precision() -> None:
    expected = sinusoidal_embedding(torch.tensor([3.0, 500.0]), 32)
    assert torch.equal(sinusoidal_embedding(torch.tensor([3, 500]), 32), expected)
    assert torch.equal(sinusoidal_embedding(torch.tensor([3.0, 500.0]).bfloat16(), 32), expected)


def test_different_noise_levels_are_told_apart() -> None:
    torch.manual_seed(0)
    embedded = NoiseEmbedding(32, 128)(POSITIONS)
    assert embedded.shape == (len(POSITIONS), 128)
    for i in range(len(POSITIONS)):
        for j in range(i):
            assert (embedded[i] - embedded[j]).abs().max() > 1e-3


def test_labels_start_unheard_and_zeros_always_are() -> None:
    torch.manual_seed(0)
    plain = NoiseEmbedding(32, 128)
    torch.manual_seed(0)
    told = NoiseEmbedding(32, 128, labels=9)
    labels = torch.randn(len(POSITIONS), 9)
    assert all(torch.equal(told.state_dict()[name], value) for name, value in plain.state_dict().items())
    assert set(told.state_dict()) - set(plain.state_dict()) == {"augment.weight"}
    assert torch.equal(told(POSITIONS, Condition(labels)), plain(POSITIONS))
    assert told.augment is not None
    torch.nn.init.normal_(told.augment.weight)
    assert torch.equal(told(POSITIONS, Condition(torch.zeros_like(labels))), told(POSITIONS))
    expected = told.layers(told.waves(POSITIONS) + labels @ told.augment.weight.T)
    torch.testing.assert_close(told(POSITIONS, Condition(labels)), expected)
    assert (told(POSITIONS, Condition(labels)) - told(POSITIONS)).abs().max() > 1e-3


def test_what_would_not_be_heard_is_refused() -> None:
    labels, attributes = torch.zeros(len(POSITIONS), 9), torch.zeros(len(POSITIONS), 40)
    for embedding in (NoiseEmbedding(32, 128), None):
        with pytest.raises(ValueError, match=r"condition\.augmentation: found \[7, 9\], expected None"):
            embed(embedding, POSITIONS, Condition(labels))
    told = NoiseEmbedding(32, 128, labels=9)
    with pytest.raises(ValueError, match=r"condition\.attributes: found \[7, 40\], expected None"):
        told(POSITIONS, Condition(labels, attributes))
    with pytest.raises(ValueError, match=r"condition\.augmentation: found \[7, 8\], expected \[n, 9\]"):
        told(POSITIONS, Condition(labels[:, :8]))
    assert torch.equal(told(POSITIONS, Condition()), told(POSITIONS))


def test_weights_of_earlier_versions_load_by_their_names() -> None:
    earlier = {
        "layers.0.weight": (128, 32),
        "layers.0.bias": (128,),
        "layers.2.weight": (128, 128),
        "layers.2.bias": (128,),
        "augment.weight": (32, 9),
    }
    embedding = NoiseEmbedding(32, 128, labels=9)
    embedding.load_state_dict({name: torch.ones(shape) for name, shape in earlier.items()})
    assert all((weight == 1).all() for weight in embedding.parameters())
    small = UNetConfig(image_size=8, channels=32, channel_multipliers=(1,), attention_resolutions=(), augment_labels=9)
    assert list(UNet(small).state_dict())[:5] == [f"embedding.{name}" for name in earlier]
