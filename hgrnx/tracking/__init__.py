"""Where a run's metrics go: a file always, MLflow beside it (``mlflow.py``, ``publisher.py``)."""

from hgrnx.tracking.tracker import CompositeTracker, JsonlTracker, NullTracker, Tracker, read_metrics

__all__ = ["CompositeTracker", "JsonlTracker", "NullTracker", "Tracker", "read_metrics"]
