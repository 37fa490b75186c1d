"""MLflow's server as `unveil ui` runs it: MLflow loads ``create`` by its entry point for such applications."""

from pathlib import Path
from typing import TYPE_CHECKING

from unveil.files import read_text

if TYPE_CHECKING:
    from fastapi import FastAPI

# In a browser that is new to it the assistant opens itself, over a quarter of the page. This is how MLflow notes that.
SHUT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"


def create() -> "FastAPI":
    """MLflow's own application, whose page leaves the assistant shut until it is asked for."""
    from mlflow.server import app as flask
    from mlflow.server.fastapi_app import app
    from starlette.responses import HTMLResponse
    from starlette.routing import Route

    page = read_text(Path(str(flask.static_folder)) / "index.html").replace(
        "<head>", f"<head><script>{SHUT}</script>", 1
    )
    app.router.routes.insert(0, Route("/", lambda _: HTMLResponse(page)))
    return app
