"""Shadowsocks: the AEAD edition of 2017 (SIP004, SIP007) and that of 2022 (SIP022, SIP023).

Bytes and streams alone; the exit is gsocks/exits/shadowsocks.py, and the listeners are
gsocks/inbound/shadowsocks.py and shadowsocks_udp.py.
"""
