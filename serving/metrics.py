"""What Prometheus is told. Every name begins with `tandem_`; BentoML adds its own counts of requests and statuses."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

PART_SECONDS = Histogram(
    "tandem_part_seconds", "Seconds spent on a part of a request: features, model, or total.", ["part"], buckets=SECONDS
)
CANDIDATES = Histogram(
    "tandem_candidates",
    "Items or pairs of a request.",
    ["endpoint"],
    buckets=(1, 5, 10, 25, 50, 100, 200, 300, 500, 1000),
)
ANSWERS = Counter("tandem_answers", "Requests that a version of the model has answered.", ["endpoint", "model_version"])
DEGRADED_ANSWERS = Counter("tandem_degraded_answers", "Requests answered without some view.", ["view", "reason"])
CALLS_STOPPED = Counter("tandem_calls_stopped", "Calls of the model that were stopped, as nobody waited any longer.")
FEEDBACK = Counter("tandem_feedback", "Events that callers have reported.", ["clicked"])
LOG_DROPPED = Counter("tandem_log_dropped", "Predictions that were to be logged and could not be.")

MODEL = Gauge(
    "tandem_model",
    "1 for the version that an alias serves, 0 for one that it has served.",
    ["alias", "model_version"],
    multiprocess_mode="max",
)
REFUSED = Gauge("tandem_models_refused", "Versions that are wanted and were refused.", multiprocess_mode="max")
FEATURES_MATCH = Gauge(
    "tandem_feature_service_matches", "1 where the store's features are the model's.", multiprocess_mode="min"
)
BREAKER_OPEN = Gauge("tandem_breaker_open", "1 while the online store is left alone.", multiprocess_mode="max")
ITEMS = Gauge("tandem_item_cache_items", "Items kept in the process.", multiprocess_mode="max")
DATA_AGE = Gauge(
    "tandem_data_age_seconds",
    "Seconds since the newest event that a row read so far knows of; of views whose rows are dated.",
    ["view"],
    multiprocess_mode="mostrecent",
)
ITEM_AGE = Gauge(
    "tandem_item_cache_age_seconds", "Seconds since the item read longest ago was read.", multiprocess_mode="max"
)
