"""``unveil play``: a page on which a model draws what is asked for."""

import ipaddress
import socket
from pathlib import Path
from typing import Annotated

import typer

from unveil.errors import UnveilError
from unveil.layout import MODELS
from unveil.progress import say


def play(
    models: Annotated[Path, typer.Option(help="Folder of the model.")] = MODELS,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets others of the network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of that address.")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Open a page to play with a model: ask for faces, edit them, share them. Ctrl-C ends it."""
    listening = listen(host, port)
    import uvicorn

    from unveil.serving.play import Server, build_app
    from unveil.serving.studio import Studio

    say(f"loading {models}")
    server = Server(Studio.load(models, device))
    seconds = server.warm_up()
    place = ipaddress.ip_address(listening.getsockname()[0].partition("%")[0])
    names = frozenset({host.lower(), *(("*", socket.gethostname().lower()) if place.is_unspecified else ())})
    shown = f"[{host}]" if ":" in host else host
    say(f"http://{'localhost' if place.is_unspecified else shown}:{port}  a face takes {seconds:.1f} s here")
    if not place.is_loopback:
        say("Everybody on this network may use it.")
    say("Ctrl-C ends it.")
    config = uvicorn.Config(
        build_app(server, names), log_level="warning", limit_concurrency=64, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run([listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, before minutes go into loading. Raises UnveilError if the place is taken or none."""
    try:
        (family, kind, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except socket.gaierror:
        raise UnveilError(f"--host: found {host}, expected an address of this machine, such as 127.0.0.1") from None
    except OSError as error:
        raise UnveilError(f"port {port} of {host}: {error.strerror}; choose another with --port or --host") from None
    return found
