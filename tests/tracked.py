"""Trackers that write to files alone, as fixtures, and what they wrote, read back."""

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2


def quiet_wandb(directory: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What makes a logger for Weights & Biases write to files alone; ``wandb.teardown()`` ends it."""
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        patch.setenv(name, str(directory))
    patch.setenv("WANDB_SILENT", "true")
    patch.setenv("WANDB_MODE", "offline")
    x = "x_" if hasattr(wandb.Settings(), "x_disable_stats") else "_"  # their names changed in 0.19
    quiet = {f"{x}disable_stats": True, f"{x}disable_meta": True, "disable_git": True, "console": "off"}
    return {"offline": True, "save_dir": directory, "settings": wandb.Settings(**quiet)}


def quiet_mlflow(directory: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What makes a logger for MLflow write to plain files, and tell nobody."""
    uri = (directory / "mlflow").as_uri()
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    patch.setenv("MLFLOW_TRACKING_URI", uri)  # the client sets it; put back afterwards
    return {"tracking_uri": uri}


@pytest.fixture
def wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """As :func:`quiet_wandb` makes it, for one test."""
    yield quiet_wandb(tmp_path, monkeypatch)
    wandb.teardown()


@pytest.fixture
def mlflow_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As :func:`quiet_mlflow` makes it, for one test."""
    return quiet_mlflow(tmp_path, monkeypatch)


def events(directory: str) -> EventAccumulator:
    """All of what a run wrote for TensorBoard."""
    whole = {"scalars": 0, "histograms": 0, "tensors": 0}
    return EventAccumulator(directory, size_guidance=whole).Reload()


def texts(accumulator: EventAccumulator, tag: str) -> dict[int, str]:
    """What stands in the Text tab under a tag, by step."""
    points = accumulator.Tensors(f"{tag}/text_summary")
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.tensor_proto.string_val[0].decode() for point in points}


def csv_rows(logger: Any) -> list[dict[str, str]]:
    """Rows that Lightning's logger wrote."""
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def wandb_records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """The records of an offline run file: LevelDB's log format, after a header of seven bytes."""
    raw, offset, parts = path.read_bytes(), 7, b""
    assert raw[:4] == b":W&B"
    while offset + 7 <= len(raw):
        left = 32768 - offset % 32768
        if left < 7:  # no room for a header: the block is padded
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[offset : offset + 7])
        parts += raw[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_run(directory: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the history of the one run there, and the names of all kinds of record."""
    (path,) = directory.rglob("*.wandb")
    rows, kinds = [], []
    for record in wandb_records(path):
        kinds.append(record.WhichOneof("record_type"))
        if kinds[-1] == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                _put(row, item)
            rows.append(row)
    return rows, kinds


def wandb_state(directory: Path) -> dict[str, Any]:
    """What the one run there ends with: summary, config, alerts, artifacts, and rules of metrics."""
    (path,) = directory.rglob("*.wandb")
    state: dict[str, Any] = {"summary": {}, "config": {}, "alerts": [], "artifacts": [], "metrics": {}}
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind in ("summary", "config"):
            for item in getattr(record, kind).update:
                _put(state[kind], item)
        elif kind == "run":
            for item in record.run.config.update:
                _put(state["config"], item)
        elif kind == "alert":
            state["alerts"].append((record.alert.title, record.alert.text, record.alert.level))
        elif kind == "artifact":
            state["artifacts"].append((record.artifact.type, record.artifact.name))
        elif kind == "metric":
            state["metrics"][record.metric.name or record.metric.glob_name] = record.metric
    return state


def _put(row: dict[str, Any], item: Any) -> None:
    *parents, last = list(item.nested_key) or [item.key]
    for parent in parents:
        row = row.setdefault(parent, {})
    row[last] = json.loads(item.value_json)
