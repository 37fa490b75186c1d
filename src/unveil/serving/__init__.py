"""Pictures on request: what may be asked for, the model that draws it, and the page to play with."""
