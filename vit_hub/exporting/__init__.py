"""Programs of a model for other runtimes: ONNX, OpenVINO and torch.export, run and compared before they are kept."""
