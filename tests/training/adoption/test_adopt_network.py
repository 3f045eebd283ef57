"""Networks of other layouts become bundles that answer as the file does, through the real service.

The data are the digits, and a folder of large grey and coloured squares.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from PIL import Image
from torch import nn

from model.bundle.architecture_description import AdoptedArchitecture
from model.bundle.store import CARD_FILE, open_bundle
from model.cli_and_env_settings import load
from model.errors import DataError, SettingsError
from model.images.preprocessing import InputSpec, to_float
from model.inference.predictor_loading import load_predictor
from model.uncertainty.uncertainty_measures import softmax
from tests.service.serving import JSON, Application, predictions, serving_models
from tests.training.adoption import networks
from tests.training.data.folders import write_one_scene
from training.adopt import adopt, main
from training.adoption.adoption_config import AdoptionConfig
from training.adoption.input_layout import NetworkInput
from training.adoption.labelled_images import load_images
from training.adoption.preprocessing_choice import possible_rules
from training.data.dataset import Split

OPTIONS = ["--data=digits", "--resize=pad"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adoption")


@pytest.fixture(scope="module")
def keras_file(folder: Path) -> Path:
    return networks.save(networks.keras_like(), folder)


@pytest.fixture(scope="module")
def models(folder: Path, keras_file: Path) -> Path:
    """Bundles of the Keras-like network, and of the VGG-like one as a torch module."""
    models = folder / "models"
    places = [f"--output={models}", "--name=keras"]
    assert main([str(keras_file), *OPTIONS, *places]) == 0
    module = vgg_module()
    path = adopt(
        module, torch.rand(1, 1, 8, 8), data="digits", name="vgg", output=models, resize="pad"
    )
    assert path == models / "vgg" / "1"
    assert isinstance(module[-2], nn.Dropout)
    return models


def vgg_module() -> nn.Sequential:
    """Return a small VGG in torch, with random weights."""
    torch.manual_seed(0)
    hidden = [nn.Linear(128, 32), nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, 16), nn.ReLU()]
    convolution = nn.Conv2d(1, 2, 3, padding=1)
    return nn.Sequential(
        convolution, nn.ReLU(), nn.Flatten(), *hidden, nn.Dropout(), nn.Linear(16, 10)
    )


@pytest.fixture(scope="module")
def application(models: Path) -> Iterator[Application]:
    with serving_models(models) as application:
        yield application


def keras_answers(file: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = InferenceSession(file)
    answers: NDArray[np.float32] = session.run(
        None, {"input": images.transpose(0, 2, 3, 1) * np.float32(255)}
    )[0]
    return answers


def test_bundle_gives_the_probabilities_of_the_file(
    models: Path, keras_file: Path, held_out: Split
) -> None:
    images = to_float(held_out.images[:64])
    predictor = load_predictor(open_bundle(models / "keras" / "1"))
    own = softmax(predictor.predict(images).logits)
    assert np.abs(own - keras_answers(keras_file, images)).max() <= 1e-4


def test_manifest_and_card_say_where_the_network_and_its_dropout_come_from(models: Path) -> None:
    bundle = open_bundle(models / "keras" / "1")
    architecture = bundle.manifest.architecture
    assert isinstance(architecture, AdoptedArchitecture)
    assert architecture.file == "network.onnx"
    assert architecture.output == "probabilities"
    assert architecture.dropout_origin == "heuristic"
    assert architecture.preprocessing == "0..255"
    assert architecture.preprocessing_origin == "guessed"
    assert "Pixels become 0..255, which is **guessed**" in bundle.card
    assert bundle.manifest.metrics["parity"] <= 1e-4
    losses = bundle.manifest.metrics["dropout_choice"]["nll"]
    assert min(losses, key=losses.get) == f"{architecture.dropout:g}"
    assert "is a heuristic" in bundle.card
    assert (bundle.path / CARD_FILE).is_file()


def test_dropout_of_a_torch_module_is_kept_with_its_place_and_probability(models: Path) -> None:
    manifest = open_bundle(models / "vgg" / "1").manifest
    assert [(each.p, each.width) for each in manifest.dropout_layers] == [(0.4, 32), (0.5, 16)]
    assert isinstance(manifest.architecture, AdoptedArchitecture)
    assert manifest.architecture.dropout_origin == "network"
    assert "the network's own" in open_bundle(models / "vgg" / "1").card


@pytest.mark.parametrize("model", ["keras", "vgg"])
def test_service_answers_with_uncertainty_and_typicality(
    application: Application, held_out: Split, model: str
) -> None:
    pixels = (held_out.images[:4, 0] / 255).round(4).tolist()
    sent = {"instances": pixels}
    url = f"/uncertainty?model={model}&samples=16"
    response = application.request("POST", url, json=sent, headers=JSON)
    for row in predictions(response):
        assert 0 <= row["mutual_information"] <= row["predictive_entropy"]
        assert 0 < row["typicality"] <= 1
    again = application.request("POST", url, json={"instances": pixels[:1]}, headers=JSON)
    assert predictions(again)[0] == predictions(response)[0]


def test_analytic_method_integrates_over_the_dropout_of_an_adopted_head(
    application: Application, held_out: Split
) -> None:
    sent = {"instances": (held_out.images[:4, 0] / 255).tolist()}
    rows = [
        predictions(application.request("POST", f"/uncertainty?model=keras&{query}", json=sent))
        for query in ("method=analytic", "samples=512")
    ]
    for analytic, sampled in zip(*rows, strict=True):
        assert analytic["label"] == sampled["label"]
        assert analytic["confidence"] == pytest.approx(sampled["confidence"], abs=0.05)


def test_analytic_method_refuses_a_head_with_relu_after_its_dropout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tail = [nn.Dropout(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)]
    module = nn.Sequential(nn.Flatten(), *tail)
    example = torch.rand(1, 1, 8, 8)
    adopt(module, example, data="digits", name="early", output=tmp_path, resize="pad")
    with serving_models(tmp_path) as application:
        sent = {"instances": [[[0, 1] * 4] * 8]}
        for query, status in (("samples=16", 200), ("method=analytic", 400)):
            response = application.request("POST", f"/uncertainty?{query}", json=sent)
            assert response.status_code == status
    assert "linear after their dropout layer, and this one is not" in response.json()["error"]
    assert response.json()["code"] == "method_unavailable"


@pytest.fixture(scope="module")
def squares(folder: Path) -> Path:
    """Return a folder of two classes, `dark` and `lights`."""
    random = np.random.default_rng(0)
    for row in range(24):
        place = folder / "squares" / ("lights" if row % 2 else "dark")
        place.mkdir(parents=True, exist_ok=True)
        level = random.integers(0, 90) + (150 if row % 2 else 0)
        Image.fromarray(np.full((20, 20), level, np.uint8)).save(place / f"{row}.png")
    return folder / "squares"


def brightness_network(white: float = 1) -> onnx.ModelProto:
    """Return a network of four classes; the second is light, the fourth dark."""
    net = networks.Builder(("batch", 3, "height", "width"), 18)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    weight = np.zeros((3, 4), np.float32)
    weight[:, 1], weight[:, 3] = 4 / white, -4 / white
    net.add("Gemm", weight, np.array([0, -6, 0, 6], np.float32))
    return net.model(("batch", 4))


def test_folder_of_some_classes_is_matched_with_the_names_of_a_file(
    tmp_path: Path, squares: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("other\nlight, lamp\nother\nDark\n")
    file = networks.save(brightness_network(), tmp_path)
    places = [f"--output={tmp_path / 'models'}", "--name=squares", f"--data=folder:{squares}"]
    stated = ["--size=12x8", "--pixel-maximum=1", "--dropout=0.1", f"--classes={names}"]
    assert main([str(file), *places, *stated]) == 0
    manifest = open_bundle(tmp_path / "models" / "squares" / "1").manifest
    assert manifest.class_names == ("other (0)", "light, lamp", "other (2)", "Dark")
    assert (manifest.input.height, manifest.input.width) == (12, 8)
    assert manifest.metrics["validation"]["accuracy"] == 1
    assert manifest.calibration is None


@pytest.mark.parametrize(
    ("takes_bytes", "options", "rule", "origin"),
    [
        (False, ["--colour=bgr"], "BGR 0..255", "guessed"),
        (True, ["--colour=bgr"], "BGR 0..255", "network"),
        (True, ["--mean=0", "--std=1"], "0..255", "stated"),
    ],
)
def test_what_the_options_leave_open_comes_from_the_network_or_is_guessed(
    tmp_path: Path,
    squares: Path,
    takes_bytes: bool,
    options: list[str],
    rule: str,
    origin: str,
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("other\nlights\nother\ndark\n")
    model = brightness_network(white=255)
    file = networks.save(networks.of_bytes(model) if takes_bytes else model, tmp_path)
    places = [f"--output={tmp_path / 'models'}", "--name=squares", f"--data=folder:{squares}"]
    stated = ["--size=8", "--dropout=0.1", f"--classes={names}"]
    assert main([str(file), *places, *stated, *options]) == 0
    manifest = open_bundle(tmp_path / "models" / "squares" / "1").manifest
    assert isinstance(manifest.architecture, AdoptedArchitecture)
    assert manifest.architecture.preprocessing == rule
    assert manifest.architecture.preprocessing_origin == origin
    assert manifest.metrics["validation"]["accuracy"] == 1


def test_mean_and_deviation_are_turned_round_where_blue_comes_first() -> None:
    image = NetworkInput("x", "nchw", np.dtype(np.float32), None, 3, 8, 8)
    rules = {rule.describe() for rule in possible_rules(image, bgr=True).values()}
    assert "((BGR 0..1) - (0.406, 0.456, 0.485)) / (0.225, 0.224, 0.229)" in rules
    assert "(BGR 0..255) - (103.939, 116.779, 123.68)" in rules


@pytest.fixture(scope="module")
def words(folder: Path, held_out: Split) -> Path:
    """Return a folder of the digits whose classes are their English names."""
    for row, (image, label) in enumerate(zip(held_out.images, held_out.labels, strict=True)):
        place = folder / "words" / WORDS[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(place / f"{row}.png")
    return folder / "words"


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.parametrize("stated", [True, False])
def test_outputs_in_another_order_than_the_folder_are_refused(
    tmp_path: Path,
    words: Path,
    keras_file: Path,
    capsys: pytest.CaptureFixture[str],
    stated: bool,
) -> None:
    places = [f"--output={tmp_path / 'models'}", "--name=words", f"--data=folder:{words}"]
    rule = ["--pixel-maximum=255"] if stated else []
    assert main([str(keras_file), *places, *rule]) == 2
    message = capsys.readouterr().err
    assert message.startswith("The network's outputs are not in the order of the folder's classes")
    assert ", ".join(f"{output}: {name}" for output, name in enumerate(WORDS)) in message
    assert message.count("\n") == 1
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "The network takes images of any size; name one with --size"),
        (["--size=8"], "has 4 outputs, but the data set 'squares' has 2 classes; name the outputs"),
        (["--size=8", "--classes=nowhere"], "nowhere cannot be read"),
        (["--size=8", "--cut=x"], "'x' is no dense layer at the end of the network; it has gemm_2"),
        (["--size=8", "--colour=grey"], "The network takes images of 3 channels"),
    ],
)
def test_wrong_option_for_the_network_is_one_sentence_and_writes_nothing(
    tmp_path: Path,
    squares: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    file = networks.save(brightness_network(), tmp_path)
    places = [f"--output={tmp_path / 'models'}", "--name=squares", f"--data=folder:{squares}"]
    assert main([str(file), *places, *options]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
    assert list((tmp_path / "models").iterdir()) == []


IMAGENET = ["--mean=0.485,0.456,0.406", "--std=0.229,0.224,0.225"]
BYTES = "The network takes whole numbers 0..255; leave --mean, --std and --pixel-maximum out."


@pytest.mark.parametrize(
    ("takes_bytes", "options", "sentence"),
    [
        (True, IMAGENET, BYTES),
        (True, ["--mean=0", "--std=255"], BYTES),
        (True, ["--pixel-maximum=1"], BYTES),
        (False, IMAGENET, "takes images of 1 channel, but --mean has 3 numbers; give one."),
        (False, ["--mean=0", IMAGENET[1]], "1 channel, but --std has 3 numbers; give one."),
    ],
)
def test_rule_of_pixels_that_the_network_cannot_take_is_one_sentence_and_writes_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    takes_bytes: bool,
    options: list[str],
    sentence: str,
) -> None:
    model = networks.keras_like()
    file = networks.save(networks.of_bytes(model) if takes_bytes else model, tmp_path)
    places = [f"--output={tmp_path / 'models'}", "--name=x"]
    assert main([str(file), *OPTIONS, *places, *options]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--std=0"], "--std: a deviation must be above 0"),
        (["--mean=.3"], "--mean without --std states only half"),
        (["--std=.3"], "--std without --mean states only half"),
        (["--mean=x"], "--mean: input should be a valid number"),
        (["--mean=nan", "--std=1"], "--mean: input should be a finite number, but got 'nan'"),
        (["--mean=0", "--std=1,inf,1"], "--std: input should be a finite number, but got 'inf'"),
        (["--pixel-maximum=2"], "--pixel-maximum: input should be 1 or 255, but got 2"),
        (["--mean=1,2"], "--mean: give one number or three, not 2"),
        (["--dropout=1"], "--dropout: must be at least 0 and below 1"),
        (["--name=stats"], "--name: 'stats' cannot name a new model"),
        (["--size=big"], "--size: 'big' is neither a number of pixels nor HEIGHTxWIDTH"),
    ],
)
def test_invalid_option_is_refused_before_the_file_is_read(
    capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["nowhere.onnx", "--name=x", "--data=digits", *options])
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mean": "x", "std": 1}, "--mean: input should be a valid number"),
        ({"mean": 0.3}, "--mean without --std states only half"),
        ({"size": "big"}, "--size: 'big' is neither"),
        ({"sizes": 8}, "--sizes is not an option"),
        ({"data": None}, "--data: input should be a valid string"),
    ],
)
def test_invalid_option_in_python_is_one_sentence(
    options: dict[str, object], sentence: str
) -> None:
    given = {"data": "digits", "name": "x"} | options
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        adopt(vgg_module(), torch.rand(1, 1, 8, 8), **given)


def test_images_that_are_much_alike_or_large_are_taken_on_demand(tmp_path: Path) -> None:
    write_one_scene(tmp_path, 6)
    spec = InputSpec(channels=3, height=8, width=8, resize="crop")
    options = ["network.onnx", "--name=scene", f"--data=folder:{tmp_path}"]
    with pytest.raises(DataError, match="add --duplicates keep"):
        load_images(load(AdoptionConfig, options), spec)
    data = load_images(load(AdoptionConfig, [*options, "--duplicates=keep"]), spec)
    assert sum(map(len, (data.train, data.validation, data.test))) == 12
    small = ["--duplicates=keep", "--max-image-megapixels=0.001"]
    with pytest.raises(DataError, match="has 0 images that can be read"):
        load_images(load(AdoptionConfig, [*options, *small]), spec)


def test_options_in_python_may_be_numbers() -> None:
    config = AdoptionConfig(network=Path("x"), name="x", data="digits", mean=0.5, std=".2", size=8)
    assert (config.mean, config.std, config.height_and_width) == ([0.5], [0.2], (8, 8))


def test_numbers_may_begin_with_a_point_and_have_commas_between() -> None:
    arguments = ["x.onnx", "--name=x", "--data=digits", "--mean", ".4,.5,1", "--std", ".25"]
    config = load(AdoptionConfig, [*arguments, "--pixel-maximum", "255"])
    assert (config.mean, config.std, config.pixel_maximum) == ([0.4, 0.5, 1], [0.25], 255)


def test_file_that_is_no_network_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "network.onnx"
    for content in (b"", b"no network", bytes(range(256))):
        file.write_bytes(content)
        assert main([str(file), *OPTIONS, "--name=x", f"--output={tmp_path / 'models'}"]) == 2
        assert capsys.readouterr().err.startswith(f"{file} is not an ONNX ")
