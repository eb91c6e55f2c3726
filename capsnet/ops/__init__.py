"""Pure functions of capsule networks: each fast path here has a slow twin that it is tested against."""
