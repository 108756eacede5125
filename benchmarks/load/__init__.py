"""Load generator and origin: plain sockets and epoll, so that the proxy between them is the bottleneck."""
