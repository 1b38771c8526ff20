"""The dossier of an incident: seal, artifacts, index page, postmortem, comparison, backtest and report."""
