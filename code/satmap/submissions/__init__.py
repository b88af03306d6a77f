"""Submission formats: one module each, with its writer, reader and validator."""
