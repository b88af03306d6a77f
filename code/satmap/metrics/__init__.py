"""The challenges' scores, computed from submissions alone."""
