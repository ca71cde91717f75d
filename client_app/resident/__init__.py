"""The trainer that a site keeps alive between Flower's messages, and the relay of bytes to it.

Flower starts a process for every message, and that process imports `relay`: nothing is imported here.
"""
