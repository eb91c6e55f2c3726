"""Pure functions of capsule networks; each fast backend is tested against the reference."""

from typing import Literal

Gradient = Literal["all", "last"]
"""The routing iterations through which gradients flow."""
