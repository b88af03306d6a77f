"""What timm's layers need changed before they can be part of an encoder."""

from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn


class NormAct(nn.Module):
    """timm's fused batch-norm and activation as two modules.

    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` replaces a ``BatchNormAct2d`` whole and so
    silently loses its activation; a plain batch-norm inside survives it.
    """

    def __init__(self, fused: BatchNormAct2d) -> None:
        super().__init__()
        if not isinstance(fused.drop, nn.Identity):
            raise ValueError("a BatchNormAct2d with a drop layer cannot be split in two")
        self.norm = nn.BatchNorm2d(fused.num_features, eps=fused.eps, momentum=fused.momentum)
        self.norm.load_state_dict(fused.state_dict())
        self.act = fused.act

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate ``x``, float (N, C, H, W)."""
        output: Tensor = self.act(self.norm(x))
        return output


def split_norm_act(module: nn.Module) -> None:
    """Replace every ``BatchNormAct2d`` inside by a ``NormAct``."""
    for name, child in module.named_children():
        if isinstance(child, BatchNormAct2d):
            setattr(module, name, NormAct(child))
        else:
            split_norm_act(child)


def force_padding(model: nn.Module) -> None:
    """Let sizes halve cleanly where the original network shrinks them at the borders.

    Every 3 x 3 convolution and max-pool gets a padding of 1.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.padding = (1, 1)
        elif isinstance(module, nn.MaxPool2d) and module.kernel_size == 3:
            module.padding = 1
