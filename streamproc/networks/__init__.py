"""What every network needs: where its weights come from, sessions of onnxruntime, and the device."""
