"""Builds activation functions by name, and initialises the layers that feed them."""

from torch import Tensor, nn
from torch.nn import functional

from model.bundle.architecture_description import ActivationName

_PRELU_INITIAL_SLOPE = 0.25  # PyTorch's and He et al. 2015's initial slope
_RRELU_SLOPES = (1 / 8, 1 / 3)  # Xu et al. 2015; in evaluation the slope is their mean


def build_activation(name: ActivationName, negative_slope: float = 0.01) -> nn.Module:
    """Build the activation `name`; only leaky_relu uses `negative_slope`.

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
            return nn.PReLU(init=_PRELU_INITIAL_SLOPE)
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
    """Randomised leaky ReLU that torch.onnx can export.

    The exporter does not support `nn.RReLU`. In evaluation mode the function equals a leaky ReLU
    with the mean slope, so that is what runs and is exported.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation elementwise: any shape -> the same shape."""
        if self.training:
            return super().forward(x)
        return functional.leaky_relu(x, (self.lower + self.upper) / 2)


BOUNDED_ACTIVATIONS = (nn.Tanh, nn.Sigmoid, nn.Softsign)
"""Activations that saturate at both ends; all others are unbounded above zero."""

ACTIVATIONS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    RReLU,
    nn.ELU,
    nn.SiLU,
    nn.GELU,
    *BOUNDED_ACTIVATIONS,
)
"""Types by which the activation layers of a network are found; softsign is of experiments alone."""


def initialise_layer(
    layer: nn.Linear | nn.Conv2d, name: ActivationName, negative_slope: float
) -> None:
    """Initialise, in place, a layer that feeds the activation `name`; set its bias to 0.

    Uses Glorot & Bengio 2010 (uniform) for tanh and sigmoid, and He et al. 2015 (normal, with the
    gain of the negative slope) for all others.
    """
    if name in ("tanh", "sigmoid"):
        nn.init.xavier_uniform_(layer.weight)
    else:
        slopes = {"leaky_relu": negative_slope, "prelu": _PRELU_INITIAL_SLOPE}
        slopes["rrelu"] = sum(_RRELU_SLOPES) / 2
        nn.init.kaiming_normal_(layer.weight, a=slopes.get(name, 0.0))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
