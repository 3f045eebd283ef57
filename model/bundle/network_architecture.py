"""The declarative description of a network, as stored in the manifest. Knows no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from model.images.preprocessing import InputSpec

PresetName = Literal["cnn", "mlp", "alexnet"]
ActivationName = Literal[
    "relu", "leaky_relu", "prelu", "rrelu", "elu", "silu", "gelu", "tanh", "sigmoid"
]


class Architecture(BaseModel):
    """Everything that is needed to build a network with fresh weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: PresetName = "cnn"
    activation: ActivationName = "relu"
    negative_slope: float = Field(0.01, ge=0, lt=1, description="slope of leaky_relu below zero")
    dropout: float = Field(0.5, ge=0, lt=1, description="probability of zeroing")
    classes: int = Field(ge=2)
    input: InputSpec


class DropoutLayer(BaseModel):
    """One dropout layer of a head: `p` is the probability of zeroing, `width` its units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p: float = Field(ge=0, lt=1)
    width: int = Field(ge=1)
