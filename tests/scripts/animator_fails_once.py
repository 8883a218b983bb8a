"""`streamproc animator`, which cannot make its first animation."""

from __future__ import annotations

import itertools
import sys

from streamproc.cli import main
from streamproc.services import animator

real_encode_webp = animator.encode_webp
calls = itertools.count()


def encode_webp(crops, **options):
    """Fail at the first call."""
    if next(calls) == 0:
        raise ValueError("no picture")
    return real_encode_webp(crops, **options)


animator.encode_webp = encode_webp
sys.argv[0] = "streamproc"
main()
