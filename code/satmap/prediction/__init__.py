"""Prediction: from images to a submission."""
