"""Made again and compared: submissions and weight files against their manifests."""
