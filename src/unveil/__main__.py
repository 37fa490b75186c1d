"""``python -m unveil`` is the command ``unveil``."""

from unveil.cli.main import app

app(prog_name="unveil")
