"""Fault campaign: runs the real commands on damaged files, failing disks and at bad moments."""
