"""Exemplars: one for each route and bucket, the latest of all workers."""

from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram

from service.observability.exemplars import LatencyExemplars, WithExemplars, remove_exemplars

BUCKETS = (0.1, 1.0)


def test_latest_exemplar_of_each_bucket_is_kept(tmp_path: Path) -> None:
    exemplars = LatencyExemplars(BUCKETS)
    for seconds, trace_id in [(0.05, "a"), (0.1, "b"), (0.11, "c"), (7.0, "d")]:
        exemplars.note("/predict", seconds, trace_id)
    exemplars.note("/occlusion", 7.0, "e")
    found = {key: value[:2] for key, value in exemplars.latest(tmp_path).items()}
    assert found == {
        ("/predict", "0.1"): ("b", 0.1),
        ("/predict", "1.0"): ("c", 0.11),
        ("/predict", "+Inf"): ("d", 7.0),
        ("/occlusion", "+Inf"): ("e", 7.0),
    }


def test_workers_share_their_exemplars(tmp_path: Path) -> None:
    ours, theirs = LatencyExemplars(BUCKETS), LatencyExemplars(BUCKETS)
    ours.note("/predict", 0.5, "old")
    ours.note("/predict", 0.05, "ours")
    theirs.note("/predict", 0.5, "theirs")
    theirs.store(tmp_path)
    (stored,) = tmp_path.iterdir()
    stored.rename(tmp_path / "exemplars-1.json")  # as another process would name it
    theirs.store(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["exemplars-1.json"]  # nothing is new
    found = {key[1]: value[0] for key, value in ours.latest(tmp_path).items()}
    assert found == {"0.1": "ours", "1.0": "theirs"}
    remove_exemplars(tmp_path, 1)
    assert ours.latest(tmp_path)["/predict", "1.0"][0] == "old"


def test_half_a_file_is_no_exemplar(tmp_path: Path) -> None:
    (tmp_path / "exemplars-1.json").write_text('[["/predict",')
    assert LatencyExemplars(BUCKETS).latest(tmp_path) == {}


def test_exemplars_stand_at_the_buckets_of_their_route() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("seconds", "Time.", ("route",), buckets=BUCKETS, registry=registry)
    exemplars = LatencyExemplars(BUCKETS)
    for route in ("/predict", "/other"):
        histogram.labels(route).observe(0.5)
    exemplars.note("/predict", 0.5, "a")
    (metric,) = WithExemplars(registry, "seconds", exemplars.latest(None)).collect()
    found = [each for each in metric.samples if each.exemplar]
    assert [(each.name, each.labels) for each in found] == [
        ("seconds_bucket", {"route": "/predict", "le": "1.0"})
    ]
