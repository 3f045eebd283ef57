"""Traces of requests for an OpenTelemetry collector, where the environment names one.

Off, nothing here imports opentelemetry. On, a request that is not sampled costs one comparison; of
a sampled one its times are noted while it is answered, and its spans are made afterwards. It knows
no route and no model.
"""
