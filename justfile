# Short names for the commands that CONTRIBUTING.md explains.

# Everything, as CI does it.
test *TIERS:
    tests/run {{TIERS}}

# The game day, without a cluster.
drill *ARGS:
    cargo run --release -- drill {{ARGS}}

# Writes deploy/crds anew.
crds:
    cargo run -p reattach-api --bin crdgen
