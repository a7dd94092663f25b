"""SHA-256 without hashlib, whose import loads OpenSSL: 2.4 ms for a digest of 100 bytes."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256  # CPython 3.12 and later
    except ImportError:
        from _sha256 import sha256

__all__ = ["sha256"]
