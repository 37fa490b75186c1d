"""Images that show their attributes plainly, as tensors and as shards."""

from pathlib import Path

import torch
from torch import Tensor

from unveil.data.celeba import ATTRIBUTES
from unveil.data.shards import ShardIndex, write_shard

NAMES = ("Bald", "Smiling")  # red above, blue below
COLUMNS = [ATTRIBUTES.index(name) for name in NAMES]


def coloured(flags: Tensor, seed: int, size: int = 8) -> Tensor:
    """Noise, with a red upper half where the first flag is set and a blue lower half where the second is.

    bool [N, 2] -> uint8 [N, 3, size, size].
    """
    noise = torch.randint(0, 120, (len(flags), 3, size, size), generator=torch.Generator().manual_seed(seed))
    noise[:, 0, : size // 2] += 120 * flags[:, 0, None, None]
    noise[:, 2, size // 2 :] += 120 * flags[:, 1, None, None]
    return noise.to(torch.uint8)


def labelled(count: int, seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Images and their flags, bool [N, 2], of which the first is rarer."""
    generator = torch.Generator().manual_seed(seed)
    flags = torch.rand(count, 2, generator=generator) < torch.tensor([0.2, 0.5])
    return coloured(flags, seed, size), flags


def write_shards(
    folder: Path, size: int = 8, protocol: str = "score-sde", *, shared: int = 0, lies: bool = False
) -> ShardIndex:
    """A data set of such images, with CelebA's names; of all attributes but two nobody has any.

    The last ``shared`` of the train split have ids of the test split; if it ``lies``, the opposite of what they show.
    """
    folder.mkdir(parents=True)
    splits, start = {}, 1
    for split, count in (("train", 200), ("valid", 4), ("test", 100)):
        images, flags = labelled(count, start, size)
        whole = torch.zeros(count, len(ATTRIBUTES), dtype=torch.bool)
        whole[:, COLUMNS] = flags
        ids = torch.arange(start, start + count)
        if split == "train" and shared:
            whole[-shared:, COLUMNS] ^= torch.tensor(lies)
            ids[-shared:] = torch.arange(205, 205 + shared)
        splits[split] = (write_shard(folder, split, 0, images, whole, ids),)
        start += count
    facts = {"source": "cartoon", "protocol": protocol, "image_size": size, "attributes": ATTRIBUTES}
    index = ShardIndex.of(splits, (0.0,) * 3, (1.0,) * 3, **facts)
    index.save(folder)
    return index
