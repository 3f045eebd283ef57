"""The Prometheus series of the service: names, help texts, labels and buckets. Knows no request."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STAGE_SECONDS = (1e-4, 2.5e-4, 5e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TYPICALITIES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
SET_SIZES = (0, 1, 2, 3, 4, 5, 10, 20, 50, 100, 1000)
PROBABILITY_DIFFERENCES = (0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1)
NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5)


class PrometheusSeries:
    """The service's counters, gauges and histograms, registered in a registry of their own.

    GET /metrics lists them in the order in which they are created.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._create_program_series(self.registry)
        self._create_request_series(self.registry)
        self._create_tls_series(self.registry)
        self._create_engine_series(self.registry)
        self._create_uncertainty_series(self.registry)
        self._create_drift_series(self.registry)
        self._create_version_series(self.registry)
        self._create_models_source_series(self.registry)
        self._create_inference_series(self.registry)
        self._create_traffic_log_series(self.registry)
        self._create_feedback_series(self.registry)
        self._create_feedback_figures(self.registry)
        self._create_shadow_series(self.registry)
        self._create_trace_series(self.registry)

    def _create_program_series(self, registry: CollectorRegistry) -> None:
        """Create the series of the program and of its log."""
        self.build_info = Gauge(
            "dropserve_build_info",
            "1, with the versions of the service, of Python and of ONNX Runtime.",
            ("version", "python", "onnxruntime"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.draining = Gauge(
            "dropserve_draining",
            "1 since SIGTERM: the service is not ready any more, and ends soon.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.log_lines_dropped = Counter(
            "dropserve_log_lines_dropped",
            "Lines that the log has not: nobody read them in time, or its disk is full.",
            registry=registry,
        )

    def _create_request_series(self, registry: CollectorRegistry) -> None:
        """Create the series of HTTP requests."""
        self.requests = Counter(
            "dropserve_requests",
            "Requests answered.",
            ("route", "method", "status"),
            registry=registry,
        )
        self.latency = Histogram(
            "dropserve_request_duration_seconds",
            "From the end of the request's head to the answer's last byte, seconds.",
            ("route",),
            buckets=LATENCY_SECONDS,
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "dropserve_requests_in_hand",
            "Requests being answered now.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.access_refusals = Counter(
            "dropserve_access_refusals",
            "Requests refused by their key: no_key, wrong_key, wrong_scope, or too_many wrong ones "
            "from one address.",
            ("reason",),
            registry=registry,
        )
        self.keys_unreadable = Gauge(
            "dropserve_keys_unreadable",
            "1 while the file of keys cannot be read; the keys that were read last stay good.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.rate_refusals = Counter(
            "dropserve_rate_refusals",
            "Requests refused since their client sends too many requests or images a second.",
            ("limit",),
            registry=registry,
        )

    def _create_tls_series(self, registry: CollectorRegistry) -> None:
        """Create the series of TLS."""
        self.tls_certificate_expiry = Gauge(
            "dropserve_tls_certificate_expiry_timestamp_seconds",
            "When the certificate in use ends, server or client_ca (its first), seconds since "
            "1970.",
            ("certificate",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.tls_handshake_failures = Counter(
            "dropserve_tls_handshake_failures",
            "Handshakes that failed: incomplete, plain_http, client_certificate, or protocol (all "
            "else).",
            ("reason",),
            registry=registry,
        )

    def _create_engine_series(self, registry: CollectorRegistry) -> None:
        """Create the series of batches, stages and loaded models."""
        self.batch_rows = Histogram(
            "dropserve_batch_rows",
            "Images in one inference run.",
            ("model",),
            buckets=ROWS,
            registry=registry,
        )
        self.queue_rows = Gauge(
            "dropserve_queue_rows",
            "Images waiting for inference.",
            ("model",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.stage = Histogram(
            "dropserve_stage_seconds",
            "One run of a stage: decode (images of a request), trunk, head (with its summary).",
            ("stage",),
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self.model_info = Gauge(
            "dropserve_model_info",
            "1 for each model and version that is loaded.",
            ("model", "version"),
            registry=registry,
            multiprocess_mode="livemax",
        )

    def _create_uncertainty_series(self, registry: CollectorRegistry) -> None:
        """Create the series of the predictions of POST /uncertainty."""
        self.predictive_entropy = Histogram(
            "dropserve_predictive_entropy_nats",
            "Predictive entropy of answers of POST /uncertainty.",
            ("model", "version"),
            buckets=NATS,
            registry=registry,
        )
        self.mutual_information = Histogram(
            "dropserve_mutual_information_nats",
            "Mutual information of answers of POST /uncertainty.",
            ("model", "version"),
            buckets=NATS,
            registry=registry,
        )
        self.typicality = Histogram(
            "dropserve_typicality",
            "Typicality of images sent to POST /uncertainty; spread evenly while they are like the "
            "validation images.",
            ("model", "version"),
            buckets=TYPICALITIES,
            registry=registry,
        )
        self.set_size = Histogram(
            "dropserve_prediction_set_classes",
            "Classes in a prediction set of POST /uncertainty.",
            ("model", "version"),
            buckets=SET_SIZES,
            registry=registry,
        )
        self.abstentions = Counter(
            "dropserve_abstentions",
            "Answers of POST /uncertainty that abstained.",
            ("model", "version"),
            registry=registry,
        )
        self.abstentions_by_reason = Counter(
            "dropserve_abstentions_by_reason",
            "Answers of POST /uncertainty that abstained, by reason: unsure, unusual or both.",
            ("model", "version", "reason"),
            registry=registry,
        )

    def _create_drift_series(self, registry: CollectorRegistry) -> None:
        """Create the series of the drift tests, whose state the workers share."""
        labels = ("model", "version", "figure")
        self.drift_log_wealth = Gauge(
            "dropserve_drift_log_wealth",
            "Evidence for drift: the natural logarithm of the test's wealth, 0 at first.",
            labels,
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.drift_alarm = Gauge(
            "dropserve_drift_alarm",
            "1 since the evidence for drift has reached its limit; until it is reset.",
            labels,
            registry=registry,
            multiprocess_mode="mostrecent",
        )

    def _create_version_series(self, registry: CollectorRegistry) -> None:
        """Create the series of load failures and of changes of the active versions."""
        self.refused_versions = Gauge(
            "dropserve_refused_version",
            "1 for each version that is refused; GET /models has the reason.",
            ("model", "version"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.rollouts_valid = Gauge(
            "dropserve_rollouts_valid",
            "0 while the wanted versions cannot be read: releases.json, or the file of --rollouts.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.switches = Counter(
            "dropserve_switches",
            "Times that another version became a model's stable one, summed over the workers.",
            ("model",),
            registry=registry,
        )

    def _create_models_source_series(self, registry: CollectorRegistry) -> None:
        """Create the series of the source that bundles are fetched from, named without secrets."""
        labels = ("source",)
        self.models_source_success = Gauge(
            "dropserve_models_source_last_success_timestamp_seconds",
            "When all that is wanted of the models source was last in the cache, or else the "
            "start, seconds since 1970.",
            labels,
            registry=registry,
            multiprocess_mode="max",
        )
        self.models_source_failures = Counter(
            "dropserve_models_source_failures",
            "Polls of the models source after which something wanted was not in the cache.",
            labels,
            registry=registry,
        )
        self.models_source_fetched = Counter(
            "dropserve_models_source_fetched_versions",
            "Versions that were fetched from the models source.",
            labels,
            registry=registry,
        )

    def _create_inference_series(self, registry: CollectorRegistry) -> None:
        """Create the series of which `model_statistics` makes the Triton statistics."""
        self.inference_requests = Counter(
            "dropserve_inference_requests",
            "Requests for a model; NAME-mc is NAME with dropout active.",
            ("model", "version", "outcome"),
            registry=registry,
        )
        self.inference_seconds = Counter(
            "dropserve_inference_seconds",
            "Time spent on requests for a model, by outcome and by part, seconds.",
            ("model", "version", "part"),
            registry=registry,
        )
        self.inference_images = Counter(
            "dropserve_inference_images",
            "Images answered.",
            ("model", "version"),
            registry=registry,
        )
        self.inference_runs = Counter(
            "dropserve_inference_runs",
            "Runs of the network that answered a model's requests.",
            ("model", "version"),
            registry=registry,
        )
        self.last_inference = Gauge(
            "dropserve_last_inference_timestamp_seconds",
            "When the last request for a model was answered, seconds since 1970.",
            ("model", "version"),
            registry=registry,
            multiprocess_mode="max",
        )

    def _create_traffic_log_series(self, registry: CollectorRegistry) -> None:
        """Create the series of the traffic log."""
        self.traffic_log_lines = Counter(
            "dropserve_traffic_log_lines",
            "Lines of the traffic log, written or dropped.",
            ("outcome",),
            registry=registry,
        )
        self.traffic_log_images = Counter(
            "dropserve_traffic_log_images",
            "Images of lines of the traffic log, written or dropped.",
            ("outcome",),
            registry=registry,
        )

    def _create_feedback_series(self, registry: CollectorRegistry) -> None:
        """Create the series of what is remembered, and of the labels that were sent."""
        self.feedback_failing = Gauge(
            "dropserve_feedback_failing",
            "1 while the file of feedback cannot be used; the log has the reason.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.feedback_answers = Counter(
            "dropserve_feedback_answers",
            "Answers of requests, remembered for their true labels, or dropped.",
            ("outcome",),
            registry=registry,
        )
        self.feedback_labels = Counter(
            "dropserve_feedback_labels",
            "True labels that were sent: added, unchanged, replaced, or refused.",
            ("outcome",),
            registry=registry,
        )

    def _create_feedback_figures(self, registry: CollectorRegistry) -> None:
        """Create the series of what true labels say, whose counts and tests the workers share."""
        version = ("model", "version")
        self.feedback_labelled = Gauge(
            "dropserve_feedback_labelled_images",
            "Answered images with a true label.",
            version,
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.feedback_share = Gauge(
            "dropserve_feedback_share",
            "What the true labels say, with a 95 % interval (bound: estimate, low or high): "
            "accuracy, coverage, answered, error_among_answered, or overconfidence (mean "
            "confidence minus accuracy).",
            (*version, "figure", "bound"),
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.feedback_calibration_error = Gauge(
            "dropserve_feedback_calibration_error",
            "Expected calibration error by the true labels, in 15 bins.",
            version,
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.feedback_log_wealth = Gauge(
            "dropserve_feedback_log_wealth",
            "Evidence that a promise is broken, max_risk or coverage: the natural logarithm of the "
            "test's wealth, 0 at first.",
            (*version, "promise"),
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.feedback_alarm = Gauge(
            "dropserve_feedback_alarm",
            "1 since the evidence that a promise is broken has reached its limit; until it is "
            "reset.",
            (*version, "promise"),
            registry=registry,
            multiprocess_mode="mostrecent",
        )

    def _create_shadow_series(self, registry: CollectorRegistry) -> None:
        """Create the series of the comparison of a shadow with the stable version."""
        labels = ("model", "version", "shadow")
        self.shadow_images = Counter(
            "dropserve_shadow_images",
            "Images that the stable version has answered, for its shadow: compared, dropped since "
            "there was no room, or failed.",
            (*labels, "outcome"),
            registry=registry,
        )
        self.shadow_label_differences = Counter(
            "dropserve_shadow_label_differences",
            "Compared images to which the shadow gives another label.",
            labels,
            registry=registry,
        )
        self.shadow_abstentions_compared = Counter(
            "dropserve_shadow_abstentions_compared",
            "Compared images of which both versions say whether they abstain.",
            labels,
            registry=registry,
        )
        self.shadow_abstention_differences = Counter(
            "dropserve_shadow_abstention_differences",
            "Of these, images at which one version abstains and the other does not.",
            labels,
            registry=registry,
        )
        self.shadow_probability_difference = Histogram(
            "dropserve_shadow_probability_difference",
            "Largest difference of a class's probability between the two answers to an image.",
            labels,
            buckets=PROBABILITY_DIFFERENCES,
            registry=registry,
        )

    def _create_trace_series(self, registry: CollectorRegistry) -> None:
        """Create the series of traces."""
        self.trace_spans = Counter(
            "dropserve_trace_spans",
            "Spans of sampled requests: sent, failed (the collector took them not), or dropped "
            "(too many waited).",
            ("outcome",),
            registry=registry,
        )

    def remove_version(self, model: str, version: str) -> None:
        """Remove the series of one version of a model."""
        for metric in (
            self.model_info,
            self.predictive_entropy,
            self.mutual_information,
            self.typicality,
            self.set_size,
            self.abstentions,
            self.abstentions_by_reason,
            self.refused_versions,
            self.drift_log_wealth,
            self.drift_alarm,
            self.feedback_labelled,
            self.feedback_share,
            self.feedback_calibration_error,
            self.feedback_log_wealth,
            self.feedback_alarm,
            self.inference_requests,
            self.inference_seconds,
            self.inference_images,
            self.inference_runs,
            self.last_inference,
        ):
            metric.remove_by_labels({"model": model, "version": version})
        for metric in (
            self.shadow_images,
            self.shadow_label_differences,
            self.shadow_abstentions_compared,
            self.shadow_abstention_differences,
            self.shadow_probability_difference,
        ):
            for label in ("version", "shadow"):
                metric.remove_by_labels({"model": model, label: version})
