"""How a network holds out against changed images: attacks, the detection of attacks, affine changes."""
