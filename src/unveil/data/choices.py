"""Names of the choices that params.yaml has for reading data."""

from typing import Literal

Loader = Literal["auto", "device", "stream"]
