"""What judges count and weigh with; pure."""
