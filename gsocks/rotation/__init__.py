"""The choice of an exit for each request: policies, sessions, health, failover, exit lists."""
