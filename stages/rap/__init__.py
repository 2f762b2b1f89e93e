"""The paper: the attack process (Alg. 1), the reverse process (Alg. 2) and the objective (Alg. 3).

Nothing here knows a data set, a network or a file: networks and images arrive as arguments.
"""
