"""Findings as HTML, text, JSON and charts."""
