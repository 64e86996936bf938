"""What any HTTP service needs: the door and the gate, keys, lanes, streams, the log, metrics, the engine's thread."""
