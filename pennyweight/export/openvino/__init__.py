"""OpenVINO's intermediate representation: openvino_model.xml and openvino_model.bin."""

import sys

# `import openvino` tells its makers that it was imported, unless the package that does so cannot be found.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
