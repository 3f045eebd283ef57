"""The HTTP routes: native, Open Inference Protocol (/v2) and TensorFlow Serving (/v1).

Each handler parses a request, calls the engine or the registry, and builds the response. Knows
nothing of sockets, of batching or of numerics.
"""
