"""What carries a tunnel's bytes besides TCP: TLS and WebSocket, as layers below its frames."""
