"""
The fault matrix: real controllers, real Postgres, real Prometheus, and every fault injected for real.

    python -m bench.chaos --quick            (or ./dev chaos --quick)

`cli` runs it, `stage` holds what all trials share, `world` is one trial's own, `worker` is a controller process, `invariants` says what must
hold afterwards, and `faults_*` are the faults. Its one rule: a fault ends with the controllers started again and nothing else repaired;
what the invariants find then is the product's.
"""
