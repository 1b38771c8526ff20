"""What is made of an incident's records: seal, pages, postmortem, comparison, backtest and report."""
