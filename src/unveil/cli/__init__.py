"""The one command ``unveil``: each module holds some of its subcommands, thin, and what they alone need."""
