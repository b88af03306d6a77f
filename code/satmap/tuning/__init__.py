"""Fitting of vectoriser settings."""
