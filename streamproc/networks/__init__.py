"""What all networks share: weights and their manifest, onnxruntime sessions, threads, devices."""
