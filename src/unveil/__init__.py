"""unveil: a reproducible pipeline that trains diffusion models of faces on CelebA."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("unveil")
except PackageNotFoundError:  # used from a source tree that was not installed
    __version__ = "0+source"
