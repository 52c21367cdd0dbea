"""Floods by one peer, as bounded tests: whether another client is served meanwhile.

``flood`` has what a flood is made of, ``witness`` the other client; each ``floods_AREA`` adds
floods to the registry.  ``test_floods`` counts, ``python -m tests.attack`` measures.
"""
