"""The fault campaign: the real commands on bad files, bad disks and bad moments."""
