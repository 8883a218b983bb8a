"""Animates the crops of one person as WebP, and puts the best ones side by side."""

from streamproc.animation.webp import encode_strip, encode_webp, strip_size

__all__ = ["encode_strip", "encode_webp", "strip_size"]
