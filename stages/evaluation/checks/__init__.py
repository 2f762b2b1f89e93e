"""The checks that tell real robustness from masked gradients, on one model: pass, warn, fail or not applicable.

>>> from stages.evaluation.checks.all_checks import run_checks  # doctest: +SKIP
>>> run_checks(Examined(model=model, images=images, labels=labels, rows=rows, threat=threat))  # doctest: +SKIP

Three kinds: is the attack sound (2 to 13), does the training explain the robustness (17 to 19), and plain reporting
(1, 14 to 16, 20). Sources: Athalye et al. 2018; Carlini et al. 2019; Tramer et al. 2020; Croce & Hein 2020; Pintor et
al. 2022; Zimmermann et al. 2022.
"""
