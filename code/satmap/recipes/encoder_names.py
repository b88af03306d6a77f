"""Names of the encoders, without importing torch, to validate recipes."""

import difflib

#: Keys of ``satmap.networks.encoders.ENCODERS``, in its order.
ENCODER_NAMES = (
    "dpn68b",
    "dpn92",
    "dpn131",
    "inception_resnet_v2",
    "inception_v4",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "se_resnext50_32x4d",
    "senet154",
    "densenet121",
    "densenet161",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "efficientnetv2_s",
    "efficientnetv2_m",
    "vgg16",
    "convnext_tiny",
    "convnext_small",
)


def unknown_encoder(name: str) -> str:
    """Return the error message for an unknown encoder; it suggests similar names or lists all."""
    near = difflib.get_close_matches(name, ENCODER_NAMES, n=3, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else "known are " + ", ".join(ENCODER_NAMES)
    return f"unknown encoder {name!r:.60}; {hint}"
