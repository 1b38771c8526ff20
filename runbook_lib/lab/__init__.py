"""JupyterLab: a responder's copies, and what keeps their runs."""
