"""Fit vectoriser settings."""
