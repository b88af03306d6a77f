"""``python -m satmap``."""

from satmap.cli import main

if __name__ == "__main__":
    main()
