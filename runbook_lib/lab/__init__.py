"""JupyterLab: a responder's copies, and what its server does when one is saved."""
