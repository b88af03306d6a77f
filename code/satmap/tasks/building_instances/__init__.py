"""Task ``instances``: buildings found one by one by a cascade, without probability maps."""
