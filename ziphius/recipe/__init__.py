"""A TOML recipe → checked stages → run in order, resumable."""
