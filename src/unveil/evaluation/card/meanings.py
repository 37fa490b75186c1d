"""What each kind of metric says, in one sentence for a reader who has never met it: words of the page alone."""

MEANINGS = {
    "Fréchet distance without the bias of a finite N": (
        "the Fréchet distance that endlessly many samples would have, extrapolated from several N"
    ),
    "Fréchet distance": (
        "how far the features of the samples, as one Gaussian, lie from those of real images: it sees both "
        "bad images and missing variety, and falls with N"
    ),
    "kernel distance": (
        "how well a kernel tells the features of the samples from those of real images: 0 where it cannot, "
        "and by chance a little below; N does not bias it"
    ),
    "Inception Score": (
        "how surely a classifier of objects names each sample, and how many different names it gives: made "
        "for ImageNet, it says little about faces"
    ),
    "precision": "the share of samples that lie among the real images: low where images are bad",
    "recall": "the share of real images that lie among the samples: low where variety is missing",
    "density": (
        "in how many neighbourhoods of real images a sample lies, as a share of those expected: about 1 for "
        "real images, low where images are bad"
    ),
    "coverage": "the share of real images that have a sample in their neighbourhood: low where variety is missing",
    "bits per dimension": (
        "how many bits a number of a held-out image costs when the model is used to compress it, an upper "
        "bound: it says how likely the model finds real images, not how good its samples look"
    ),
}
"""By the kind's title."""
