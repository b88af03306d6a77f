"""The order in which people expect names."""

import re


def natural_key(text: str) -> tuple[list[int | str], str]:
    """Sort key that puts ``chip2`` before ``chip10``."""
    # Splitting by a group alternates text and digits, so equal places hold equal types.
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text
