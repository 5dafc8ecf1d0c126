"""
The statistical engine: what two arms' counters prove, however often one looks.

Read `engine` first: it takes one scrape after another and says what is proven. `watch` holds the evidence for rolling back, `proof` the
evidence for going on; both are built from the e-variables in `rates`, `quantiles` and `means`. Pure: numpy, and no I/O, clock or
randomness. This package is the one place that imports numpy, so whoever does not judge does not pay for it.
"""
