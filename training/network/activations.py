"""The activation functions by name, and the initialisation that goes with each."""

from torch import Tensor, nn
from torch.nn import functional

from model.bundle.architecture import ActivationName

_PRELU_START = 0.25  # PyTorch's and He et al. 2015's initial slope
_RRELU_SLOPES = (1 / 8, 1 / 3)  # Xu et al. 2015; in evaluation the slope is their mean


def build_activation(name: ActivationName, negative_slope: float = 0.01) -> nn.Module:
    """Build the module; `negative_slope` matters to leaky_relu alone.

    Sources: ReLU (Nair & Hinton 2010), LeakyReLU (Maas et al. 2013), PReLU (He et al. 2015),
    RReLU (Xu et al. 2015), ELU (Clevert et al. 2016), SiLU (Elfwing et al. 2018), GELU
    (Hendrycks & Gimpel 2016, the exact form).
    """
    match name:
        case "relu":
            return nn.ReLU()
        case "leaky_relu":
            return nn.LeakyReLU(negative_slope)
        case "prelu":
            return nn.PReLU(init=_PRELU_START)
        case "rrelu":
            return RReLU(*_RRELU_SLOPES)
        case "elu":
            return nn.ELU()
        case "silu":
            return nn.SiLU()
        case "gelu":
            return nn.GELU()
        case "tanh":
            return nn.Tanh()
        case "sigmoid":
            return nn.Sigmoid()


class RReLU(nn.RReLU):
    """The exporter knows no RReLU; in evaluation it is a leaky ReLU with the mean slope."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        if self.training:
            return super().forward(x)
        return functional.leaky_relu(x, (self.lower + self.upper) / 2)


BOUNDED = (nn.Tanh, nn.Sigmoid)
"""Activations that saturate at both ends; all others grow without bound above zero."""

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, RReLU, nn.ELU, nn.SiLU, nn.GELU, *BOUNDED)
"""What `build_activation` builds, for those who look for activation layers in a network."""


def initialise(layer: nn.Linear | nn.Conv2d, name: ActivationName, negative_slope: float) -> None:
    """Initialise a layer that feeds activation `name`, in place; the bias becomes 0.

    He et al. 2015 for the ReLU family, with the slope's gain; Glorot & Bengio 2010 for tanh and
    sigmoid.
    """
    if name in ("tanh", "sigmoid"):
        nn.init.xavier_uniform_(layer.weight)
    else:
        slopes = {"leaky_relu": negative_slope, "prelu": _PRELU_START}
        slopes["rrelu"] = sum(_RRELU_SLOPES) / 2
        nn.init.kaiming_normal_(layer.weight, a=slopes.get(name, 0.0))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
