"""Paths as clients write them, made into those that the routes have."""

# Other base addresses, DeepSeek's among them: what is asked below them is asked below /v1.
_BASES = ("/beta/v1/", "/beta/", "/")
_BELOW_V1 = ("chat", "completions", "responses", "messages", "models", "embeddings")


def tidy(path: str) -> str:
    """`path` without empty parts: a base address with a slash at its end gives `//v1/models`, some add one behind.

    Answered at once, not by a redirect: few clients send a body again, and behind a proxy a redirect leads elsewhere.
    """
    return "/" + "/".join(part for part in path.split("/") if part)


def canonical(path: str) -> str:
    """A path with the base address that the routes have: `/beta/chat/completions` is `/v1/chat/completions`."""
    for base in _BASES:
        below = path.removeprefix(base)
        if below != path and below.partition("/")[0] in _BELOW_V1:
            return f"/v1/{below}"
    return path
