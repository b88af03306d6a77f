"""Probability maps in memory and on disk."""
