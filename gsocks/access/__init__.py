"""Access control: users and their passwords, rules about destinations, networks of clients."""
