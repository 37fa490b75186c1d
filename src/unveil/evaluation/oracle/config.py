"""What the user says of the oracle."""

from unveil.section import Count, Device, Positive, Section, Seed


class OracleTraining(Section):
    """The oracle, a classifier of train.attributes: nothing is trained where these are []."""

    images: Count = 1_000_000
    """length of its training, in images seen, each of them mirrored or not"""
    batch_size: Count = 256
    """images a step"""
    lr: Positive = 0.003
    """greatest learning rate, which the training rises to and falls from (1cycle, 1708.07120)"""
    channels: Count = 64
    """of its first convolution; the later ones have up to four times as many"""
    seed: Seed = 0
    """of its weights, of the order of the images and of their mirroring"""
    device: Device = "auto"
    """auto (cuda if there is one) | cpu | cuda"""
