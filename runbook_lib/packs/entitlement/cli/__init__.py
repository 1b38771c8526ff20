"""The commands of this pack beside the engine's own."""
