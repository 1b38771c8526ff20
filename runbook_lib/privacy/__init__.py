"""What hides: tokens for people, and secrets that no output shows."""
