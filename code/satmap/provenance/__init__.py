"""Provenance of results: software, hardware and manifests."""
