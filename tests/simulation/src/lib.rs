//! What the simulation tests share.

/// The seeds of one test: 1 to `usual`, or as many as `REATTACH_SEEDS` says; `REATTACH_SEED` names a single one.
pub fn seeds(usual: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    match (number("REATTACH_SEED"), number("REATTACH_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, many) => (1..=many.unwrap_or(usual)).collect(),
    }
}
