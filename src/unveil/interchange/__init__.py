"""To and from other people's formats: for now the pipeline folders of diffusers, read and written without it."""
