"""The order in which people expect names."""

import re


def natural_key(text: str) -> tuple[list[str], str]:
    """Sort key that puts ``chip2`` before ``chip10``."""
    # Splitting by a group alternates text and digits. Numbers go by their length first, so that
    # they need not become integers, of which Python refuses those of thousands of digits.
    parts = re.split(r"([0-9]+)", text)
    digits = [part.lstrip("0") for part in parts]
    return [
        f"{len(digits[i]):09d}{digits[i]}" if i % 2 else parts[i] for i in range(len(parts))
    ], text
