"""Prediction of a submission from images."""
