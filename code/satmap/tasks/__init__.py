"""Task families: roads, buildings."""
