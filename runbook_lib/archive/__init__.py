"""What is kept of an incident: the store and its seal, artifacts read back, the dossier, the postmortem."""
