"""Metrics, scoring, checking and verification of result files."""
