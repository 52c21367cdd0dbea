"""A listener for DNS: each question goes through an exit, over TCP, and nothing beside it.

wire        questions of clients and answers of name servers, and what each becomes
cache       answers for as long as they say that they are good
upstream    connections to name servers through exits, with many questions on each
resolver    who waits for which answer
server      UDP and TCP at one address
"""
