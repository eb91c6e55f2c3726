"""Pure functions of capsule networks; each fast backend is tested against the reference."""
