"""What both listeners share: accept, admit, serve and relay a client's connection."""
