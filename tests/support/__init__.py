"""What several test modules share: servers, clients, parts of a tunnel, whole programs."""
