"""Submission formats: one file each, with its writer, reader and validator together."""
