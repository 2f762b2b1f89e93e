"""How robust a classifier is, said honestly: accuracy with intervals, a judge for decisions, AutoAttack for claims.

Nothing here depends on how a model was trained: a classifier is a callable from images in [0, 1] to logits.
"""
