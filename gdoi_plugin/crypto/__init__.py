"""What GDOI computes: prf, key derivation, Diffie-Hellman, the KEK cipher, signatures, ack_key.

Pure functions over octets, on the ``cryptography`` library and ``hashlib``. Formulas stand as
comments above the prf call that computes them.
"""
