"""The provider that computes the trunk; what needs a GPU itself is not tested."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from model.bundle.store import open_bundle
from model.errors import BundleError
from model.graphs import sessions
from model.graphs.execution_provider import ProviderName, providers_of, why_provider_is_unusable
from model.graphs.sessions import ProviderError, create_session
from model.inference.predictor_loading import load_predictor
from tests.model.graphs.test_sessions import endless_graph
from tests.service.serving import check_sentence

_InferenceSession = onnxruntime.InferenceSession
HAS_CUDA = "CUDAExecutionProvider" in sessions.available_providers()
needs_no_cuda = pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime was built with CUDA")


@needs_no_cuda
def test_onnx_runtime_without_cuda_is_named_with_its_remedy() -> None:
    assert why_provider_is_unusable("cpu") is None
    check_sentence(
        why_provider_is_unusable("cuda") or "",
        "--provider cuda: the ONNX Runtime that is installed knows no GPU; replace it with pip "
        "uninstall --yes onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'.",
    )


def test_gpu_comes_first_with_choices_that_do_not_change_from_start_to_start() -> None:
    cuda, cpu = providers_of("cuda")
    assert isinstance(cuda, tuple)
    name, options = cuda
    assert (name, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["use_tf32"] == "0"
    assert providers_of("cpu") == ("CPUExecutionProvider",)


def _session_on_the_processor(model: bytes, options: Any, **_: Any) -> Any:
    return _InferenceSession(model, options, providers=["CPUExecutionProvider"])


def test_session_that_was_made_without_its_provider_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A missing library or GPU makes ONNX Runtime use the processor with a mere warning."""
    monkeypatch.setattr(sessions, "available_providers", lambda: ["NoneExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", _session_on_the_processor)
    with pytest.raises(ProviderError, match="NoneExecutionProvider cannot be used on this machine"):
        create_session(endless_graph(), threads=1, providers=("NoneExecutionProvider",))


@needs_no_cuda
def test_session_does_not_fall_back_in_silence_to_the_processor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ProviderError, match="has no CUDAExecutionProvider"):
        create_session(endless_graph(), threads=1, providers=providers_of("cuda"))
    assert "Falling back" not in capsys.readouterr().out


@needs_no_cuda
@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_bundle_is_refused_where_its_provider_is_missing(
    models_folder: Path, provider: ProviderName
) -> None:
    bundle = open_bundle(models_folder / "digits" / "1")
    if provider == "cpu":
        assert load_predictor(bundle, provider=provider).classes == 10
        return
    with pytest.raises(BundleError) as caught:
        load_predictor(bundle, provider=provider)
    check_sentence(
        str(caught.value),
        "…digits/1 cannot be loaded with --provider cuda (the installed ONNX Runtime has no "
        "CUDAExecutionProvider); see that nvidia-smi shows the GPU …, or leave the option out.",
    )
