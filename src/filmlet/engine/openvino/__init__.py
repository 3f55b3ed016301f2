"""The engine that OpenVINO computes; imported when it is used."""

import sys

# Without this library OpenVINO takes a stub of its own: nothing phones home.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
