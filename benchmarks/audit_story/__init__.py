"""One audit of ten minutes with real processes, while connections, a worker, Redis and gateways go under it."""
