"""Paths as clients write them, made into those that the routes have."""


def tidy(path: str) -> str:
    """`path` without empty parts: a base address with a slash at its end gives `//v1/models`, some add one behind.

    Answered at once, not by a redirect: few clients send a body again, and behind a proxy a redirect leads elsewhere.
    """
    return "/" + "/".join(part for part in path.split("/") if part)
