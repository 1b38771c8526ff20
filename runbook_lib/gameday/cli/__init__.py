"""The commands of game days."""
