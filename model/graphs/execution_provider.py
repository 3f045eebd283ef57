"""What computes the trunk: the processor, or an NVIDIA GPU by ONNX Runtime's CUDA provider.

The head, its samples and their statistics stay on the processor, where every mask and every sum is
the same as without a GPU: they are so small that the copies to the GPU would take longer. Knows no
graph.
"""

from typing import Any, Literal

from model.graphs.sessions import CPU_PROVIDER, Provider, available_providers, load_cuda_libraries

ProviderName = Literal["cpu", "cuda"]

_CUDA_OPTIONS: dict[str, Any] = {
    # The default times every algorithm when a graph is loaded, so the choice, and with it the last
    # digits of an answer, would differ from start to start.
    "cudnn_conv_algo_search": "HEURISTIC",
    # TF32 keeps 10 bits of a factor: its logits differ by more than the self-test allows.
    "use_tf32": "0",
    "arena_extend_strategy": "kSameAsRequested",
}
_CUDA_PROVIDER = "CUDAExecutionProvider"


def providers_of(name: ProviderName) -> tuple[Provider, ...]:
    """Return ONNX Runtime's providers, best first; nodes that the GPU cannot do stay with the CPU.

    Loads the libraries of CUDA where they are wanted.
    """
    if name == "cpu":
        return (CPU_PROVIDER,)
    load_cuda_libraries()
    return ((_CUDA_PROVIDER, _CUDA_OPTIONS), CPU_PROVIDER)


def why_provider_is_unusable(name: ProviderName) -> str | None:
    """Return in one sentence why this ONNX Runtime has no such provider; None if it has.

    Whether there is a GPU shows when a graph is loaded.
    """
    if name == "cpu" or _CUDA_PROVIDER in available_providers():
        return None
    return (
        "--provider cuda: the ONNX Runtime that is installed knows no GPU; replace it with pip "
        "uninstall --yes onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'."
    )
