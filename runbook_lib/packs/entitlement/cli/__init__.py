"""The commands that this pack adds to the engine's."""
