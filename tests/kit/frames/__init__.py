"""What steps read, by section: frames of healthy systems and of systems in trouble."""
