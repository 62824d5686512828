"""What every program shares: configs, meshes, the compiled loop, checkpoints, logs and pictures. Knows no task."""
