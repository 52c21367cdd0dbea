"""The rotating proxy beside other rotating proxies: one listener, hundreds of exits behind it."""
