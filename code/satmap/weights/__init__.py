"""Weight files: format, download, import, export, averaging and choice of ensemble members."""
