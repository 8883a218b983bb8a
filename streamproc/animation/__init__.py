"""Animates the crops of one person as WebP."""

from streamproc.animation.webp import encode_webp

__all__ = ["encode_webp"]
