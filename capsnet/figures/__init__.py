"""Pictures of a network and of its training, as PNG files with their numbers, and the report that holds them all."""
