"""Interactive maps for the browser: one HTML file, or a small local server with imagery."""
