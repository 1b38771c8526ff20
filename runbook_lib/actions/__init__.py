"""What a responder may do next: proposals, each an exact command. A notebook shows them and runs none."""
