"""Chips on disk: layouts, imagery, labels, targets, the cache and the crops drawn from it."""
