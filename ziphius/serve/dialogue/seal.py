"""A mark on the thinking that this service sent, by which it is known when it comes back. Imports no torch."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets


class Seal:
    """HMAC-SHA256 under a key that ends with the process."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def sign(self, text: str) -> str:
        return base64.b64encode(hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256)).decode()

    def knows(self, text: str, signature: str) -> bool:
        """Whether `text` was sealed here, by this process, as it stands."""
        return hmac.compare_digest(self.sign(text).encode(), signature.encode("utf-8", "surrogatepass"))
