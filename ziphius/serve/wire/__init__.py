"""HTTP: routes, the gate and its keys, streams, the engine's thread, metrics."""
