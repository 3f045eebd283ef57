"""The declarative description of a network, as stored in the manifest. Knows no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from model.images.preprocessing import InputSpec

PresetName = Literal["cnn", "mlp", "alexnet"]
ActivationName = Literal[
    "relu", "leaky_relu", "prelu", "rrelu", "elu", "silu", "gelu", "tanh", "sigmoid"
]


PreprocessingOrigin = Literal["stated", "network", "guessed"]


class BackboneFile(BaseModel):
    """What is known of the ONNX file whose network is the trunk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(description="its name")
    sha256: str
    preprocessing: str = Field(description="how pixels become what the network takes")
    cut: str = Field(description="dense layer that was cut off, or else the output of features")
    features: int = Field(ge=1, description="units of the trunk's output")


class Architecture(BaseModel):
    """Everything that is needed to build a network with fresh weights.

    Of a backbone that is a file, only the head can be built.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: PresetName | None = Field("cnn", description="null with a backbone")
    activation: ActivationName = "relu"
    negative_slope: float = Field(0.01, ge=0, lt=1, description="slope of leaky_relu below zero")
    dropout: float = Field(0.5, ge=0, lt=1, description="probability of zeroing")
    classes: int = Field(ge=2)
    input: InputSpec
    backbone: Literal["efficientnet-lite0", "onnx"] | None = Field(
        None, description="pretrained network that is the trunk, in place of the preset's"
    )
    backbone_file: BackboneFile | None = Field(
        None, description="the file of the backbone `onnx`; null for every other"
    )
    head_layers: Literal[1, 2] = Field(1, description="dense layers behind a backbone")


class AdoptedArchitecture(BaseModel):
    """A network that was not trained here: what is known of the file that it was adopted from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["adopted"] = "adopted"
    file: str = Field(description="name of the file, or of the torch module's class")
    sha256: str | None = Field(description="of the file; null for a torch module")
    preprocessing: str = Field(description="how pixels become what the network takes")
    preprocessing_origin: PreprocessingOrigin | None = Field(
        None,
        description="stated by the user; network: the file takes 8-bit pixels; guessed: the usual "
        "rule with the lowest loss; null in old bundles",
    )
    output: Literal["logits", "probabilities", "log-probabilities"] = Field(
        description="what the file answers; the bundle's logits are before its softmax"
    )
    cut: str = Field(description="dense layer that the head begins with")
    dropout: float = Field(ge=0, lt=1, description="probability of zeroing in the first layer")
    dropout_origin: Literal["network", "heuristic"] = Field(
        description="network: the file has this dropout; heuristic: it was not trained with it"
    )
    classes: int = Field(ge=2)
    input: InputSpec


class DropoutLayer(BaseModel):
    """One dropout layer of a head: `p` is the probability of zeroing, `width` its units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p: float = Field(ge=0, lt=1)
    width: int = Field(ge=1)
