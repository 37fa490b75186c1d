"""A web server on 127.0.0.1 that plays the hosts of the published files, with their bad days."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

QUOTA_PAGE = (
    b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body><p>Sorry, you "
    b"can't view or download this file at this time.</p>"
    b'<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>'
)
SIGN_IN_PAGE = b'<html><head><title>Sign in</title></head><body><a href="https://accounts.google.com/x"></a></html>'
# What gdown takes for a file, and huggingface_hub for one of a hub.
FILE_HEADERS = {"Content-Disposition": 'attachment; filename="x"', "ETag": '"1"', "X-Repo-Commit": "0" * 40}


def scan_page(action: str) -> bytes:
    """Google Drive's page before a file that is too large for its virus scan."""
    return (
        "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>"
        f'<form id="download-form" action="{action}" method="get">'
        '<input type="submit" value="Download anyway"/>'
        '<input type="hidden" name="id" value="abc"><input type="hidden" name="confirm" value="t">'
        '<input type="hidden" name="uuid" value="1-2 3"></form></body></html>'
    ).encode()


@dataclass
class Request:
    """A request that arrived."""

    path: str
    first_byte: int


@dataclass
class LocalServer:
    """The server's content and record.

    Args:
        files: path to content.
        break_after: path to number of bytes after which the connection breaks, once for each entry.
        answers: path to (status, content type, body) that it sends instead of a file.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    break_after: dict[str, list[int]] = field(default_factory=dict)
    answers: dict[str, tuple[int, str, bytes]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def asked(self, path: str) -> list[int]:
        """First byte of each request for a path, in order."""
        return [request.first_byte for request in self.requests if request.path == path]


def _handler(server: LocalServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            first = int(found[1]) if found else 0
            server.requests.append(Request(self.path, first))
            if self.path in server.answers:
                status, kind, body = server.answers[self.path]
                self.send(status, kind, body)
            elif self.path not in server.files:
                self.send(404, "text/plain", b"nothing here")
            else:
                self.send_file(server.files[self.path], first)

        do_HEAD = do_GET  # noqa: N815

        def send_file(self, content: bytes, first: int) -> None:
            headers = FILE_HEADERS | {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
            self.send(206 if first else 200, "application/octet-stream", content[first:], headers)

        def send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                breaks = server.break_after.get(self.path)
                self.wfile.write(body[: breaks.pop(0)] if breaks else body)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up early are part of the tests


@contextmanager
def serving(**content: object) -> Iterator[LocalServer]:
    """Run a server while the block runs; the arguments are those of ``LocalServer``."""
    server = LocalServer(**content)  # type: ignore[arg-type]
    with _QuietServer(("127.0.0.1", 0), _handler(server)) as http:
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def closed_address() -> str:
    """An address at which nobody listens."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        return f"http://127.0.0.1:{http.server_address[1]}"
