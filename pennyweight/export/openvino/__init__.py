"""OpenVINO's intermediate representation: openvino_model.xml and openvino_model.bin."""
